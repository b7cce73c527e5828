"""The weighted layers in the order of the forward pass, as numbers that compare across layer sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

from evengrad.nouns import LayerReading

# Gradients below this are on their way to underflow in float32 (smallest normal number 1e-38): a zero further back is
# then the rest of the same shrinking and not a missing path.
NEARLY_NOTHING = 1e-30

# A symptom is never given more decades than float32 spans.
WIDEST_DECADES = 38.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """One weighted layer on the way: its name, and the norm of the gradient at its output."""

    name: str
    grad_norm: float
    activation_rms: float


def stops(layers: Sequence[LayerReading]) -> tuple[Stop, ...]:
    """List the weighted layers that a gradient reached, in the order of the forward pass.

    A gradient of exactly zero is kept only where the gradient was vanishing already in the layers behind it (then it
    is underflow); otherwise no path leads to that layer, as with a branch whose last layer starts at zero, and that
    is not a matter of depth.
    """
    weighted = [layer for layer in layers if layer.weighted and layer.grad_norm is not None]
    kept: list[Stop] = []
    behind = float("inf")
    for layer in reversed(weighted):
        size = layer.grad_norm or 0.0
        if size == 0.0 and behind > NEARLY_NOTHING:
            continue
        kept.append(Stop(name=layer.name, grad_norm=size, activation_rms=layer.activation_rms))
        behind = min(behind, size)
    return tuple(reversed(kept))


def weighted_layers(layers: Sequence[LayerReading]) -> tuple[Stop, ...]:
    """List all weighted layers in the order of the forward pass, whatever gradient reached them (0 where none did)."""
    return tuple(
        Stop(name=layer.name, grad_norm=layer.grad_norm or 0.0, activation_rms=layer.activation_rms)
        for layer in layers
        if layer.weighted
    )


def by_module(path: tuple[Stop, ...]) -> tuple[Stop, ...]:
    """Join the calls of each module at the place of the first: its weights learn from the call that is reached best."""
    joined: dict[str, Stop] = {}
    for stop in path:
        name = without_call(stop.name)
        known = joined.get(name, stop)
        joined[name] = Stop(
            name=name,
            grad_norm=max(known.grad_norm, stop.grad_norm),
            activation_rms=max(known.activation_rms, stop.activation_rms),
        )
    return tuple(joined.values())


def best_of_modules(layers: Sequence[LayerReading]) -> dict[str, float]:
    """Give the largest gradient norm at a call of each module."""
    best: dict[str, float] = {}
    for layer in layers:
        name = without_call(layer.name)
        best[name] = max(best.get(name, 0.0), layer.grad_norm or 0.0)
    return best


def without_call(name: str) -> str:
    """Name the module of a call.

    Example:
        >>> without_call("encoder.cell#30")
        'encoder.cell'
    """
    module, mark, number = name.rpartition("#")
    return module if mark and number.isdigit() else name


def decades_between(small: float, large: float) -> float:
    """Powers of ten from `small` up to `large`, bounded by what float32 spans.

    Example:
        >>> decades_between(1e-6, 1e-2)
        4.0
        >>> decades_between(0.0, 1.0)
        38.5
    """
    if large <= 0.0:
        return 0.0
    if small <= 0.0:
        return WIDEST_DECADES
    return max(-WIDEST_DECADES, min(WIDEST_DECADES, log10(large) - log10(small)))


def finite_readings(layers: tuple[LayerReading, ...]) -> bool:
    """Tell whether the forward was finite everywhere: only then does a profile mean anything."""
    return all(layer.output_finite and layer.grad_finite for layer in layers)
