"""EG102: signal or gradient grows from layer to layer."""

from collections.abc import Callable
from itertools import pairwise
from math import ceil
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._chains import Chain, chains, worst
from evengrad.diagnose._profile import Stop, decades_between, finite_readings, stops, weighted_layers
from evengrad.diagnose._proposals import CLIPPING, FRESH_WEIGHTS, NORMS_AND_SHORTCUTS, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, Reading, Record

# As for EG101 and on the same measurement: networks that grow by 3 decades or more over their depth do not train at the
# learning rates that suit their healthy twins; docs/decisions/0005.
THRESHOLD_DECADES = 3.0
FEWEST_LAYERS = 4


@final
class ExplodingWithDepth(AbstractRule):
    """Exploding with depth: the signal grows from layer to layer, forwards or backwards.

    Sees:
        The root mean square of the activations of the weighted layers in the order of the forward pass, and the norm
        of the loss gradient at their outputs in the order of the backward pass. The rule speaks when either grows by
        1000 times (3 decades) over the network and two neighbouring layers share in it. The activations are judged
        whatever gradient arrived: a network that explodes into a saturated loss gets none at all.

    Hurts:
        One learning rate cannot fit layers whose gradients differ a thousandfold: what moves the last layer throws
        the first one away. The loss starts far too high, the first steps make it larger, and after a few of them it
        is NaN.

    Cure:
        Weights scaled for the non-linearity (Reinitialize), normalisation between the layers (AddNormalization).
        Clipping the gradients stops the blow-up but not the cause: the first steps then only undo the weights.

    False alarms:
        Networks of fewer than four weighted layers are not judged. Layers are compared along one way of the graph only:
        of two heads, two towers or two calls of the model each is judged by itself, and where ways part, what lies
        before belongs to that which brings the larger gradient. Large inputs alone do not count: growth is measured
        from the first quarter of them on. What small embeddings gain in the first normalisation stays below the
        threshold, and a single layer out of line is not growth with depth.

    Source:
        Bengio, Simard and Frasconi 1994, doi:10.1109/72.279181; He et al. 2015, arXiv 1502.01852, section 2.2.
    """

    code: ClassVar[str] = "EG102"
    symptom: ClassVar[str] = "exploding with depth"
    source: ClassVar[str] = "He et al. 2015, Delving Deep into Rectifiers, arXiv 1502.01852"
    family: ClassVar[str] = "exploding-depth"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Take the larger of the forward and the backward growth, of the worst chain."""
        if not finite_readings(reading.layers):
            return None
        return worst(map(_judged, chains(reading.layers)))

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights first, then functions, then norms, then what only bounds the steps."""
        return (
            *FRESH_WEIGHTS,
            cure("SwapActivation", to="tanh"),
            cure("SwapActivation", to="selu"),
            *NORMS_AND_SHORTCUTS,
            *CLIPPING,
            *SMALLER_STEPS[:1],
        )


def _judged(chain: Chain) -> Sign | None:
    path, reached = weighted_layers(chain), stops(chain)
    if len(path) < FEWEST_LAYERS:
        return None
    forward = forward_growth(path)
    if len(reached) < FEWEST_LAYERS:
        # Half a judgement: it can accuse, but not acquit.
        return _told("activations", path, forward) if forward[0] >= THRESHOLD_DECADES else None
    backward = _backward(reached)
    growth = max(forward[0], backward[0])
    if growth < THRESHOLD_DECADES:
        return Sign(decades=max(growth, 0.0))
    if forward[0] >= backward[0]:
        return _told("activations", path, forward)
    return _told("gradient", reached, backward)


def _told(what: str, path: tuple[Stop, ...], growth: tuple[float, Stop, Stop]) -> Sign:
    """Tell a growth along a path with its numbers."""
    decades, start, end = growth
    if what == "activations":
        verb, low, high = "grow", start.activation_rms, end.activation_rms
    else:
        verb, low, high = "grows on its way back", start.grad_norm, end.grad_norm
    names = tuple(stop.name for stop in path)
    first, last = sorted((names.index(start.name), names.index(end.name)))
    return Sign(
        decades=decades,
        speaks=True,
        where=names[first : last + 1],
        message=(
            f"the {what} {verb} by {decades:.1f} decades from `{start.name}` ({low:.1e}) to `{end.name}` "
            f"({high:.1e}), {decades / max(last - first, 1):.2f} per layer"
        ),
        evidence=(
            Evidence(name=f"activation rms of {path[0].name}", value=path[0].activation_rms),
            Evidence(name=f"activation rms of {path[-1].name}", value=path[-1].activation_rms),
            Evidence(name=f"gradient norm at the output of {path[-1].name}", value=path[-1].grad_norm),
            Evidence(name=f"gradient norm at the output of {path[0].name}", value=path[0].grad_norm),
        ),
    )


def forward_growth(path: tuple[Stop, ...]) -> tuple[float, Stop, Stop]:
    """Measure the growth of the activations from the largest of the first quarter on.

    Not from the smallest: a signal that shrank and is made up again by biases has vanished, not exploded.
    """
    start = max(path[: ceil(len(path) / 4)], key=lambda stop: stop.activation_rms)
    return _growth(path, start, lambda stop: stop.activation_rms)


def _backward(path: tuple[Stop, ...]) -> tuple[float, Stop, Stop]:
    """Measure the growth of the gradient from the layers next to the loss back to an earlier one."""
    return _growth(path, max(path[-3:], key=lambda stop: stop.grad_norm), lambda stop: stop.grad_norm)


def _growth(path: tuple[Stop, ...], start: Stop, size: Callable[[Stop], float]) -> tuple[float, Stop, Stop]:
    """Find the largest growth in decades, its start and its end, that a neighbour of the end shares at least by half.

    One layer out of line is not growth with depth: a class token that starts at zero, for one, gets a gradient that its
    normalisation has multiplied by thousands.
    """
    if size(start) == 0.0:
        return 0.0, start, start
    above = [decades_between(size(start), size(stop)) for stop in path]
    best, where = 0.0, -1
    for index, (one, two) in enumerate(pairwise(above)):
        shared = min(max(one, two), 2 * min(one, two))
        if shared > best:
            best, where = shared, index if one >= two else index + 1
    return best, start, start if where < 0 else path[where]
