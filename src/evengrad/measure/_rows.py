"""Norms on the host: gradients are cut into short rows, and the norms of the rows are put together in float64."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evengrad.measure._values import ROW, flat, values, wide

SMALL = 2**15  # elements up to which copying a tensor into a stack is cheaper than dispatches of its own
BLOCK = 2**20  # elements that are stacked at a time: they stay in the cache until they are read
FEW = 8  # tensors of a shape below which a stack does not pay
TINY = 512  # elements that torch's own norm adds up well enough: off by 5e-7 at most

Norms64 = NDArray[np.float64]
Fill = Callable[[Sequence[Tensor | None]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a gradient is, as far as measuring it is concerned."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    plain: bool  # dense, real, and in memory without gaps in the order of its dimensions

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return int(np.prod(self.shape))


def kind_of(tensor: Tensor) -> Kind:
    """Say what a gradient is; of a sparse one only that."""
    plain = tensor.layout is torch.strided and not tensor.is_complex() and tensor.is_contiguous()
    return Kind(dtype=tensor.dtype, shape=tuple(tensor.shape), plain=plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Tensors that are measured by one function, each by so many rows."""

    places: list[int]
    rows_each: int
    is_wide: bool
    make: Callable[[list[int], Tensor, Tensor, float], Fill]


@final
class Rows:
    """Measure tensors in host memory with as few operations as they allow.

    The norm of every row of at most 256 elements goes to its place in one vector, and one reduction in float64 puts the
    rows of each tensor together.

    Args:
        tensors: The gradients to plan for; for a gradient that is not there yet, its parameter.
        norm_type: The order of the norm, from 1 to infinity.

    Raises:
        RuntimeError: From `norms`: a tensor is not of the kind that was planned for; plan anew.
    """

    def __init__(self, tensors: Sequence[Tensor], norm_type: float) -> None:
        self._order = norm_type
        groups = grouped([kind_of(tensor) for tensor in tensors])
        lengths = [group.rows_each for group in groups for _ in group.places]
        rows = sum(lengths)
        self._rows = torch.zeros(rows, dtype=torch.float32)
        self._wide = torch.zeros(rows, dtype=torch.float64) if any(group.is_wide for group in groups) else None
        self._numbers: Any = self._rows.numpy()
        self._squares = np.empty(rows, dtype=np.float64)
        self._starts = np.cumsum([0, *lengths])[:-1].astype(np.intp)
        order = [place for group in groups for place in group.places]
        self._where = np.full(len(tensors), len(order), dtype=np.intp)  # empty tensors: the 0 at the end
        self._where[order] = np.arange(len(order))
        self._fills: list[Fill] = []
        self._checked: list[tuple[int, torch.dtype]] = []  # a stack would cast another dtype without a word
        start = 0
        for group in groups:
            end = start + group.rows_each * len(group.places)
            target = self._wide if group.is_wide and self._wide is not None else self._rows
            first = tensors[group.places[0]]
            self._fills.append(group.make(group.places, first, target[start:end], norm_type))
            if len(group.places) > 1:
                self._checked.append((group.places[0], first.dtype))
            start = end

    def norms(self, tensors: Sequence[Tensor | None]) -> NDArray[np.float64]:
        """Measure; the norm of what is not there, or empty, is 0."""
        for place, dtype in self._checked:
            tensor = tensors[place]
            if tensor is not None and tensor.dtype is not dtype:
                raise RuntimeError("another dtype than planned for")
        for fill in self._fills:
            fill(tensors)
        if not len(self._starts):
            return np.zeros(len(tensors))
        numbers = self._numbers if self._wide is None else self._numbers + self._wide.numpy()  # each row is in one
        return np.append(self._together(numbers), 0.0)[self._where]

    def _together(self, numbers: Any) -> Norms64:
        if self._order == np.inf:
            return np.maximum.reduceat(numbers, self._starts).astype(np.float64)
        if self._order == 2:
            np.multiply(numbers, numbers, out=self._squares, dtype=np.float64)
            return np.sqrt(np.add.reduceat(self._squares, self._starts))
        np.power(numbers, self._order, out=self._squares, dtype=np.float64)
        return np.add.reduceat(self._squares, self._starts) ** (1 / self._order)


def grouped(kinds: Sequence[Kind]) -> list[Group]:
    """Decide which tensors are measured together, and how."""
    alike: dict[Kind, list[int]] = defaultdict(list)
    tiny: dict[torch.dtype, list[int]] = defaultdict(list)
    groups: list[Group] = []
    for place, kind in enumerate(kinds):
        is_wide = kind.dtype in (torch.float64, torch.complex128)
        if not kind.plain:
            groups.append(Group(places=[place], rows_each=1, is_wide=is_wide, make=_any))
        elif kind.numel:
            alike[kind].append(place)
    for kind, places in alike.items():
        is_wide, length = kind.dtype == torch.float64, row_length(kind.numel)
        if len(places) >= FEW and length:
            rows = kind.numel // length
            groups.append(Group(places=places, rows_each=rows, is_wide=is_wide, make=_stack))
        elif kind.numel <= TINY:
            tiny[kind.dtype] += places
        else:
            rows = kind.numel // length if length else -(-kind.numel // ROW)
            groups += [Group(places=[place], rows_each=rows, is_wide=is_wide, make=_one) for place in places]
    for dtype, places in tiny.items():
        groups.append(Group(places=places, rows_each=1, is_wide=dtype == torch.float64, make=_list))
    return groups


def row_length(numel: int) -> int:
    """Elements of the longest row into which a small tensor can be cut evenly; 0 when there is none worth having."""
    if numel <= ROW:
        return numel
    if numel > SMALL:
        return 0
    return next((length for length in range(ROW, ROW // 8, -1) if numel % length == 0), 0)


def _one(places: list[int], first: Tensor, rows: Tensor, order: float) -> Fill:
    """Measure one tensor without gaps: all its whole rows at once, and what is left over."""
    place, numel = places[0], first.numel()
    length = row_length(numel) or ROW
    whole = numel - numel % length
    full, rest = rows[: whole // length], rows[whole // length :]
    norm, dtype = torch.linalg.vector_norm, rows.dtype

    def fill(tensors: Sequence[Tensor | None]) -> None:
        tensor = tensors[place]
        if tensor is None:
            rows.zero_()
        elif whole == numel:
            norm(tensor.view(-1, length), order, 1, dtype=dtype, out=full)
        else:
            line = tensor.view(-1)
            norm(line[:whole].view(-1, length), order, 1, dtype=dtype, out=full)
            norm(line[whole:].view(1, -1), order, 1, dtype=dtype, out=rest)

    return fill


def _list(places: list[int], first: Tensor, rows: Tensor, order: float) -> Fill:
    """Measure tiny tensors of any shapes."""
    dtype = rows.dtype

    def fill(tensors: Sequence[Tensor | None]) -> None:
        found = [tensor for place in places if (tensor := tensors[place]) is not None]
        if found:
            norms = torch.stack(torch._foreach_norm(found, order, dtype=dtype))
            if len(found) == len(places):
                rows.copy_(norms)
                return
            there = torch.tensor([number for number, place in enumerate(places) if tensors[place] is not None])
            rows.zero_().index_copy_(0, there, norms)
        else:
            rows.zero_()

    return fill


def _any(places: list[int], first: Tensor, row: Tensor, order: float) -> Fill:
    """Measure a sparse or complex gradient, or one with gaps or in another order of memory."""
    place = places[0]

    def fill(tensors: Sequence[Tensor | None]) -> None:
        tensor = tensors[place]
        line = None if tensor is None else flat(values(tensor, moduli=order != 2))
        if line is None or not line.numel():
            row.zero_()
            return
        whole = line.numel() - line.numel() % ROW
        parts = torch.linalg.vector_norm(line[:whole].view(-1, ROW), order, 1, dtype=wide(line))
        if whole < line.numel():
            parts = torch.cat([parts, torch.linalg.vector_norm(line[whole:], order, dtype=wide(line)).view(1)])
        row.copy_(torch.linalg.vector_norm(parts.to(torch.float64), order))

    return fill


def _stack(places: list[int], first: Tensor, rows: Tensor, order: float) -> Fill:
    """Measure many small tensors of one shape: copied together, then read as one."""
    block = min(len(places), max(FEW, BLOCK // max(1, first.numel())))
    buffer = torch.empty((block, *first.shape), dtype=first.dtype)
    length = row_length(first.numel())
    rows = rows.view(len(places), -1)
    norm, dtype = torch.linalg.vector_norm, rows.dtype

    def measure(found: list[Tensor], out: Tensor) -> None:
        for start in range(0, len(found), block):
            part = found[start : start + block]
            stacked = torch.stack(part, out=buffer[: len(part)])
            norm(stacked.view(len(part), -1, length), order, 2, dtype=dtype, out=out[start : start + block])

    def fill(tensors: Sequence[Tensor | None]) -> None:
        found = [tensor for place in places if (tensor := tensors[place]) is not None]
        if len(found) == len(places):
            measure(found, rows)
            return
        rows.zero_()
        if found:
            part = torch.empty((len(found), rows.shape[1]), dtype=dtype)
            measure(found, part)
            there = torch.tensor([number for number, place in enumerate(places) if tensors[place] is not None])
            rows.index_copy_(0, there, part)

    return fill
