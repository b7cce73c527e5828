"""Norms on an accelerator: one operation for all gradients of a kind."""

from collections import defaultdict
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from evengrad.measure._values import flat, values, wide


@final
class Lists:
    """Measure tensors where they are, without a wait: gradients of a device and dtype by one foreach operation.

    Args:
        tensors: The gradients to plan for; for a gradient that is not there yet, its parameter.
        norm_type: The order of the norm, from 1 to infinity.
        device: Where the result is to be.
    """

    def __init__(self, tensors: Sequence[Tensor], norm_type: float, device: torch.device) -> None:
        self._order = norm_type
        self._device = device
        together: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        self._alone: list[int] = []
        for place, tensor in enumerate(tensors):
            if tensor.layout is not torch.strided or tensor.is_complex():
                self._alone.append(place)
            elif tensor.numel():
                together[tensor.device, tensor.dtype].append(place)
        self._together = [(key[1], places) for key, places in together.items()]
        order = [place for _, places in self._together for place in places] + self._alone
        self._order_of = torch.tensor(order, dtype=torch.int64, device=device)
        self._count = len(tensors)
        self._some: tuple[list[int], Tensor] | None = None

    def norms(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Measure; the norm of what is not there, or empty, is 0.

        Raises:
            RuntimeError: A tensor is not of the kind that was planned for; plan anew.
        """
        pieces = []
        places: list[int] = []
        complete = True
        for dtype, members in self._together:
            found = [tensor for place in members if (tensor := tensors[place]) is not None]
            if any(tensor.dtype is not dtype or tensor.layout is not torch.strided for tensor in found[:1]):
                raise RuntimeError("another kind than planned for")
            complete = complete and len(found) == len(members)
            places += [place for place in members if tensors[place] is not None]
            if found:
                norms = torch._foreach_norm(found, self._order, dtype=wide(found[0]))
                pieces.append(torch.stack(norms).to(self._device, torch.float32, non_blocking=True))
        for place in self._alone:
            tensor = tensors[place]
            complete = complete and tensor is not None
            if tensor is not None:
                places.append(place)
                pieces.append(self._any(tensor))
        result = torch.zeros(self._count, dtype=torch.float32, device=self._device)
        if not pieces:
            return result
        where = self._order_of
        if not complete:
            if self._some is None or self._some[0] != places:  # copied when another set of gradients is missing
                self._some = (places, torch.tensor(places, dtype=torch.int64).to(self._device))
            where = self._some[1]
        return result.index_copy_(0, where, torch.cat(pieces))

    def _any(self, tensor: Tensor) -> Tensor:
        line = flat(values(tensor, moduli=self._order != 2))
        if not line.numel():
            return torch.zeros(1, dtype=torch.float32, device=self._device)
        norm: Tensor = torch.linalg.vector_norm(line, self._order, dtype=wide(line))
        return norm.view(1).to(self._device, torch.float32, non_blocking=True)
