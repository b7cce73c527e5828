"""Gradients that are measured together, and how."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evengrad.measure._squares import ROW, sum_of_squares, wide

SMALL = 2**15  # elements up to which copying a tensor into a stack is cheaper than dispatches of its own
BLOCK = 2**20  # elements that are stacked at a time: they stay in the cache until they are read
FEW = 4  # tensors of a shape below which a stack does not pay

Measure = Callable[[list[Tensor]], Tensor]
Key = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Parameters whose gradients one function measures.

    Args:
        places: Their places in the packed vector.
        key: Device, dtype and (for a stack) shape that the function was made for; empty when it takes anything.
        measure: From the gradients that are there to their squared norms, shape (number of gradients,).
    """

    places: tuple[int, ...]
    key: Key
    measure: Measure

    def fits(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether the first gradient is still of the kind that the group was made for."""
        first = next((grads[place] for place in self.places if grads[place] is not None), None)
        return first is None or not self.key or _key(first, stacked=len(self.key) > 2) == self.key

    def measured(self, grads: Sequence[Tensor | None]) -> tuple[Sequence[int], Tensor]:
        """Measure the gradients that are there; also say which those are."""
        found = [grad for place in self.places if (grad := grads[place]) is not None]
        if len(found) == len(self.places):
            return self.places, self.measure(found)
        present = [place for place in self.places if grads[place] is not None]
        return present, self.measure(found) if found else torch.zeros(0)


def grouped(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> tuple[Group, ...]:
    """Split the parameters into groups by what their gradients are (what they are themselves where there is none)."""
    shapes: dict[Key, list[int]] = defaultdict(list)
    together: dict[Key, list[int]] = defaultdict(list)
    alone: list[int] = []
    for place, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        tensor = parameter if grad is None else grad
        if tensor.layout is not torch.strided or tensor.is_complex():
            alone.append(place)
        elif tensor.device.type != "cpu":
            together[_key(tensor, stacked=False)].append(place)
        elif tensor.numel() <= SMALL and _row_length(tensor.numel()):
            shapes[_key(tensor, stacked=True)].append(place)
        elif tensor.numel():
            alone.append(place)
    groups = [Group(places=tuple(places), key=key, measure=_foreach) for key, places in together.items()]
    for key, places in shapes.items():
        if len(places) >= FEW:
            groups.append(Group(places=tuple(places), key=key, measure=_stack(key, len(places))))
        elif key[2].numel() <= ROW:
            together[key[:2]] += places
        else:
            alone += places
    small = [Group(places=tuple(v), key=k, measure=_foreach) for k, v in together.items() if k[0].type == "cpu"]
    one_by_one = [Group(places=tuple(alone), key=(), measure=_each)] if alone else []
    return (*groups, *small, *one_by_one)


def _key(tensor: Tensor, *, stacked: bool) -> Key:
    return (tensor.device, tensor.dtype, tensor.shape) if stacked else (tensor.device, tensor.dtype)


def _row_length(numel: int) -> int:
    """Elements of the longest row into which a tensor can be cut evenly; 0 when there is none worth having."""
    if numel <= ROW:
        return numel
    return next((length for length in range(ROW, ROW // 8, -1) if numel % length == 0), 0)


def _foreach(grads: list[Tensor]) -> Tensor:
    norms = torch.stack(torch._foreach_norm(grads, dtype=wide(grads[0])))
    return norms * norms


def _each(grads: list[Tensor]) -> Tensor:
    first = grads[0].device
    return torch.stack([sum_of_squares(grad).to(first, torch.float32) for grad in grads])


def _stack(key: Key, count: int) -> Measure:
    device, dtype, shape = key
    block = min(count, max(FEW, BLOCK // max(1, shape.numel())))
    buffer = torch.empty((block, *shape), dtype=dtype, device=device)
    row = _row_length(shape.numel())

    def measure(grads: list[Tensor]) -> Tensor:
        norms = []
        for start in range(0, len(grads), block):
            part = grads[start : start + block]
            rows = torch.stack(part, out=buffer[: len(part)]).view(len(part), -1, row)
            norms.append(torch.linalg.vector_norm(rows, dim=2, dtype=wide(rows)))
        packed = norms[0] if len(norms) == 1 else torch.cat(norms)
        squares: Tensor = (packed * packed).sum(1)
        return squares

    return measure
