"""Rows of a buffer that hold samples of weights and gradients, and the statistics of all of them in few operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, final

import torch
from torch import Tensor

from evengrad.measure import copy_each_
from evengrad.probe._sample import IN_CACHE, LONGEST, MANY
from evengrad.probe._statistics import precise

FEWEST = 64  # rows of a weight, where it has as many
BLOCK = 16  # columns that are taken together: a cache line of float32

WEIGHT, GRADIENT, FIRST, AFTER = range(4)
"""What is kept of each parameter: before the step, its gradient, at the first sampled step, after the step."""

# What is known of each row, in the order in which `Rows.statistics` gives it.
FIELDS = (
    "finite_count",
    "grad_finite_count",
    "norm",
    "grad_norm",
    "moved_norm",
    "update_norm",
    "first_norm",
    "grad_absmax",
    "grad_zero_count",
    "grad_small_count",
    "still_count",
    "total",
)


@final
class Cut:
    """Which elements of a parameter are sampled, the same ones of its gradient.

    The parameter is seen as a matrix of units and what goes into each. All of it is taken where it has at most
    `LONGEST` elements. Of a larger one rows are taken at even distances, and of each the columns in blocks at even
    distances.

    Args:
        tensor: The parameter; real.
        unit_dim: The dimension that counts units; None where nothing does.
        dtype: Of the parameter.
    """

    __slots__ = (
        "_apart", "_dims", "_order", "_steps", "_stride", "_swapped",
        "columns", "count", "dtype", "rows", "shape", "whole",
    )  # fmt: skip

    def __init__(self, tensor: Tensor, unit_dim: int | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        shape, strides = tensor.shape, tensor.stride()
        self._swapped = unit_dim == 1
        units = 1 if unit_dim is None else shape[unit_dim]
        width = tensor.numel() // units
        self.rows, self.columns = units, width
        self.shape: tuple[int, ...] = tensor.transpose(0, 1).shape if self._swapped else shape
        self.whole = tensor.numel() <= LONGEST
        self._dims: tuple[int, ...] = ()
        if not self.whole:
            rest = [dim for dim in range(len(shape)) if dim != unit_dim]
            rest.sort(key=lambda dim: strides[dim], reverse=True)
            self._dims = tuple(rest if unit_dim is None else [unit_dim, *rest])
            self._order = (units, width)
            self._choose(units, width)
            flat = tensor.permute(self._dims).reshape(self._order)
            is_view = flat.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            self._steps = self._steps_in(flat) if is_view else None
        self._stride = strides
        self.count = self.rows * self.columns

    def _choose(self, units: int, width: int) -> None:
        """Choose how many rows and columns, and how far they lie apart."""
        row_step = -(-units // max(FEWEST, LONGEST // width))
        self.rows = -(-units // row_step)
        self.columns = min(width, LONGEST // self.rows)
        if self.columns == width:
            blocks, block = 1, width
        else:
            block = min(BLOCK, self.columns)
            blocks = self.columns // block
            self.columns = blocks * block
        self.shape = (self.rows, blocks, block)
        self._apart = row_step, (width - block) // max(blocks - 1, 1)

    def _steps_in(self, matrix: Tensor) -> tuple[int, int, int]:
        down, along = matrix.stride()
        row_step, block_step = self._apart
        return row_step * down, block_step * along, along

    def of(self, tensor: Tensor) -> Tensor:
        """Return the elements, in `shape`; a large tensor is copied where its memory has another order."""
        if self.whole:
            return tensor.transpose(0, 1) if self._swapped else tensor
        if self._steps is not None and tensor.stride() == self._stride:
            return tensor.as_strided(self.shape, self._steps)
        matrix = tensor.permute(self._dims).reshape(self._order)
        return matrix.as_strided(self.shape, self._steps_in(matrix))


class Run(NamedTuple):
    """Neighbouring rows whose samples have the same shape.

    Args:
        start: The first one.
        end: After the last one.
        rows: Of each sample.
        columns: Of each sample.
    """

    start: int
    end: int
    rows: int
    columns: int


@final
class Rows:
    """Samples of parameters of one device, precision and width.

    Args:
        cuts: How each is sampled; those of the same shape stand together.
        device: Where they are.
        dtype: float32, or float64 for float64 parameters.
        width: Elements of a row.
    """

    def __init__(self, cuts: Sequence[Cut], device: torch.device, dtype: torch.dtype, width: int) -> None:
        self.cuts, self.device, self.width = list(cuts), device, width
        self._buffer = torch.zeros(4, len(cuts), width, device=device, dtype=dtype)
        self._targets: dict[int, list[Tensor]] = {}  # a probe of one batch needs those of two slots alone
        smallest = torch.tensor([torch.finfo(cut.dtype).tiny for cut in cuts], dtype=dtype)
        self._smallest_N1 = smallest.unsqueeze(1).to(device, non_blocking=True)
        self._together = max(1, IN_CACHE // (4 * width)) if device.type == "cpu" else MANY
        self._first_norm_N: Tensor | None = None
        shapes = groupby(range(len(cuts)), key=lambda place: (cuts[place].rows, cuts[place].columns))
        runs = [(list(places), rows, columns) for (rows, columns), places in shapes]
        self.runs = [
            Run(places[0], places[-1] + 1, rows, columns) for places, rows, columns in runs if rows > 1 and columns > 0
        ]

    def take(self, slot: int, tensors: Sequence[Tensor | None]) -> None:
        """Copy the samples of real tensors, one for each row; what is None is passed over."""
        targets, cuts = self._targets_in(slot), self.cuts
        sources = [None if tensor is None else cut.of(tensor) for cut, tensor in zip(cuts, tensors, strict=True)]
        pairs = [(target, source) for target, source in zip(targets, sources, strict=True) if source is not None]
        if pairs:
            copy_each_(*zip(*pairs, strict=True))
        if slot == WEIGHT and self._first_norm_N is None:
            self._buffer[FIRST].copy_(self._buffer[WEIGHT])
            first = self._buffer[FIRST].abs().nan_to_num_(0.0, 0.0, 0.0)
            self._first_norm_N = _norms(first)

    def _targets_in(self, slot: int) -> list[Tensor]:
        found = self._targets.get(slot)
        if found is None:
            pairs = zip(self._buffer[slot].unbind(), self.cuts, strict=True)
            found = self._targets[slot] = [row[: cut.count].view(cut.shape) for row, cut in pairs]
        return found

    def take_values(self, place: int, values: Tensor) -> int:
        """Copy a sample of the values of a sparse gradient; return of how many."""
        row = self._buffer[GRADIENT, place]
        row.zero_()
        flat = values.reshape(-1)
        step = -(-flat.numel() // self.width)
        if step == 0:
            return 0
        sample = flat[::step]
        row[: sample.numel()].copy_(sample)
        return sample.numel()

    def statistics(self) -> list[Tensor]:
        """Reduce every row: vectors, row after row in the order of `FIELDS`, then two for each run, row after row."""
        count = len(self.cuts)
        starts = range(0, count, min(self._together, count))
        parts = [self._reduced(start, min(start + self._together, count)) for start in starts]
        return [part.reshape(-1) for part in parts] + [
            self._spreads(run._replace(start=start, end=min(start + self._together, run.end))).reshape(-1)
            for run in self.runs
            for start in range(run.start, run.end, min(self._together, count))
        ]

    def _reduced(self, start: int, end: int) -> Tensor:
        """Reduce some rows in steps of their own dtype: comparisons that write floats are faster than boolean ones."""
        chunk, wide = self._buffer[:, start:end], precise(self.device)
        weight, gradient, first, after = chunk.unbind()
        sizes, marks = torch.empty_like(chunk), torch.empty_like(chunk)
        torch.abs(chunk[:FIRST], out=sizes[:FIRST])
        torch.sub(weight, first, out=sizes[FIRST])
        torch.sub(after, weight, out=sizes[AFTER])
        sizes[FIRST:].abs_()
        finite = torch.le(sizes[:FIRST], torch.finfo(chunk.dtype).max, out=marks[:FIRST]).sum(-1)
        torch.eq(gradient, 0.0, out=marks[0])
        torch.lt(sizes[GRADIENT], self._smallest_N1[start:end], out=marks[1])
        torch.eq(after, weight, out=marks[2]).mul_(torch.ne(gradient, 0.0, out=marks[3]))
        counts = marks[:3].sum(-1)
        total = torch.nan_to_num(weight, 0.0, 0.0, 0.0, out=marks[0]).sum(-1, dtype=wide)
        sizes.nan_to_num_(0.0, 0.0, 0.0)
        largest = sizes.amax(-1)
        norms = _norms(sizes, largest)
        assert self._first_norm_N is not None
        known = self._first_norm_N[start:end]
        fields = [finite.to(wide), norms, known[None], largest[GRADIENT, None].to(wide), counts.to(wide), total[None]]
        return torch.cat(fields).t()

    def _spreads(self, run: Run) -> Tensor:
        """Measure how much the units of weights and gradients differ: norms of the difference to the mean unit.

        The first unit is taken off before the mean is: where all are the same, exactly nothing is left.
        """
        start, end, rows, columns = run
        shape = (2, end - start, rows, columns)
        samples = self._buffer[:FIRST, start:end, : rows * columns].view(shape)
        apart = samples - samples[:, :, :1]
        apart -= apart.mean(2, keepdim=True)
        return _norms(apart.nan_to_num_(0.0, 0.0, 0.0).abs_().flatten(2)).t()


def _norms(sizes: Tensor, largest: Tensor | None = None) -> Tensor:
    """Norms over the last dimension of what is finite and not negative, which is overwritten; no square overflows."""
    largest = sizes.amax(-1) if largest is None else largest
    unit = largest.clamp_min(torch.finfo(sizes.dtype).tiny)
    sizes /= unit.unsqueeze(-1)
    wide = precise(sizes.device)
    norms: Tensor = torch.linalg.vector_norm(sizes, dim=-1)
    return norms.to(wide) * unit.to(wide)
