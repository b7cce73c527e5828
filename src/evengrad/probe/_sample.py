"""Rows of a buffer that hold samples of tensors, and the statistics of all of them by a few operations."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from evengrad.probe._statistics import RELATIVE_SLOPES, SLOPE_LEFT, precise

LONGEST = 4096  # elements of one sample
BLOCKS = 16  # contiguous blocks that a longer tensor is sampled in
NARROWEST = 16
FEWEST_ROWS = 8
IN_CACHE = 1 << 18  # elements that a CPU reduces at a time: 1 MiB of float32
MANY = 1 << 30

# What is known of each row, in the order of the vector that `Group.statistics` gives.
FIELDS = (
    "finite_count",
    "grad_finite_count",
    "absmax",
    "grad_absmax",
    "relative_norm",
    "grad_relative_norm",
    "zero_count",
    "saturated_count",
    "relative_sum",
)


@final
class Place:
    """One row: takes the sample of a tensor; how is worked out once and kept while shape and strides stay.

    Args:
        row: One dimension, as long as the widest sample of its group; zero beyond the sample.
    """

    __slots__ = ("_flat", "_row", "_shape", "_source", "_stride", "_target", "count")

    def __init__(self, row: Tensor) -> None:
        self._row = self._target = row
        self._shape: torch.Size | None = None
        self._stride: tuple[int, ...] = ()
        self._source: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._flat = False
        self.count = 0

    def take(self, tensor: Tensor) -> None:
        """Copy the sample of a detached tensor, which is of at most `LONGEST` elements, or of as many in `BLOCKS`."""
        if tensor.shape != self._shape or (self._source is not None and tensor.stride() != self._stride):
            self._plan(tensor)
        if self._source is not None:
            tensor = tensor.as_strided(*self._source)
            if self._flat:
                tensor = _blocks(tensor.reshape(-1))
        self._target.copy_(tensor)

    def _plan(self, tensor: Tensor) -> None:
        self._shape, self._stride = tensor.shape, tensor.stride()
        self._source, self._flat = None, False
        count = tensor.numel()
        shape: tuple[int, ...] = tensor.shape
        if count > LONGEST:
            # What is repeated without memory of its own, as the gradient of a sum is, counts once.
            kept = [pair for pair in zip(self._shape, self._stride, strict=True) if pair[0] > 1 and pair[1] != 0]
            shape, stride = tuple(size for size, _ in kept), tuple(step for _, step in kept)
            count = torch.Size(shape).numel()
            self._source = shape, stride
            if count > LONGEST:
                shape = (BLOCKS, LONGEST // BLOCKS)
                self._flat = not _is_dense(kept)
                if not self._flat:
                    self._source = shape, _block_stride(count)
        self.count = min(count, LONGEST)
        self._row.zero_()
        self._target = self._row[: self.count].view(shape)


@final
class Row:
    """The places of one call of one module: its output, and the gradient there."""

    __slots__ = ("gradient", "group", "number", "output")

    def __init__(self, group: Group, number: int, output: Tensor, gradient: Tensor) -> None:
        self.group = group
        self.number = number
        self.output = Place(output)
        self.gradient = Place(gradient)


@final
class Group:
    """Rows of one device, precision, width and saturating non-linearity, handed out in the order of the calls.

    Args:
        device: Where the samples are.
        dtype: float32, or float64 for samples of float64 tensors.
        width: Elements of a row.
        saturating: The non-linearity in `RELATIVE_SLOPES` whose outputs these are; None for all others.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int, saturating: str | None) -> None:
        self.device, self.dtype, self.width = device, dtype, width
        self._saturating = saturating
        self._chunks: list[Tensor] = []
        self._rows: list[Row] = []
        self._free: list[Row] = []
        self._used = 0
        # On a CPU as many rows at a time as stay in the cache; elsewhere the fewest operations.
        self._together = IN_CACHE // (2 * width) if device.type == "cpu" else MANY
        self.padding_saturates = saturating is not None and bool(
            RELATIVE_SLOPES[saturating](torch.zeros((), device="cpu")) < SLOPE_LEFT
        )

    def row(self) -> Row:
        """Hand out a row."""
        if self._free:
            return self._free.pop()
        if self._used == len(self._rows):
            self._grow(max(FEWEST_ROWS, self._used))
        self._used += 1
        return self._rows[self._used - 1]

    def give_back(self, row: Row) -> None:
        """Take a row back that is not needed any more."""
        self._free.append(row)

    def start_again(self) -> bool:
        """Forget what was handed out, in one buffer from now on; False where nothing was."""
        used, self._used = self._used, 0
        self._free.clear()
        if len(self._chunks) > 1:
            self._chunks.clear()
            self._rows.clear()
            self._grow(used)
        return used > 0

    def _grow(self, count: int) -> None:
        with torch.no_grad():
            chunk = torch.zeros(2, count, self.width, device=self.device, dtype=self.dtype)
            first = len(self._rows)
            pairs = zip(chunk[0].unbind(), chunk[1].unbind(), strict=True)
            self._rows += [Row(self, first + place, output, gradient) for place, (output, gradient) in enumerate(pairs)]
        self._chunks.append(chunk)

    @property
    def used(self) -> int:
        """Rows that were handed out."""
        return self._used

    def statistics(self) -> list[Tensor]:
        """Reduce every row: vectors, row after row, in the order of `FIELDS` within each."""
        return [self._reduced(chunk).reshape(-1) for chunk in self._used_chunks()]

    def _used_chunks(self) -> list[Tensor]:
        left, found = self._used, []
        for chunk in self._chunks:
            if left > 0:
                found += chunk[:, :left].split(self._together, dim=1)
            left -= chunk.shape[1]
        return found

    def _reduced(self, chunk: Tensor) -> Tensor:
        """Reduce a chunk in float32 steps: comparisons that write floats are several times faster than boolean ones."""
        limits = torch.finfo(self.dtype)
        size, marks = chunk.abs(), torch.empty_like(chunk)
        finite = torch.le(size, limits.max, out=marks).sum(-1)
        size.nan_to_num_(0.0, 0.0, 0.0)
        largest = size.amax(-1)
        size /= largest.clamp_min(limits.tiny).unsqueeze(-1)  # so that no square overflows
        output, mark = chunk[0], marks[0]
        zeros = torch.eq(output, 0.0, out=mark).sum(-1)
        saturated = torch.zeros_like(zeros)
        if self._saturating is not None:
            saturated = torch.lt(RELATIVE_SLOPES[self._saturating](output), SLOPE_LEFT, out=mark).sum(-1)
        norm = torch.linalg.vector_norm(size, dim=-1)
        total = torch.copysign(size[0], output, out=mark).sum(-1)
        fields = torch.cat([finite, largest, norm, torch.stack([zeros, saturated, total])])
        return fields.t().to(precise(self.device))


def width_for(count: int) -> int:
    """Give the width of the group for a tensor: a power of two, so that there are few groups.

    Example:
        >>> width_for(3), width_for(65), width_for(1_000_000)
        (16, 128, 4096)
    """
    return LONGEST if count >= LONGEST else max(NARROWEST, 1 << (count - 1).bit_length())


def _is_dense(kept: list[tuple[int, int]]) -> bool:
    """Tell whether sizes and strides fill a stretch of memory without gaps and overlaps, in whatever order."""
    expected = 1
    for size, step in sorted(kept, key=lambda pair: pair[1]):
        if step != expected:
            return False
        expected *= size
    return True


def _block_stride(count: int) -> tuple[int, int]:
    """Spread the blocks: the first begins at the first element, the last ends near the last one."""
    return (count - LONGEST // BLOCKS) // (BLOCKS - 1), 1


def _blocks(flat: Tensor) -> Tensor:
    """Take the blocks of one dimension, whose elements may lie apart."""
    apart = flat.stride(0)
    between, _ = _block_stride(flat.numel())
    return flat.as_strided((BLOCKS, LONGEST // BLOCKS), (between * apart, apart))
