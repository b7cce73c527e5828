"""EG403: one layer whose weights are of another scale than those of its like."""

from collections.abc import Sequence
from math import log10
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._gains import Gain, gains, input_rms, untrained
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.nouns import Cure, Evidence, Reading, Record

# The usual initialisations of one model differ by less than a decade (0.16 for N(0, 0.02) over 64 inputs to 1.41 for
# He): a layer that is 1.5 decades from the others was drawn by another hand, or by the same one with a misplaced point.
THRESHOLD_DECADES = 1.5
# The signal has to show it: by a decade at least, and still behind the next layers.
SHOWN_DECADES = 1.0
# The others have to be in line among themselves, or nothing is out of it.
MOST_SPREAD_DECADES = 1.0
FEWEST_OTHERS = 3
SATURATED_FRAC = 0.5


@final
class LayerOutOfLine(AbstractRule):
    """Layer out of line: the weights of one layer are of another scale than those of its like, and the signal jumps.

    Sees:
        The gain of each weight matrix before the first step, its rms times the root of its inputs, among the layers of
        its kind. The rule speaks of one that is 30 times (1.5 decades) above or below the median of the others, while
        those agree among themselves and the activations behind it are ten times larger or smaller than before it, or
        saturate.

    Hurts:
        Everything behind works at a scale that it was not drawn for, and everything before gets a gradient that is as
        much too large or too small.

    Cure:
        The weights of that layer drawn as the others are (Reinitialize).

    False alarms:
        What the next layers take back is not told: a normalisation, or a residual stream that the layer only adds to.
        Last layers that start small are usual, weights of zero are left out, and networks of fewer than four layers
        of a kind have nothing to compare. Told only in a run that does not learn.

    Source:
        Mishkin and Matas 2016, All you need is a good init, arXiv 1511.06422.
    """

    code: ClassVar[str] = "EG403"
    symptom: ClassVar[str] = "layer out of line"
    source: ClassVar[str] = "Mishkin and Matas 2016, All You Need Is a Good Init, arXiv 1511.06422"
    family: ClassVar[str] = "layer-out-of-line"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the first reading of a run that starts at step 0."""
        path = gains(reading)
        if not untrained(reading, record) or len(path) <= FEWEST_OTHERS:
            return None
        found = [(abs(away), place, away) for place in range(len(path)) if (away := _away(path, place)) is not None]
        if not found:
            return Sign(decades=0.0)
        size, place, away = max(found)
        if size < THRESHOLD_DECADES or not _shows(path, place, away, reading):
            return Sign(decades=size)
        layer = path[place]
        others = median(one.gain for one in path if one.kind == layer.kind and one is not layer)
        return Sign(
            decades=size,
            speaks=True,
            where=(layer.name,),
            message=(
                f"before the first step the weights of `{layer.name}` have a gain of {layer.gain:.2g}, those of the "
                f"other {layer.kind} layers {others:.2g} (median): {size:.1f} decades away"
            ),
            evidence=(
                Evidence(name=f"gain of {layer.name}", value=layer.gain),
                Evidence(name=f"gain of the other {layer.kind} layers, median", value=others),
                Evidence(name=f"activation rms of {layer.name}", value=layer.activation_rms),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, then normalisation."""
        return (
            Cure(treatment="Reinitialize"),
            Cure(treatment="Reinitialize", settings=(("data_driven", True),)),
            Cure(treatment="AddNormalization"),
        )


def _away(path: Sequence[Gain], place: int) -> float | None:
    """Measure how far a layer is from the others of its kind, in decades; None where those do not agree."""
    others = sorted(log10(one.gain) for at, one in enumerate(path) if at != place and one.kind == path[place].kind)
    if len(others) < FEWEST_OTHERS or others[-1] - others[0] > MOST_SPREAD_DECADES:
        return None
    return log10(path[place].gain) - median(others)


def _shows(path: Sequence[Gain], place: int, away: float, reading: Reading) -> bool:
    """Tell whether the signal behind a layer has jumped the way its weights say, and is not taken back."""
    layer, last = path[place], place == len(path) - 1
    if layer.normalised or (last and away < 0.0):
        return False
    if away > 0.0 and (layer.saturated_frac or 0.0) >= SATURATED_FRAC:
        return True
    before = median(one.activation_rms for one in path[:place]) if place else input_rms(reading)
    behind = layer.activation_rms if last else median(one.activation_rms for one in path[place + 1 :])
    if not before:
        return False
    if behind == float("inf"):
        return away > 0.0
    jump = log10(behind / before) if behind > 0.0 else -WIDEST_DECADES
    return jump >= SHOWN_DECADES if away > 0.0 else jump <= -SHOWN_DECADES
