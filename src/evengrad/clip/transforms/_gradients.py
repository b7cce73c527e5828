"""The gradient of a target as real numbers that can be changed in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evengrad.clip.transforms._transform import Target
from evengrad.nouns import SettingError


def values_(target: Target) -> Tensor | None:
    """Return the gradient's numbers, to be changed in place; None where there are none.

    A sparse gradient is coalesced, and its values are returned; complex numbers are seen as pairs. Where that takes a
    copy, `parameter.grad` becomes the copy.

    Raises:
        SettingError: The gradient is of another layout than strided or COO.
    """
    grad = target.parameter.grad
    if grad is None:
        return None
    if grad.is_conj() or (grad.layout is torch.sparse_coo and not grad.is_coalesced()):
        grad = grad.coalesce() if grad.is_sparse else grad.resolve_conj()
        target.parameter.grad = grad
    if grad.layout is torch.sparse_coo:
        grad = grad.values()
    elif grad.layout is not torch.strided:
        raise SettingError(target.name, came=f"a gradient of layout {grad.layout}", wanted="a strided or COO gradient")
    if grad.is_complex():
        grad = torch.view_as_real(grad)
    return grad if grad.numel() else None


def refuse_sparse(who: object, targets: Sequence[Target]) -> None:
    """Refuse sparse gradients, before anything is changed, where what is done would fill them.

    Raises:
        SettingError: A target has one.
    """
    for target in targets:
        grad = target.parameter.grad
        if grad is not None and grad.layout is not torch.strided:
            raise SettingError(
                type(who).__name__,
                came=f"a sparse gradient of {target.name}",
                wanted="dense gradients",
                advice="make its module with sparse=False, or leave the transform out",
            )


def single(tensor: Tensor) -> Tensor:
    """Widen half precision to float32; anything else comes back as it is, not copied."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
