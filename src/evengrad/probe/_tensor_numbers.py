"""What a tensor at an end of the model is like, from whole samples of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evengrad.nouns import TensorReading
from evengrad.probe._sample_hooks import plain
from evengrad.probe._statistics import precise

MOST_FEATURES = 2048
FEWEST_SAMPLES = 16  # of a batch that has as many

# What is known of a tensor, in the order in which `tensor_numbers` gives it.
FIELDS = (
    "count",
    "sum",
    "constant_count",
    "square_sum",
    "maximum",
    "minus_minimum",
    "std_max",
    "mean_absmax",
    "minus_std_min",
)


def tensor_numbers(name: str, tensor: Tensor, most: int | None) -> tuple[Look, Tensor] | None:
    """Reduce a tensor to a vector in the order of `FIELDS`; None where it cannot be looked at.

    Args:
        name: As in `TensorReading`.
        tensor: Of any dtype and shape. Features are the channels of a picture (four dimensions or more), the last
            dimension of all else; a tensor of one dimension is one feature, and integers have none.
        most: How many elements are read: whole samples at even distances, and of large ones, as pictures are, points
            at even distances. At most 2,048 features. None reads everything.

    Cost: Some thirty small operations, and a dozen over what is read; no host synchronisation.
    """
    if plain(tensor) is None or not tensor.numel():
        return None
    sample = _sampled(tensor.detach(), most)
    if sample.is_complex():
        sample = torch.cat([sample.real, sample.imag])
    counted = sample.is_floating_point()
    values, dim = _by_features(sample) if counted else (sample.reshape(1, -1), 1)
    values = torch.empty(values.shape, dtype=precise(values.device), device=values.device).copy_(values)
    look = Look(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        features=values.shape[1 - dim] if counted else 0,
        sampled=values.numel(),
    )
    return look, _reduced(values, dim)


class Look(NamedTuple):
    """What is known of a tensor without its numbers.

    Args:
        name: As in `TensorReading`.
        dtype: By torch's name.
        shape: Its shape.
        features: How many were read; 0 for integers.
        sampled: How many elements were read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    features: int
    sampled: int

    @property
    def all_features(self) -> int:
        """How many features there are."""
        if not self.features or len(self.shape) < 2:
            return self.features
        return self.shape[1 if len(self.shape) >= 4 else -1]


def tensor_reading(look: Look, numbers: Sequence[float]) -> TensorReading:
    """Make a reading of a host copy of a tensor's numbers."""
    known = dict(zip(FIELDS, numbers, strict=True))
    once, anything = max(known["count"], 1.0), known["count"] > 0
    whole: dict[str, Any] = {
        "mean": known["sum"] / once,
        "std": (known["square_sum"] / once) ** 0.5,
        "minimum": -known["minus_minimum"] if anything else 0.0,
        "maximum": known["maximum"] if anything else 0.0,
        "finite_frac": known["count"] / look.sampled,
    }
    if look.features:
        several = look.shape[:1] > (1,)
        std_min = -known["minus_std_min"]
        whole |= {
            "constant_frac": known["constant_count"] / look.features if several else 0.0,
            "feature_std_max": known["std_max"],
            "feature_std_min": std_min if std_min < inf else 0.0,
            "feature_mean_absmax": known["mean_absmax"],
        }
    return TensorReading(name=look.name, dtype=look.dtype, shape=look.shape, features=look.all_features, **whole)


def _sampled(tensor: Tensor, most: int | None) -> Tensor:
    """Take a view of some samples, of points in them, and of some features where there are very many."""
    if most is None or tensor.numel() <= most:
        return tensor
    steps = [1] * tensor.ndim
    feature_dim = (1 if tensor.ndim >= 4 else tensor.ndim - 1) if tensor.ndim > 1 else None
    points = [dim for dim in range(1, tensor.ndim) if dim != feature_dim]
    if feature_dim is not None:
        steps[feature_dim] = ceil(tensor.shape[feature_dim] / MOST_FEATURES)
    too_many = tensor.numel() / steps[feature_dim or 0] / most
    fewest = FEWEST_SAMPLES if points or feature_dim is not None else 1
    steps[0] = max(1, min(ceil(too_many), tensor.shape[0] // fewest))
    left = too_many / steps[0]
    for place, dim in enumerate(points):
        steps[dim] = max(1, min(ceil(left ** (1 / (len(points) - place))), tensor.shape[dim]))
        left /= steps[dim]
    return tensor[tuple(slice(None, None, step) for step in steps)]


def _by_features(tensor: Tensor) -> tuple[Tensor, int]:
    """View as a matrix of what is observed and features, or of features and what is observed; tell which is observed.

    A copy where the memory does not allow a view.
    """
    if tensor.ndim >= 4:
        return tensor.transpose(0, 1).reshape(tensor.shape[1], -1), 1
    return (tensor.reshape(1, -1), 1) if tensor.ndim < 2 else (tensor.reshape(-1, tensor.shape[-1]), 0)


def _reduced(values: Tensor, dim: int) -> Tensor:
    """Reduce the features of a matrix, which is overwritten.

    What is not finite counts as the mean of its feature: nothing is moved by it.
    """
    finite = values.abs()
    torch.le(finite, torch.finfo(values.dtype).max, out=finite)  # faster than booleans
    count_F = finite.sum(dim)
    total_F = values.nan_to_num_(0.0, 0.0, 0.0).sum(dim)
    once_F = count_F.clamp_min(1.0)
    mean_F = total_F / once_F
    values.addcmul_(finite.neg_().add_(1.0), mean_F.unsqueeze(dim))
    low_F, high_F = values.amin(dim), values.amax(dim)
    apart = values.sub_(mean_F.unsqueeze(dim))
    square_F = apart.mul_(apart).sum(dim)
    std_F = (square_F / once_F).sqrt()
    constant_F = (low_F == high_F) & (count_F > 1)
    sums = torch.stack([count_F, total_F, constant_F.to(values.dtype)]).sum(-1)
    off_F = mean_F - sums[1] / sums[0].clamp_min(1.0)
    square = (square_F + count_F * off_F * off_F).sum()
    least_F = std_F.masked_fill(std_F == 0, float("inf"))
    most = torch.stack([high_F, -low_F, std_F, mean_F.abs(), -least_F]).amax(-1)
    return torch.cat([sums, square.view(1), most])
