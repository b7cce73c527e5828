"""Statistics of one tensor as a short vector on its device: nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A saturating non-linearity is called saturated where it keeps less than this share of its largest slope: a twentieth,
# so that one such layer costs the gradient more than a decade.
SLOPE_LEFT = 0.05

# Relative slope (1 at the steepest point) from the output alone.
RELATIVE_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda y: 4 * y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "softsign": lambda y: (1 - y.abs()) ** 2,
    "hardsigmoid": lambda y: ((y > 0) & (y < 1)).to(y.dtype),
    "hardtanh": lambda y: (y.abs() < 1).to(y.dtype),
}

ACTIVATION_FIELDS = (
    "output_finite",
    "activation_rms",
    "activation_mean",
    "activation_absmax",
    "zero_frac",
    "dead_frac",
    "saturated_frac",
)
GRADIENT_FIELDS = ("grad_finite", "grad_rms")


def precise(device: torch.device) -> torch.dtype:
    """Give the widest floating-point type that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Compute beside the run: without a graph, and in the precision of the numbers themselves."""
    if not torch.is_autocast_enabled(device.type):
        with torch.no_grad():
            yield
        return
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def wide(tensor: Tensor) -> Tensor:
    """Detach, take real parts and imaginary parts alike, and widen to at least float32."""
    tensor = real(tensor)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def real(tensor: Tensor) -> Tensor:
    """Detach, and take real parts and imaginary parts alike; of a sparse tensor the values."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def is_additive_mask(tensor: Tensor) -> Tensor:
    """Tell whether a tensor is an attention mask to be added to scores: nothing but zeros and minus infinities."""
    values = wide(tensor)
    return ((values == 0) | (values == float("-inf"))).all()


def _sized(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tell whether all is finite; root mean square, mean and largest magnitude of what is.

    Scaled by the largest, so that no square overflows.
    """
    if values.numel() == 0:
        nothing = values.new_zeros(())
        return nothing + 1.0, nothing, nothing, nothing
    finite, kind = torch.isfinite(values), precise(values.device)
    kept = torch.where(finite, values, 0.0)
    absmax = torch.linalg.vector_norm(kept, float("inf"))
    kept = kept / absmax.clamp_min(torch.finfo(values.dtype).tiny)
    count = finite.sum()
    once, largest = count.clamp_min(1), absmax.to(kind)
    rms = largest * torch.linalg.vector_norm(kept, dtype=kind) / once.sqrt()
    return count == values.numel(), rms, largest * kept.sum(dtype=kind) / once, absmax


def activation_vector(output: Tensor, *, unit_dim: int, nonlinearity: str | None) -> Tensor:
    """Measure an output tensor.

    Args:
        output: Any floating-point or complex shape.
        unit_dim: The dimension that counts units; the others are observations.
        nonlinearity: The saturating non-linearity that made it, if any.

    Returns:
        Vector in the order of `ACTIVATION_FIELDS`; the saturated fraction is NaN where nothing saturates.

    Cost: about nine passes over the output, on sampled steps only.
    """
    values = wide(output)
    if values.numel() == 0:
        return values.new_tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, float("nan")], dtype=precise(values.device))
    zero = values == 0
    observation_dims = [dim for dim in range(values.ndim) if dim != unit_dim % max(values.ndim, 1)]
    dead = zero.all(dim=tuple(observation_dims)) if observation_dims else zero
    saturated = _saturated_frac(values, nonlinearity)
    parts = [*_sized(values), _share(zero), _share(dead), saturated]
    return torch.stack([part.to(precise(values.device)) for part in parts])


def _saturated_frac(values: Tensor, nonlinearity: str | None) -> Tensor:
    slope = RELATIVE_SLOPES.get(nonlinearity or "")
    if slope is None:
        return values.new_full((), float("nan"))
    return _share(slope(values) < SLOPE_LEFT)


def _share(marks: Tensor) -> Tensor:
    """Count in integers: a float32 mean of ten million is off in its fifth digit."""
    return torch.count_nonzero(marks).to(precise(marks.device)) / marks.numel()


def gradient_vector(gradient: Tensor) -> Tensor:
    """Measure a gradient: a vector in the order of `GRADIENT_FIELDS`."""
    values = wide(gradient)
    parts = _sized(values)[:2]
    return torch.stack([part.to(precise(values.device)) for part in parts])


def time_profile(gradient: Tensor, *, time_dim: int) -> Tensor:
    """Root mean square of a gradient at each step of `time_dim`: shape (steps,)."""
    values = wide(gradient).movedim(time_dim, 0).flatten(1)
    largest = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return (largest.squeeze(1) * (values / largest).square().mean(dim=1).sqrt()).to(precise(values.device))
