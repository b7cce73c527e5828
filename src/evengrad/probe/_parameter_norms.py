"""Norms of all parameters and gradients of a model, at any size of their numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import hypot, inf, sqrt
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from evengrad.measure import Norms
from evengrad.probe._host_numbers import LOWEST_SQUARE, norm_of, on_host
from evengrad.probe._statistics import precise, wide

SMALL = 4096  # elements up to which a tensor in host memory is copied, to be measured with the others
PART = 1 << 18  # elements of half precision that are widened at a time
MEASURED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@final
class ParameterNorms:
    """Measure weights and gradients; waits for the device.

    Args:
        parameters: All of the model.
        gradients: The gradient of each, None where there is none; None if there was no backward.

    Cost: One pass over the weights of two or more dimensions and all gradients, a second one in float64 over those
        whose squares may have overflowed or vanished.
    """

    def __init__(self, parameters: Iterable[Tensor], gradients: Mapping[Tensor, Tensor | None] | None) -> None:
        weights = [one for one in parameters if not nn.parameter.is_lazy(one) and one.ndim >= 2]
        arrived = [(one, gradient) for one, gradient in (gradients or {}).items() if gradient is not None]
        norms = norms_of([*weights, *(gradient for _, gradient in arrived)])
        self._went_back = gradients is not None
        self._weights = {id(one): norm for one, norm in zip(weights, norms, strict=False)}
        self._gradients = {id(one): norm for (one, _), norm in zip(arrived, norms[len(weights) :], strict=True)}

    def of_weights(self, weights: Sequence[Tensor]) -> tuple[float | None, float | None]:
        """Give the norm of a layer's weights together, and of their gradients; None where there are none."""
        if not weights:
            return None, None
        gradient = self.of_gradients(weights)
        return hypot(*(self._weights[id(one)] for one in weights)), hypot(*gradient) if self._went_back else None

    def of_gradients(self, parameters: Iterable[Tensor]) -> tuple[float, ...]:
        """Give the norm of the gradient of each parameter; 0 where there is none."""
        return tuple(self._gradients.get(id(one), 0.0) for one in parameters)


def norms_of(tensors: Sequence[Tensor]) -> list[float]:
    """Measure the norm of each tensor; waits for the device."""
    found: dict[int, float] = {}
    small: dict[torch.dtype, list[int]] = defaultdict(list)
    elsewhere: list[int] = []
    for place, tensor in enumerate(tensors):
        if not _is_plain(tensor):
            continue
        if tensor.device.type != "cpu":
            elsewhere.append(place)
        elif 0 < tensor.numel() <= SMALL and tensor.dtype is not torch.float64:
            small[tensor.dtype].append(place)
        elif tensor.dtype not in (torch.float32, torch.float64):
            found[place] = _widened(tensor)
        elif (array := on_host(tensor)) is not None:
            found[place] = norm_of(array)
    for places in small.values():
        found |= zip(places, _together([tensors[place] for place in places]), strict=True)
    if elsewhere:
        norms = Norms([tensors[place].detach() for place in elsewhere], weights=True).norms().tolist()
        found |= {one: norm for one, norm in zip(elsewhere, norms, strict=True) if _lost_nothing(norm, tensors[one])}
    again = [place for place in range(len(tensors)) if place not in found]
    if again:
        device = tensors[again[0]].device
        precisely = torch.stack([_norm(tensors[place]).to(device) for place in again]).tolist()
        found |= zip(again, precisely, strict=True)
    return [found[place] for place in range(len(tensors))]


def _is_plain(tensor: Tensor) -> bool:
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
        return False
    return tensor.layout is torch.strided and tensor.dtype in MEASURED and not tensor.is_nested


def _widened(tensor: Tensor) -> float:
    """Measure half precision in host memory in parts, each of which overwrites the copy of the one before."""
    line = tensor.detach().reshape(-1)
    buffer = torch.empty(min(line.numel(), PART), dtype=torch.float32)
    parts = line.split(PART)
    return hypot(*(norm_of(buffer[: part.numel()].copy_(part).numpy()) for part in parts))


def _together(tensors: list[Tensor]) -> list[float]:
    """Measure small tensors of one dtype in host memory, put one behind the other, in float64."""
    starts = [0, *accumulate(tensor.numel() for tensor in tensors[:-1])]
    line = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).double()
    with np.errstate(all="ignore"):
        norms: list[float] = np.sqrt(np.add.reduceat(line.square().numpy(), starts)).tolist()
    return norms


def _lost_nothing(norm: float, tensor: Tensor) -> bool:
    return sqrt(LOWEST_SQUARE * tensor.numel()) < norm < inf


def _norm(tensor: Tensor) -> Tensor:
    """Measure in the widest type that the device has."""
    return wide(tensor).to(precise(tensor.device)).square().sum().sqrt()
