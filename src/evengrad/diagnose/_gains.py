"""The weighted layers with the gain of their weights, and the signal that went through them."""

from dataclasses import dataclass
from itertools import pairwise
from math import hypot, isfinite, log10, sqrt
from statistics import median

from evengrad.diagnose._movement import gain_of
from evengrad.diagnose._profile import WIDEST_DECADES, decades_between, without_call
from evengrad.nouns import ParameterReading, Reading, Record

# Share of the second moment that is left behind a rectifier of a symmetric input: half of it, so that the signal's rms
# is 0.71 of what it was (He et al. 2015, equation 10). Smooth ones are near it. All others are counted as 1.
RECTIFIER = sqrt(0.5)
RECTIFIERS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "gelu", "silu", "mish", "hardswish", "softplus"}
)
# Recurrent weights act along time and not along depth.
RECURRENT = ("RNN", "LSTM", "GRU")
# A parametrization makes the weight from others, whose own scale means nothing.
PARAMETRIZED = ("parametrizations.", ".weight_g", ".weight_v", ".weight_orig")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A weighted layer that the signal goes through.

    Args:
        name: The module.
        kind: Its class.
        gain: How much a signal of independent parts grows in it.
        keeps: What the non-linearity behind it leaves of the signal, when it neither saturates nor dies.
        nonlinearity: That non-linearity; None for none.
        saturated_frac: The saturated share of its outputs; None where it does not saturate.
        activation_rms: Of the output of the layer; infinite where not all of it is finite.
        grad_norm: Norm of the gradient there; None where none arrived.
        normalised: Whether a normalisation stands between it and the next weighted layer.
    """

    name: str
    kind: str
    gain: float
    keeps: float
    nonlinearity: str | None
    saturated_frac: float | None
    activation_rms: float
    grad_norm: float | None
    normalised: bool

    @property
    def decades(self) -> float:
        """What the signal gains in this layer and its non-linearity, in decades."""
        return log10(self.gain * self.keeps)


def untrained(reading: Reading, record: Record) -> bool:
    """Tell whether a reading is of the weights before their first step."""
    return all(one.step == 0 for one in (reading, *record.readings[:1]))


def gains(reading: Reading) -> tuple[Gain, ...]:
    """List the layers with one weight matrix that is not zero, in the order of the forward pass."""
    weights = _matrix_of_each_module(reading)
    seen: set[str] = set()
    found: list[Gain] = []
    for place, layer in enumerate(reading.layers):
        name = without_call(layer.name)
        weight = weights.get(name)
        if weight is None or name in seen or not layer.weighted or layer.kind.startswith(RECURRENT):
            continue
        seen.add(name)
        nonlinearity, saturated, normalised = _behind(reading, place)
        found.append(
            Gain(
                name=name,
                kind=layer.kind,
                gain=gain_of(weight),
                keeps=RECTIFIER if nonlinearity in RECTIFIERS else 1.0,
                nonlinearity=nonlinearity,
                saturated_frac=saturated,
                activation_rms=layer.activation_rms if layer.output_finite else float("inf"),
                grad_norm=layer.grad_norm,
                normalised=normalised,
            )
        )
    return tuple(found)


def is_normalised(reading: Reading) -> bool:
    """Tell whether a normalisation is anywhere in the model: the scale of the weights before it is then taken back."""
    return any(is_normalisation(layer.kind) for layer in reading.layers)


def is_normalisation(kind: str) -> bool:
    """Tell a normalisation by its class.

    Example:
        >>> [is_normalisation(kind) for kind in ("BatchNorm2d", "LlamaRMSNorm", "Linear")]
        [True, True, False]
    """
    return "norm" in kind.lower()


def input_rms(reading: Reading) -> float | None:
    """Root mean square of the first floating-point input; None where it is not known or the input is of ids."""
    if reading.ends is None or not reading.ends.inputs:
        return None
    first = reading.ends.inputs[0]
    rms = hypot(first.mean, first.std)
    return rms if first.dtype.startswith(("float", "bfloat")) and 0.0 < rms < float("inf") else None


def _matrix_of_each_module(reading: Reading) -> dict[str, ParameterReading]:
    matrices: dict[str, list[ParameterReading]] = {}
    for weight in reading.weights:
        if weight.fan_in > 0 and not any(mark in weight.name for mark in PARAMETRIZED):
            module = weight.name.rpartition(".")[0] or "(model)"
            matrices.setdefault(module, []).append(weight)
    return {
        name: found[0] for name, found in matrices.items() if len(found) == 1 and 0.0 < gain_of(found[0]) < float("inf")
    }


def _behind(reading: Reading, place: int) -> tuple[str | None, float | None, bool]:
    """Non-linearity, its saturated share, and whether a normalisation comes, before the next weighted layer."""
    nonlinearity, saturated, normalised = None, None, False
    for layer in reading.layers[place + 1 :]:
        if layer.weighted:
            break
        normalised = normalised or is_normalisation(layer.kind)
        if layer.nonlinearity is not None and nonlinearity is None:
            nonlinearity, saturated = layer.nonlinearity, layer.saturated_frac
    return nonlinearity, saturated, normalised


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """What the weights say that the signal gains over all layers, and what it does gain; in decades.

    Args:
        predicted: The gains of all weights and non-linearities together, the one farthest from the middle left out and
            counted as the middle: a single layer is not depth.
        forward: Growth of the activations, from the input (or the first layer) to the last layer; infinite on overflow.
        backward: Growth of the gradient from the first layer to those next to the loss: negative where it explodes;
            None where it is not known.
    """

    predicted: float
    forward: float
    backward: float | None


def depth_of(path: tuple[Gain, ...], reading: Reading) -> Depth | None:
    """Compare what the weights predict with what the signal does; None for fewer than two layers."""
    if len(path) < 2:
        return None
    start = input_rms(reading)
    steps = [one.decades for one in path[:-1]] + [log10(path[-1].gain)]
    if start is None:
        start = path[0].activation_rms
        steps[0] -= log10(path[0].gain)
    middle = median(steps)
    predicted = sum(steps) + middle - max(steps, key=lambda step: abs(step - middle)) if len(steps) > 2 else sum(steps)
    return Depth(predicted=predicted, forward=_decades(start, path[-1].activation_rms), backward=_backward(path))


def _backward(path: tuple[Gain, ...]) -> float | None:
    """Measure the gradient's growth from the first layer on, to those next to the loss.

    A single step is not depth: branches that are gated lose at the gate what the last layer behind them has, each of
    them as much and none more than the next one. So what the largest step has beyond the middle one is left out.
    """
    norms = [one.grad_norm for one in path if one.grad_norm is not None]
    at_loss = max(norms[-3:], default=0.0)
    if len(norms) < len(path) or at_loss <= 0.0:
        return None
    end = max(range(len(norms) - len(norms[-3:]), len(norms)), key=norms.__getitem__)
    total = _decades(norms[0], at_loss)
    steps = [_decades(one, two) for one, two in pairwise(norms[: end + 1])]
    if len(steps) < 3 or total <= 0.0:
        return total
    return total - max(max(steps) - max(median(steps), 0.0), 0.0)


def _decades(before: float, after: float) -> float:
    if not isfinite(after):
        return WIDEST_DECADES
    return decades_between(before, after) if after > 0.0 else -WIDEST_DECADES
