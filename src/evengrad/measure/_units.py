"""Norms of the units of tensors: rows, columns, whole tensors; and multiplying unit by unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from evengrad.measure._values import ROW, wide

SMALL = 2**15  # elements up to which copying a tensor into a stack is cheaper than dispatches of its own
BLOCK = 2**19  # elements that are handled at a time: they stay in the cache until they are read


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor is cut into units: seen with four dimensions, a unit is an index of the first and the third.

    With `(U, 1, 1, L)` the units are the rows of a matrix, with `(1, L, U, 1)` its columns; with `(1, 1, 1, L)` the
    tensor is one unit. A transposed convolution with groups is `(groups, inputs, outputs, taps)`.

    Args:
        sizes: Of the four dimensions; their product is the number of elements.

    Example:
        >>> Cut((2, 1, 1, 3)).units, Cut((2, 1, 1, 3)).spread(torch.ones(1, 2), 2).shape
        (2, torch.Size([1, 2, 1]))
    """

    sizes: tuple[int, int, int, int]

    @property
    def units(self) -> int:
        """How many units there are."""
        return self.sizes[0] * self.sizes[2]

    def spread(self, numbers: Tensor, dims: int) -> Tensor:
        """Shape numbers, one per unit, so that they broadcast against the tensors.

        Args:
            numbers: Shape (tensors, units).
            dims: Of each tensor.

        Returns:
            Shape (tensors, ...), with `dims` dimensions after the first.
        """
        outer, inside, units, _ = self.sizes
        if outer > 1 and inside > 1:  # the same numbers for every input channel of a group
            numbers = numbers.view(-1, outer, 1, units).expand(-1, -1, inside, -1)
            outer *= inside
        sizes = (outer, units, *(1,) * (dims - 2))
        return numbers.reshape(numbers.shape[0], *(sizes if dims > 1 else sizes[:dims]))


@torch.no_grad()
def unit_norms(tensors: Sequence[Tensor], cut: Cut) -> Tensor:
    """Measure the Euclidean norm of every unit of tensors of one shape, dtype and device.

    Accumulates in float32 or wider, in rows of 256 elements, so that units of any length keep 1e-6 relative accuracy.
    NaN and infinity stay in their unit; so does an overflow (a float32 norm above 1.8e19 is infinite).

    Args:
        tensors: At least one; strided, any strides, floating-point or complex (both parts count).
        cut: How each of them is cut.

    Returns:
        Shape (tensors, units), float32; float64 for float64 and complex128.

    Cost: One read of the tensors, a copy of at most half a million elements where they are small; no host
    synchronisation.

    Example:
        >>> unit_norms([torch.tensor([[3.0, 4.0], [0.0, 1.0]])], Cut((2, 1, 1, 2)))
        tensor([[5., 1.]])
    """
    tensors = [_real(tensor) for tensor in tensors]
    first = tensors[0]
    numel = first.numel()
    if numel == 0 or cut.units == 0:
        return torch.zeros((len(tensors), cut.units), dtype=wide(first), device=first.device)
    _, inside, units, _ = cut.sizes
    if inside == 1 or units == 1:
        squares = _stacked(tensors, cut.units) if numel <= SMALL and len(tensors) > 1 else _rows(tensors, cut)
    else:
        squares = torch.stack([_columns(tensor, cut) for tensor in tensors])
    return squares.sqrt_()


@torch.no_grad()
def scale_units_(tensors: Sequence[Tensor], scales: Tensor, cut: Cut) -> None:
    """Multiply every unit of tensors of one shape by a number of its own, in place.

    On a CPU, tensors whose numbers are all 1 are not touched; on an accelerator all are multiplied, so as not to wait
    for it. A number of 1 leaves its unit equal to the bit.

    Args:
        tensors: Strided, any strides, floating-point or complex.
        scales: Shape (tensors, units).
        cut: How each tensor is cut.

    Cost: A read and a write of what is multiplied; one dispatch for each tensor; no host synchronisation.

    Example:
        >>> tensor = torch.ones(2, 2)
        >>> scale_units_([tensor], torch.tensor([[0.5, 1.0]]), Cut((2, 1, 1, 2)))
        >>> tensor
        tensor([[0.5000, 0.5000],
                [1.0000, 1.0000]])
    """
    if not tensors or tensors[0].numel() == 0:
        return
    if scales.device.type == "cpu":
        hit = (scales != 1).any(1).tolist()  # host memory: reading it waits for nothing
        if not all(hit):
            tensors = [tensor for tensor, one in zip(tensors, hit, strict=True) if one]
            scales = scales[torch.tensor(hit)]
    if not tensors:
        return
    factors = cut.spread(scales, tensors[0].dim())
    torch._foreach_mul_(list(tensors), list(factors.unbind()))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _stacked(tensors: Sequence[Tensor], units: int) -> Tensor:
    """Square the norms of small tensors, copied side by side, block by block."""
    first = tensors[0]
    block = min(len(tensors), max(1, BLOCK // 2 // first.numel()))
    buffer = torch.empty((block, *first.shape), dtype=first.dtype, device=first.device)
    pieces = []
    for start in range(0, len(tensors), block):
        part = tensors[start : start + block]
        rows = torch.stack(list(part), out=buffer[: len(part)]).view(len(part) * units, -1)
        pieces.append(_squares(rows).view(len(part), units))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rows(tensors: Sequence[Tensor], cut: Cut) -> Tensor:
    return torch.stack([_squares(_flat(tensor, cut)) for tensor in tensors])


def _squares(rows: Tensor) -> Tensor:
    """Square the norms of rows: in pieces of 256, since torch adds up long ones in a few float32 lanes."""
    length = rows.shape[1]
    whole = length - length % ROW
    if whole <= ROW:
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=wide(rows))
        short: Tensor = norms * norms
        return short
    pieces = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, ROW)), dim=2, dtype=wide(rows))
    squares: Tensor = (pieces * pieces).sum(1)
    if whole < length:
        tail = torch.linalg.vector_norm(rows[:, whole:], dim=1, dtype=wide(rows))
        squares += tail * tail
    return squares


def _flat(tensor: Tensor, cut: Cut) -> Tensor:
    """View as a matrix with a unit in each row, in the order of memory; a copy only where a unit lies scattered."""
    if tensor.is_contiguous():
        return tensor.view(cut.units, -1)
    first = 0 if cut.units == 1 else 1 if cut.sizes[2] == 1 else 2  # dimensions that tell units apart
    inner = sorted(range(first, tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(*range(first), *inner).reshape(cut.units, -1)


def _columns(tensor: Tensor, cut: Cut) -> Tensor:
    """Square the norms of columns, shape (units,), a block of rows at a time."""
    outer, inside, units, _ = cut.sizes
    seen = tensor.reshape(outer, inside, units, -1)
    if seen.shape[3] > 1:
        return _squares(seen.permute(0, 2, 1, 3).reshape(outer * units, -1))
    matrix = seen[..., 0]
    if tensor.device.type == "cpu" and tensor.dtype == wide(tensor):
        return _columns_on_host(matrix)
    step = max(1, min(inside, BLOCK // (outer * units)))
    total = torch.zeros((outer, units), dtype=wide(tensor), device=tensor.device)
    for start in range(0, inside, step):
        total += matrix[:, start : start + step].to(wide(tensor)).square().sum(1)
    return total.view(-1)


def _columns_on_host(matrix: Tensor) -> Tensor:
    """As `_columns`, in 0.6 of the time, for squares are not written down; 256 rows at a time stay accurate."""
    rows = matrix.detach().numpy()
    total = np.zeros((rows.shape[0], rows.shape[2]))
    with np.errstate(all="ignore"):
        for start in range(0, rows.shape[1], ROW):
            part = rows[:, start : start + ROW]
            total += np.einsum("oiu,oiu->ou", part, part)
        return torch.from_numpy(total.astype(rows.dtype, copy=False)).view(-1)
