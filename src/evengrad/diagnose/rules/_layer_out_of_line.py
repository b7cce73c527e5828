"""EG403: one layer whose weights are of another scale than those of its like."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
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
# The signal has to show it: by a decade at least beyond what usual layers do, and still behind the next layer.
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
        those agree among themselves, and the signal shows it: the activations behind it are ten times larger or smaller
        than usual layers would make them, or saturate, or the gradient in front of it is.

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
        path = gains(reading) if untrained(reading, record) else ()
        if len(path) <= FEWEST_OTHERS:
            return None
        found = [(abs(away), place, away) for place, away in _aways(path)]
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


def _aways(path: Sequence[Gain]) -> Iterator[tuple[int, float]]:
    """Measure how far each layer is from the others of its kind, in decades, where those agree."""
    kinds: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for place, layer in enumerate(path):
        kinds[layer.kind].append((log10(layer.gain), place))
    for layers in kinds.values():
        layers.sort()
        logs = [log for log, _ in layers]
        for at, (log, place) in enumerate(layers):
            others = logs[:at] + logs[at + 1 :]
            if len(others) >= FEWEST_OTHERS and others[-1] - others[0] <= MOST_SPREAD_DECADES:
                yield place, log - (others[len(others) // 2] + others[(len(others) - 1) // 2]) / 2


def _shows(path: Sequence[Gain], place: int, away: float, reading: Reading) -> bool:
    """Tell whether the signal has jumped the way the weights of a layer say, and is not taken back."""
    layer = path[place]
    if layer.normalised or (place == len(path) - 1 and away < 0.0):
        return False
    if away > 0.0 and (layer.saturated_frac or 0.0) >= SATURATED_FRAC:
        return True
    jumps = (_forward(path, place, reading), _backward(path, place))
    return any(jump is not None and (jump if away > 0.0 else -jump) >= SHOWN_DECADES for jump in jumps)


def _forward(path: Sequence[Gain], place: int, reading: Reading) -> float | None:
    """Growth of the activations from before a layer to behind the next one, beyond what two usual layers make."""
    sizes = [input_rms(reading) or 0.0, *(one.activation_rms for one in path)]
    end = min(place + 2, len(path))
    grown = _growth(sizes[place], sizes[end])
    others = [_growth(sizes[at], sizes[at + 1]) for at in range(1, len(path)) if not place <= at < end]
    known = [one for one in others if one is not None]
    return None if grown is None or not known else grown - (end - place) * median(known)


def _backward(path: Sequence[Gain], place: int) -> float | None:
    """Growth of the gradient from a layer to the best-reached one before it, beyond what a usual layer makes.

    Biases hide a small layer from the activations, never from the gradient. A branch is not the way: where the layer
    stands in one, the gradient reaches earlier layers beside it.
    """
    norms = [one.grad_norm or 0.0 for one in path]
    grown = _growth(norms[place], max(norms[:place], default=0.0))
    others = [_growth(norms[at], norms[at - 1]) for at in range(1, len(path)) if at != place]
    known = [one for one in others if one is not None]
    return None if grown is None or not known else grown - median(known)


def _growth(before: float, after: float) -> float | None:
    if not before > 0.0 or not after > 0.0:
        return None
    return log10(after / before) if after < float("inf") and before < float("inf") else WIDEST_DECADES
