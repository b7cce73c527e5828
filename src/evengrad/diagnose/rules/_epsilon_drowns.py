"""EG605: an adaptive optimizer whose epsilon is larger than the gradients."""

from math import isfinite, log10, sqrt
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._movement import is_of_adams_kind, thinned
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import cure
from evengrad.nouns import Cure, Evidence, Reading, Record

# The step of an element is lr * g / (g + eps): with g a tenth of eps it is an eleventh of the learning rate.
DROWNED = 0.1
FEWEST_READINGS = 3
MOST_OF = 0.5
NEARLY_ALWAYS = 0.9


@final
class EpsilonDrowns(AbstractRunRule):
    """Epsilon drowns: the gradients are far below the epsilon of the optimizer, so its steps are far below the rate.

    Sees:
        For optimizers of Adam's kind the root mean square of the gradient of each parameter, as clipping let it
        through, against epsilon. The rule speaks when from the start and at nine in ten of the steps it is below a
        tenth of epsilon for most parameters that get a gradient.

    Hurts:
        Adam divides the gradient by its own size plus epsilon. Below epsilon the division does nothing any more: steps
        shrink with the gradient, as in plain descent with a learning rate that was never meant for it.

    Cure:
        A smaller epsilon (SetOptimizer; 1e-8 is usual, 1e-15 has no harm in float32), a loss that is not scaled down,
        or whatever made the gradients so small.

    False alarms:
        Gradients that become small because a run has converged are not counted: it has to be so from the first steps.
        Told only in a run that does not learn.

    Source:
        Kingma and Ba 2015, arXiv 1412.6980, algorithm 1; Choi et al. 2019, arXiv 1910.05446, on tuning epsilon.
    """

    code: ClassVar[str] = "EG605"
    symptom: ClassVar[str] = "epsilon drowns the gradient"
    source: ClassVar[str] = "Kingma and Ba 2015, Adam, arXiv 1412.6980"
    family: ClassVar[str] = "epsilon"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Compare gradients and epsilon at the first steps and over the run."""
        setup = record.setup
        if setup is None or setup.eps is None or not 0.0 < setup.eps < float("inf"):
            return None
        if not is_of_adams_kind(setup.optimizer):
            return None
        readings = thinned([one for one in record.readings if len(one.grad_norms) == len(setup.numels)])
        found = [(one, _sizes(one, setup.numels)) for one in readings]
        found = [(one, sizes) for one, sizes in found if sizes]
        if len(found) < FEWEST_READINGS:
            return None
        drowned = [(one, median(sizes)) for one, sizes in found if _most_below(sizes, DROWNED * setup.eps)]
        at_start = len(drowned) >= FEWEST_READINGS and drowned[FEWEST_READINGS - 1][0] is found[FEWEST_READINGS - 1][0]
        if not at_start or len(drowned) < NEARLY_ALWAYS * len(found):
            return Sign(decades=0.0)
        size = median(size for _, size in drowned)
        return Sign(
            decades=min(WIDEST_DECADES, log10(setup.eps) - log10(size)),
            speaks=True,
            where=("optimizer",),
            severity="warning",
            message=(
                f"the gradients are {size:.1e} an element (median of parameters and steps), below the epsilon of "
                f"{setup.optimizer} ({setup.eps:.1e}): its steps are {size / setup.eps:.1g} of the learning rate"
            ),
            evidence=(
                Evidence(name="gradient rms, median of the parameters", value=size),
                Evidence(name="epsilon", value=setup.eps),
            ),
            when=(drowned[0][0].step, drowned[-1][0].step),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose torch's default."""
        return (cure("SetOptimizer", eps=1e-8),)


def _sizes(reading: Reading, numels: tuple[int, ...]) -> list[float]:
    """Give the root mean square of each gradient that is there, as the optimizer gets it."""
    pairs = zip(reading.grad_norms, numels, strict=True)
    sizes = [norm * reading.scale / sqrt(count) for norm, count in pairs if count > 0]
    return [size for size in sizes if size > 0.0 and isfinite(size)]


def _most_below(sizes: list[float], limit: float) -> bool:
    return sum(size < limit for size in sizes) > MOST_OF * len(sizes)
