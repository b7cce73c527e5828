"""EG105: activations grow over depth where EG102 does not judge: up to an overflow, and through what has no weights."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._chains import before, chains
from evengrad.diagnose._profile import Stop, decades_between, weighted_layers
from evengrad.diagnose._proposals import NORMS_AND_SHORTCUTS, cure
from evengrad.diagnose.rules._exploding_with_depth import FEWEST_LAYERS, THRESHOLD_DECADES, forward_growth
from evengrad.nouns import Cure, Evidence, Reading, Record

# The growth itself is judged as EG102 does, with its threshold and for its reason. In front of an overflow fewer layers
# will do: there the harm is certain, and only its way is looked for.
FEWEST_BEFORE_AN_OVERFLOW = 2
OVERFLOW = 1e38  # what a module that is not finite has reached, whatever its dtype: the end of float32


@final
class ActivationDrift(AbstractRule):
    """Activation drift: the activations grow over depth until they overflow, or outside of the weighted layers.

    Sees:
        The root mean square of the activations of all layers in the order of the forward pass. Where a module is not
        finite, the layers up to there: the rule speaks when the weights are finite and the activations have grown by
        1000 times (3 decades) over at least two layers in front of it, and so says that the overflow is the end of a
        growth over depth. In a finite forward it speaks when all layers together grow by as much and the weighted
        ones alone, which EG102 judges, do not show it.

    Hurts:
        Each layer multiplies what the one before has made. In residual networks without normalisation the gradient
        may be carried all the same, but the output, the loss and every step are too large, and float16 overflows
        first.

    Cure:
        Weights scaled for the non-linearity (Reinitialize), normalisation (AddNormalization), branches that are
        scaled down with depth, a bounded non-linearity instead of an exponential (SwapActivation).

    False alarms:
        Sums over positions and attention scores are large without harm; so it is told only in a run that another rule
        has found sick. Growth of less than 3 decades is not told.

    Source:
        He et al. 2015, arXiv 1502.01852, section 2.2; Zhang, Dauphin and Ma 2019, Fixup, arXiv 1901.09321.
    """

    code: ClassVar[str] = "EG105"
    symptom: ClassVar[str] = "activation drift"
    source: ClassVar[str] = "Zhang, Dauphin and Ma 2019, Fixup Initialization, arXiv 1901.09321"
    family: ClassVar[str] = "exploding-depth"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the growth up to the first module that is not finite, or over all layers."""
        bad = next((index for index, layer in enumerate(reading.layers) if not layer.output_finite), None)
        path = tuple(
            Stop(name=layer.name, grad_norm=0.0, activation_rms=layer.activation_rms)
            for layer in (reading.layers if bad is None else before(reading.layers, bad))
            if layer.name != "(model)" and layer.activation_rms > 0.0
        )
        if bad is not None:
            started = record.readings[0] if record.readings else reading
            return None if _told_by_eg102(started) else _before_an_overflow(reading, bad, path)
        if len(path) < FEWEST_LAYERS or _told_by_eg102(reading):
            return None
        growth, start, end = forward_growth(path)
        if growth < THRESHOLD_DECADES:
            return Sign(decades=max(growth, 0.0))
        return _told(growth, start, end, path)

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, normalisation, a bounded non-linearity."""
        return (cure("Reinitialize"), cure("SwapActivation", to="tanh"), *NORMS_AND_SHORTCUTS)


def _told_by_eg102(reading: Reading) -> bool:
    if not all(layer.output_finite for layer in reading.layers):
        return False
    paths = (weighted_layers(chain) for chain in chains(reading.layers))
    return any(len(path) >= FEWEST_LAYERS and forward_growth(path)[0] >= THRESHOLD_DECADES for path in paths)


def _before_an_overflow(reading: Reading, bad: int, path: tuple[Stop, ...]) -> Sign | None:
    """Judge what leads up to a module that makes something not finite of a finite input with finite weights."""
    layer = reading.layers[bad]
    weights_finite = layer.weight_norm is None or layer.weight_norm < float("inf")
    if not layer.input_finite or not weights_finite or len(path) < FEWEST_BEFORE_AN_OVERFLOW:
        return None
    start = max(path[: max(len(path) // 4, 1)], key=lambda stop: stop.activation_rms)
    largest = max(path, key=lambda stop: stop.activation_rms)
    growth = decades_between(start.activation_rms, max(largest.activation_rms, _size_at(reading, bad)))
    if growth < THRESHOLD_DECADES:
        return Sign(decades=max(growth, 0.0))
    end = Stop(name=layer.name, grad_norm=0.0, activation_rms=OVERFLOW)
    return _told(growth, start, end, (*path, end))


def _size_at(reading: Reading, bad: int) -> float:
    """The largest finite number that the module itself has made."""
    return reading.layers[bad].activation_absmax


def _told(growth: float, start: Stop, end: Stop, path: tuple[Stop, ...]) -> Sign:
    names = [stop.name for stop in path]
    first, last = names.index(start.name), len(names) - 1 - names[::-1].index(end.name)
    count = max(last - first, 1)
    return Sign(
        decades=growth,
        speaks=True,
        where=tuple(names[first : last + 1]),
        message=(
            f"the activations grow by {growth:.1f} decades from `{start.name}` ({start.activation_rms:.1e}) to "
            f"`{end.name}`{' and overflow there' if end.activation_rms >= OVERFLOW else f' ({end.activation_rms:.1e})'}"
            f", {growth / count:.2f} per layer"
        ),
        evidence=tuple(
            Evidence(name=f"activation rms of {stop.name}", value=stop.activation_rms)
            for stop in (start, end)
            if stop.activation_rms < OVERFLOW
        ),
    )
