"""EG301: rectifier units that are zero for every sample."""

from math import log10
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._proposals import NORMS_AND_SHORTCUTS, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

# A layer with a share d of dead units passes sqrt(1 - d) of a gradient norm: at 0.9 half a decade is lost in that one
# layer. In deep rectifier networks that train well, up to half of the units are dead on a batch; docs/decisions/0005.
THRESHOLD_FRAC = 0.9
# A healthy unit that is active for one sample in ten is still silent on 32 of them with a probability of 3 %.
FEWEST_OBSERVATIONS = 32
# A layer of this many units with a single living one passes one number on: all behind it sees one feature of the
# input, whatever share of it is dead. Narrower ones are meant so.
FEWEST_UNITS = 4
MOST_LIVING = 1
RECTIFIERS = frozenset({"relu", "relu6"})
ROUNDING_FRAC = 1e-6
MOST_DECADES = 7.2  # a layer that is dead altogether: as much as float32 resolves


@final
class DeadUnits(AbstractRule):
    """Dead units: rectifiers that are zero for every sample of the batch.

    Sees:
        For each ReLU (as a module or as a function) the share of units whose output is zero at every sample and
        position, when there are at least 32 of those. The rule speaks when nine in ten are dead: the layer then
        passes less than a third of the gradient, and a layer that is dead altogether passes none. Of a layer of four
        units or more in front of another one with weights in which a single unit lives, it says that all behind sees
        one number.

    Hurts:
        A dead unit has no slope, so no gradient reaches its weights and it stays dead. If all units of a layer are,
        the network's output does not depend on its input any more.

    Cure:
        Weights and biases that keep units near zero (Reinitialize), a rectifier with a slope on both sides
        (SwapActivation to leaky_relu or elu), normalisation before it (AddNormalization), a smaller learning rate if
        they died during training (ScaleLearningRate).

    False alarms:
        Sparse is not dead: a unit counts only if the whole batch leaves it at zero. Healthy networks measured up to
        half of their units dead on a batch, and the rule starts well above. A narrow layer with one living unit may be
        a branch beside others, or one feature may be all that is asked for: it is told only in a run that another rule
        has found sick, unless nine in ten of its units are dead.

    Source:
        Maas, Hannun and Ng 2013, Rectifier nonlinearities improve neural network acoustic models; Lu et al. 2019,
        arXiv 1903.06733.
    """

    code: ClassVar[str] = "EG301"
    symptom: ClassVar[str] = "dead units"
    source: ClassVar[str] = "Lu et al. 2019, Dying ReLU and Initialization: Theory and Numerical Examples"
    family: ClassVar[str] = "dead"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge every rectifier that was seen often enough."""
        judged = [
            layer
            for layer in reading.layers
            if layer.nonlinearity in RECTIFIERS and layer.observations >= FEWEST_OBSERVATIONS and layer.output_finite
        ]
        if not judged:
            return None
        worst = max(judged, key=lambda layer: layer.dead_frac)
        decades = lost_decades(worst.dead_frac)
        dead = [layer for layer in judged if reaches(layer.dead_frac, THRESHOLD_FRAC)]
        choked = [layer for layer in judged if layer not in dead and _chokes(layer, reading)]
        if not dead and not choked:
            return Sign(decades=decades)
        if not dead:
            return _told_of_a_choke(choked, decades)
        return Sign(
            decades=decades,
            speaks=True,
            where=tuple(layer.name for layer in judged if layer in dead or layer in choked),
            severity="critical" if worst.dead_frac == 1.0 else "warning",
            message=_message(worst, dead, len(judged)),
            evidence=(
                Evidence(name=f"dead units of {worst.name}", value=100 * worst.dead_frac, unit="%"),
                Evidence(name=f"units of {worst.name}", value=float(worst.units)),
                Evidence(name="observations of each unit", value=float(worst.observations)),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, a leaky rectifier, normalisation, smaller steps."""
        return (
            cure("Reinitialize"),
            cure("SwapActivation", to="leaky_relu"),
            cure("SwapActivation", to="elu"),
            cure("SwapActivation", to="tanh"),
            *NORMS_AND_SHORTCUTS,
            *SMALLER_STEPS[:1],
        )


def _chokes(layer: LayerReading, reading: Reading) -> bool:
    """Tell whether at most one of several units lives, in front of something with weights."""
    if layer.units < FEWEST_UNITS or round((1.0 - layer.dead_frac) * layer.units) > MOST_LIVING:
        return False
    at = next(index for index, one in enumerate(reading.layers) if one is layer)
    return any(one.weighted for one in reading.layers[at + 1 :])


def _told_of_a_choke(choked: list[LayerReading], decades: float) -> Sign:
    first = choked[0]
    return Sign(
        decades=decades,
        speaks=True,
        where=tuple(layer.name for layer in choked),
        severity="warning",
        message=(
            f"a single one of the {first.units} units of `{first.name}` is ever above zero in {first.observations} "
            f"observations: what is behind it sees one number of each sample"
        ),
        evidence=(
            Evidence(name=f"dead units of {first.name}", value=100 * first.dead_frac, unit="%"),
            Evidence(name=f"units of {first.name}", value=float(first.units)),
            Evidence(name="observations of each unit", value=float(first.observations)),
        ),
        only_if_sick=True,
    )


def reaches(frac: float, threshold: float) -> bool:
    """Tell whether a share reaches a threshold; shares are means in float32, where nine in ten may read 0.89999998.

    Example:
        >>> reaches(0.8999999762, 0.9), reaches(0.8999, 0.9)
        (True, False)
    """
    return frac >= threshold - ROUNDING_FRAC


def lost_decades(frac: float) -> float:
    """Decades of gradient norm that are lost when this share of units or elements has no slope.

    Example:
        >>> lost_decades(0.99)
        1.0
    """
    return MOST_DECADES if frac >= 1.0 else round(min(MOST_DECADES, -0.5 * log10(1.0 - frac)), 12) + 0.0


def _message(worst: LayerReading, dead: list[LayerReading], count: int) -> str:
    return (
        f"{worst.dead_frac:.0%} of the {worst.units} units of `{worst.name}` are zero for all {worst.observations} "
        f"observations; {len(dead)} of {count} rectifier layers have at least {THRESHOLD_FRAC:.0%} dead units"
    )
