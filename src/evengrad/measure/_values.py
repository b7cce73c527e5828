"""One gradient of any kind as real numbers in a line."""

import torch
from torch import Tensor

ROW = 256
"""Elements that are summed without a break. torch adds squares up in a few float32 lanes: on gradients of one sign its
norm is off by 3e-6 at 4,096 elements, 3e-5 at 32,768 and 2e-3 at 38 million; with rows of 256 by 3e-7 at any size."""


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to accumulate a tensor in: float32 or wider."""
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32


def values(grad: Tensor, *, moduli: bool = False) -> Tensor:
    """Return the values of a gradient as real numbers; a sparse one is coalesced first.

    Args:
        grad: Any layout and dtype.
        moduli: The absolute value of complex numbers instead of their two parts; the same to the Euclidean norm only.
    """
    if grad.layout is torch.sparse_coo:
        grad = grad.coalesce().values()
    elif grad.layout is not torch.strided:
        grad = grad.values() if "sparse" in str(grad.layout) else grad.to_dense()
    if not grad.is_complex():
        return grad
    return grad.abs() if moduli else torch.view_as_real(grad.resolve_conj())


def flat(tensor: Tensor) -> Tensor:
    """View as one dimension in the order of memory; a copy only where the memory has gaps or overlaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)
