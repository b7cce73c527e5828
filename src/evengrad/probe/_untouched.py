"""Weights that look as drawn, watched: whether anybody moves them after all, and whether a gradient reaches them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

FEW = 16  # elements of a weight that are compared: by them writes through `.data` show, which no version counts


@final
class Untouched:
    """Remember weights as they are, and tell later which of them nothing has written to.

    Any step of any optimizer, a checkpoint that is loaded and a moving average write to them. Of weights that require a
    gradient only those count that have one, not zero: nobody wants a weight moved whose gradient nobody computes.

    Args:
        named: The weights. They are not kept alive.

    Cost: 16 elements of each.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._seats = [
            (name, weakref.ref(one), one._version, _few(one).clone(), one.device, one.dtype)
            for name, one in named.items()
        ]

    def __len__(self) -> int:
        return len(self._seats)

    def look(self) -> tuple[tuple[str, ...], Tensor]:
        """Name those that may be as they were, each with a number on the device: 1 if so, 0 if not; nothing waits."""
        names, flags = [], []
        for name, weak, version, then, device, dtype in self._seats:
            one = weak()
            if one is None or one._version != version or one.device != device or one.dtype != dtype:
                continue
            now = _few(one)
            if now.shape != then.shape or (one.requires_grad and one.grad is None):
                continue
            same = (now == then).all()
            names.append(name)
            flags.append(same & _is_there(one.grad) if one.requires_grad and one.grad is not None else same)
        if not flags:
            return (), torch.empty(0)
        home = next((flag.device for flag in flags if flag.device.type != "cpu"), flags[0].device)
        return tuple(names), torch.stack([flag.to(home, non_blocking=True) for flag in flags]).float()


def those(names: Sequence[str], numbers: Sequence[float]) -> tuple[str, ...]:
    """Choose the names whose number is not zero."""
    return tuple(name for name, number in zip(names, numbers, strict=True) if number)


def _few(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: max(flat.numel() // FEW, 1)][:FEW]


def _is_there(grad: Tensor) -> Tensor:
    values = grad.detach()
    if values.layout is not torch.strided:
        return torch.ones((), dtype=torch.bool, device=grad.device)
    return (values != 0).any()
