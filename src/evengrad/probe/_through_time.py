"""The gradient at the input of a recurrent module, time step by time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from evengrad.probe._statistics import time_profile


def stand_in_for(module: nn.Module, value: Any) -> Any:
    """Stand in for an input that carries no gradient, so that one arrives there; all else is given back as it is.

    Only where the output carries a gradient anyway: a frozen module goes on giving outputs without a graph.
    """
    data = data_of(value)
    if type(data) is not Tensor or data.requires_grad or not data.is_floating_point():
        return value
    if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return value
    stand_in = data.detach().requires_grad_()
    return value._replace(data=stand_in) if isinstance(value, PackedSequence) else stand_in


def data_of(value: Any) -> Any:
    """Give the tensor of a packed sequence."""
    return value.data if isinstance(value, PackedSequence) else value


def watch_time(module: nn.Module, value: Any, seen: Callable[[Tensor], None]) -> RemovableHandle | None:
    """Hand over the profile of the gradient at a recurrent module's input when it arrives.

    Returns:
        The handle of the hook; None where no gradient will arrive.
    """
    data = data_of(value)
    if not isinstance(data, Tensor) or not data.requires_grad:
        return None
    if isinstance(value, PackedSequence):
        sizes = value.batch_sizes.tolist()  # already on the host
        packed: RemovableHandle = data.register_hook(lambda gradient: seen(_packed_profile(gradient, sizes)))
        return packed
    if data.ndim < 2:
        return None
    time_dim = 1 if getattr(module, "batch_first", False) and data.ndim == 3 else 0
    handle: RemovableHandle = data.register_hook(lambda gradient: seen(time_profile(gradient, time_dim=time_dim)))
    return handle


def _packed_profile(gradient: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([time_profile(step.unsqueeze(0), time_dim=0) for step in gradient.split(sizes)])
