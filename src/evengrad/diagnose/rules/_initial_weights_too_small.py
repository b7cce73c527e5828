"""EG402: initial weights with which the signal shrinks from layer to layer."""

from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._gains import Depth, Gain, depth_of, gains, is_normalised, untrained
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import FRESH_WEIGHTS, NORMS_AND_SHORTCUTS
from evengrad.nouns import Cure, Evidence, Reading, Record

# Of the networks of docs/decisions/0005 whose gradient fell by two decades or more over their depth one in twenty
# reached 85 %.
THRESHOLD_DECADES = 2.0


@final
class InitialWeightsTooSmall(AbstractRule):
    """Initial weights too small: before the first step the signal shrinks from layer to layer.

    Sees:
        The gain of each weight matrix, its rms times the root of its inputs: what a signal of independent parts grows
        by. He's initialisation has 1.41, what a rectifier needs to keep it; Glorot's 1; torch's default 0.58. The rule
        speaks when the gains of all layers multiply to a hundredth or less and the activations do shrink by that
        much, or the gradient does on its way back.

    Hurts:
        The signal shrinks as a power of the depth. What reaches the last layer is its biases and not the input, and
        what reaches the first layer of the gradient is nothing.

    Cure:
        Weights scaled for the non-linearity and the number of inputs (Reinitialize), normalisation (AddNormalization).

    False alarms:
        Only untrained weights are judged, at step 0. A model with a normalisation is not: it takes every scale back.
        Weights that are zero are left out. One layer alone is another rule (EG403). A non-linearity that loses the
        signal by itself, as the sigmoid does, is not the weights' fault. Told only in a run that does not learn.

    Source:
        He et al. 2015, arXiv 1502.01852, equations 10 and 14; Mishkin and Matas 2016, arXiv 1511.06422.
    """

    code: ClassVar[str] = "EG402"
    symptom: ClassVar[str] = "initial weights too small"
    source: ClassVar[str] = "He et al. 2015, Delving Deep into Rectifiers, arXiv 1502.01852"
    family: ClassVar[str] = "init-small"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the first reading of a run that starts at step 0."""
        path = gains(reading) if untrained(reading, record) else ()
        depth = depth_of(path, reading)
        if depth is None:
            return None
        if is_normalised(reading):
            return Sign(decades=0.0)
        shrinks = min(-depth.predicted, _shown(depth))
        small = [one for one in path if one.decades <= depth.predicted / len(path) / 2 < 0.0]
        if shrinks < THRESHOLD_DECADES or 2 * len(small) < len(path):
            return Sign(decades=max(shrinks, 0.0))
        middle = median(one.gain for one in small)
        return Sign(
            decades=shrinks,
            speaks=True,
            where=tuple(one.name for one in small),
            message=(
                f"before the first step {len(small)} of {len(path)} weights have a gain of {middle:.2g} (median), "
                f"where {1 / small[0].keeps:.2g} keeps the signal: over the depth it loses {-depth.predicted:.1f} "
                f"decades"
            ),
            evidence=_evidence(path, middle),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, then normalisation."""
        return (*FRESH_WEIGHTS, *NORMS_AND_SHORTCUTS)


def _shown(depth: Depth) -> float:
    """How much the signal shrinks, forwards or backwards; forwards biases may hold it up."""
    backward = depth.backward if depth.backward is not None else -WIDEST_DECADES
    return max(-depth.forward, backward)


def _evidence(path: tuple[Gain, ...], middle: float) -> tuple[Evidence, ...]:
    first, last = path[0], path[-1]
    return (
        Evidence(name="gain of the weights, median", value=middle),
        Evidence(name=f"activation rms of {last.name}", value=last.activation_rms),
        Evidence(name=f"gradient norm at the output of {first.name}", value=first.grad_norm or 0.0),
        Evidence(name=f"gradient norm at the output of {last.name}", value=last.grad_norm or 0.0),
    )
