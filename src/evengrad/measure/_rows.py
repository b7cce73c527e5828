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
BLOCK = 2**19  # elements that are stacked at a time: they stay in the cache until they are read
FEW = 8  # tensors of a shape below which a stack does not pay
TINY = 512  # elements that torch's own norm adds up well enough: off by 5e-7 at most
LARGE = 2**20  # elements from which several threads of torch are quicker than one of BLAS
DOT_ROW = 1024  # elements of a row whose dot product BLAS forms: off by 1e-7 at most, and by 5e-7 at 4,096
DOTS = hasattr(np, "vecdot")  # NumPy 2: a dot product for each row, with half the overhead of an operation of torch

Norms64 = NDArray[np.float64]
Kept = tuple[torch.dtype, bool]  # dtype of rows, and whether they are squares already
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
    dtype: torch.dtype
    make: Callable[[list[int], Tensor, Tensor, float], Fill]
    dots: bool = False

    @property
    def kept_in(self) -> "Kept":
        """Where its rows are kept."""
        return torch.float64 if self.dtype in (torch.float64, torch.complex128) else torch.float32, self.dots


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
        groups = grouped([kind_of(tensor) for tensor in tensors], dots=DOTS and norm_type == 2)
        lengths = [group.rows_each for group in groups for _ in group.places]
        kept = {group.kept_in: torch.zeros(sum(lengths), dtype=group.kept_in[0]) for group in groups}
        self._kept: list[tuple[Any, bool]] = [(rows.numpy(), squares) for (_, squares), rows in kept.items()]
        self._starts = np.cumsum([0, *lengths])[:-1].astype(np.intp)
        self._sums = np.zeros(sum(lengths), dtype=np.float64)
        order = [place for group in groups for place in group.places]
        self._where = np.full(len(tensors), len(order), dtype=np.intp)  # empty tensors: the 0 at the end
        self._where[order] = np.arange(len(order))
        self._norms = np.zeros(len(order) + 1)
        self._fills: list[Fill] = []
        self._checked: list[tuple[int, torch.dtype]] = []  # a stack would cast another dtype without a word
        start = 0
        for group in groups:
            end = start + group.rows_each * len(group.places)
            first = tensors[group.places[0]]
            self._fills.append(group.make(group.places, first, kept[group.kept_in][start:end], norm_type))
            if len(group.places) > 1 or group.dots:
                self._checked.append((group.places[0], first.dtype))
            start = end

    def norms(self, tensors: Sequence[Tensor | None]) -> NDArray[np.float32]:
        """Measure; the norm of what is not there, or empty, is 0."""
        for place, dtype in self._checked:
            tensor = tensors[place]
            if tensor is not None and tensor.dtype is not dtype:
                raise RuntimeError("another dtype than planned for")
        with np.errstate(all="ignore"):  # what is not finite is what is looked for
            for fill in self._fills:
                fill(tensors)
            if len(self._starts):
                self._norms[:-1] = self._together()
            return self._norms[self._where].astype(np.float32)  # infinite where it is too large

    def _together(self) -> Norms64:
        """Put the rows of each tensor together; each row is in one of the vectors, and 0 in the others."""
        power, sums = self._order, self._sums
        if power == np.inf:
            np.maximum.reduce([rows for rows, _ in self._kept], axis=0, out=sums)
            return np.maximum.reduceat(sums, self._starts)
        for number, (rows, squares) in enumerate(self._kept):
            values = rows if squares else _powers(rows, power)
            np.copyto(sums, values) if number == 0 else np.add(sums, values, out=sums)
        totals: Norms64 = np.add.reduceat(sums, self._starts)
        return np.sqrt(totals) if power == 2 else totals ** (1 / power)


def _powers(rows: Any, power: float) -> Norms64:
    wide: Norms64 = rows.astype(np.float64)
    return np.multiply(wide, wide, out=wide) if power == 2 else np.power(wide, power, out=wide)


def grouped(kinds: Sequence[Kind], *, dots: bool) -> list[Group]:
    """Decide which tensors are measured together, and how."""
    alike: dict[Kind, list[int]] = defaultdict(list)
    tiny: dict[torch.dtype, list[int]] = defaultdict(list)
    groups: list[Group] = []
    alone = torch.get_num_threads() == 1
    for place, kind in enumerate(kinds):
        if not kind.plain:
            groups.append(Group(places=[place], rows_each=1, dtype=kind.dtype, make=_any))
        elif kind.numel:
            alike[kind].append(place)
    for kind, places in alike.items():
        length = row_length(kind.numel)
        dotted = dots and kind.dtype in (torch.float32, torch.float64) and (alone or kind.numel <= LARGE)
        if len(places) >= FEW and length:
            make, rows = _stack, kind.numel // length
            groups.append(Group(places=places, rows_each=rows, dtype=kind.dtype, make=make, dots=dotted))
        elif kind.numel <= TINY and not dotted:
            tiny[kind.dtype] += places
        else:
            make, most = (_dot, DOT_ROW) if dotted else (_one, ROW)
            length = row_length(kind.numel, most=most)
            rows = kind.numel // length if length else -(-kind.numel // most)
            groups += [Group(places=[one], rows_each=rows, dtype=kind.dtype, make=make, dots=dotted) for one in places]
    for dtype, places in tiny.items():
        groups.append(Group(places=places, rows_each=1, dtype=dtype, make=_list))
    return groups


def row_length(numel: int, *, most: int = ROW) -> int:
    """Elements of the longest row into which a small tensor can be cut evenly; 0 when there is none worth having."""
    if numel <= most:
        return numel
    if numel > SMALL:
        return 0
    return next((length for length in range(most, most // 8, -1) if numel % length == 0), 0)


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


def _dot(places: list[int], first: Tensor, rows: Tensor, order: float) -> Fill:
    """Measure one tensor without gaps by the dot product of each row with itself."""
    place, numel = places[0], first.numel()
    length = row_length(numel, most=DOT_ROW) or DOT_ROW
    whole = numel - numel % length
    squares = rows.numpy()
    full, rest = squares[: whole // length], squares[whole // length :]

    def fill(tensors: Sequence[Tensor | None]) -> None:
        tensor = tensors[place]
        if tensor is None:
            squares[:] = 0
            return
        line = tensor.detach().view(numel).numpy()  # fails where there are gaps
        lines = line[:whole].reshape(-1, length)
        np.vecdot(lines, lines, out=full)
        if whole < numel:
            np.vecdot(line[None, whole:], line[None, whole:], out=rest)

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
    dots = DOTS and order == 2 and first.dtype == dtype

    def measure(found: list[Tensor], out: Tensor) -> None:
        for start in range(0, len(found), block):
            part = found[start : start + block]
            lines = torch.stack(part, out=buffer[: len(part)]).view(len(part), -1, length)
            if dots:
                np.vecdot(lines.numpy(), lines.numpy(), out=out[start : start + block].numpy())
            else:
                norm(lines, order, 2, dtype=dtype, out=out[start : start + block])

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
