"""EG401: initial weights with which the signal grows from layer to layer or saturates."""

from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._gains import Gain, depth_of, gains, is_normalised, untrained
from evengrad.diagnose._proposals import FRESH_WEIGHTS, NORMS_AND_SHORTCUTS
from evengrad.nouns import Cure, Evidence, Reading, Record

# Of the networks of docs/decisions/0005 whose signal grew by two decades over their depth none reached 85 %.
THRESHOLD_DECADES = 2.0
# The gain at which half of the units are beyond 95 % of their slope, for inputs of rms 1: the point of 95 % over 0.674,
# the median magnitude of a normal number. Below it a saturated unit is not the weights' fault.
SATURATING_GAIN = {"tanh": 3.2, "sigmoid": 6.5, "softsign": 5.1, "hardtanh": 1.5, "hardsigmoid": 4.5}
SATURATED_FRAC = 0.5


@final
class InitialWeightsTooLarge(AbstractRule):
    """Initial weights too large: before the first step the signal grows from layer to layer, or saturates.

    Sees:
        The gain of each weight matrix, its rms times the root of its inputs: what a signal of independent parts grows
        by. He's initialisation has 1.41, what a rectifier needs to keep it; Glorot's 1; torch's default 0.58. The rule
        speaks when the gains of all layers multiply to a hundredfold or more and the activations do grow a
        hundredfold; or when half of the outputs of most saturating layers are saturated, at gains that bring that
        about.

    Hurts:
        The signal grows as a power of the depth, and the gradient on its way back as well: outputs, loss and steps are
        far too large. Units that saturate are held there.

    Cure:
        Weights scaled for the non-linearity and the number of inputs (Reinitialize), normalisation (AddNormalization).

    False alarms:
        Only untrained weights are judged, at step 0. A model with a normalisation is not: it takes every scale back.
        One layer alone is another rule (EG403). Told only in a run that does not learn.

    Source:
        He et al. 2015, arXiv 1502.01852, equations 10 and 14; Glorot and Bengio 2010, section 4.2.
    """

    code: ClassVar[str] = "EG401"
    symptom: ClassVar[str] = "initial weights too large"
    source: ClassVar[str] = "He et al. 2015, Delving Deep into Rectifiers, arXiv 1502.01852"
    family: ClassVar[str] = "init-large"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the first reading of a run that starts at step 0."""
        path = gains(reading) if untrained(reading, record) else ()
        depth = depth_of(path, reading)
        if depth is None:
            return None
        if is_normalised(reading):
            return Sign(decades=0.0)
        large = [one for one in path if one.decades >= depth.predicted / len(path) / 2 > 0.0]
        grows = min(depth.predicted, depth.forward)
        if grows >= THRESHOLD_DECADES and 2 * len(large) >= len(path):
            return _told(large, path, grows, f"the activations grow by {depth.forward:.1f} decades")
        saturating = _saturated(path)
        if saturating:
            return _told(saturating, path, max(grows, 1.0), f"{len(saturating)} layers start saturated")
        return Sign(decades=max(grows, 0.0))

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, then normalisation."""
        return (*FRESH_WEIGHTS, *NORMS_AND_SHORTCUTS)


def _saturated(path: tuple[Gain, ...]) -> list[Gain]:
    """List the layers whose weights saturate what comes behind; empty unless most saturating layers are so."""
    saturating = [one for one in path[:-1] if one.saturated_frac is not None and one.nonlinearity in SATURATING_GAIN]
    found = [
        one
        for one in saturating
        if (one.saturated_frac or 0.0) >= SATURATED_FRAC and one.gain >= SATURATING_GAIN[one.nonlinearity or ""]
    ]
    return found if 2 * len(found) > len(saturating) else []


def _told(found: list[Gain], path: tuple[Gain, ...], decades: float, what: str) -> Sign:
    middle = median(one.gain for one in found)
    return Sign(
        decades=decades,
        speaks=True,
        where=tuple(one.name for one in found),
        message=(
            f"before the first step {len(found)} of {len(path)} weights have a gain of {middle:.2g} (median), where "
            f"{1 / found[0].keeps:.2g} keeps the signal, and {what}"
        ),
        evidence=(
            Evidence(name="gain of the weights, median", value=middle),
            Evidence(name=f"activation rms of {path[0].name}", value=path[0].activation_rms),
            Evidence(name=f"activation rms of {path[-1].name}", value=path[-1].activation_rms),
        ),
    )
