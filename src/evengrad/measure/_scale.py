"""Multiply gradients and copy tensors in place, many with few operations."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Kind = tuple[torch.device, torch.dtype]


def scale_(grads: Iterable[Tensor | None], factor: float) -> None:
    """Multiply every gradient by one factor, in place.

    Never call it with 0 to leave a step out: 0 times infinity is NaN, and moments and weight decay go on.

    Args:
        grads: Gradients of any device, dtype and layout; None is passed over.
        factor: Finite and positive.

    Cost: One read and write of the gradients; no host synchronisation.

    Example:
        >>> grad = torch.tensor([3.0, 4.0])
        >>> scale_([grad, None], 0.5)
        >>> grad
        tensor([1.5000, 2.0000])
    """
    with torch.no_grad():
        dense, others = _sorted(grads)
        for grad, _ in others:
            grad.mul_(factor)
        # 0-d: made once, where a number is made anew for each tensor
        on_cpu = torch.tensor(factor, dtype=torch.float64)
        for (device, _), alike in dense.items():
            torch._foreach_mul_([grad for grad, _ in alike], on_cpu if device.type == "cpu" else factor)


def scale_each_(grads: Sequence[Tensor | None], factors: Sequence[float]) -> None:
    """Multiply each gradient by its own factor, in place; those with a factor of 1 are not touched.

    Args:
        grads: Gradients of any device, dtype and layout; None is passed over.
        factors: As many, finite and positive.

    Cost: One read and write of the gradients whose factor is not 1; no host synchronisation.

    Example:
        >>> grads = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> scale_each_(grads, [1.0, 0.5])
        >>> grads
        [tensor([3.]), tensor([2.])]
    """
    with torch.no_grad():
        dense, others = _sorted(grad if factor != 1.0 else None for grad, factor in zip(grads, factors, strict=True))
        for grad, place in others:
            grad.mul_(factors[place])
        for alike in dense.values():
            torch._foreach_mul_([grad for grad, _ in alike], [factors[place] for _, place in alike])


def scale_by_(grads: Sequence[Tensor | None], factors: Tensor) -> None:
    """Multiply gradients by factors that are on the device, in place, without reading them on the host.

    Args:
        grads: Gradients of any device, dtype and layout; None is passed over.
        factors: Float32, shape (1,) for one factor for all, or one for each gradient.

    Cost: One read and write of all gradients; no host synchronisation. On an accelerator one launch for a kind of
    gradients with one factor for all, one per gradient otherwise.

    Example:
        >>> grads = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> scale_by_(grads, torch.tensor([0.5, 1.0]))
        >>> grads
        [tensor([1.5000]), tensor([4.])]
    """
    with torch.no_grad():
        dense, others = _sorted(grads)
        each: list[Tensor] | None = None if factors.numel() == 1 else list(factors.unbind())
        one = factors.view(-1)[0]
        for grad, place in others:
            grad.mul_((one if each is None else each[place]).to(grad.device, non_blocking=True))
        for (device, _), alike in dense.items():
            found = [grad for grad, _ in alike]
            if each is None:
                torch._foreach_mul_(found, one.to(device, non_blocking=True))
            else:
                torch._foreach_mul_(found, [each[place].to(device, non_blocking=True) for _, place in alike])


def copy_each_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, in place.

    Args:
        targets: Tensors of any device and dtype.
        sources: As many, of the same shapes.

    Cost: One read and one write of each; no host synchronisation.

    Example:
        >>> kept = [torch.zeros(2)]
        >>> copy_each_(kept, [torch.ones(2)])
        >>> kept
        [tensor([1., 1.])]
    """
    with torch.no_grad():
        torch._foreach_copy_(list(targets), list(sources))


def _sorted(grads: Iterable[Tensor | None]) -> tuple[dict[Kind, list[tuple[Tensor, int]]], list[tuple[Tensor, int]]]:
    """Sort dense gradients by device and dtype, each with its place; the others are listed apart."""
    dense: dict[Any, list[tuple[Tensor, int]]] = defaultdict(list)
    others = []
    for place, grad in enumerate(grads):
        if grad is None:
            continue
        if grad.layout is torch.strided:
            dense[grad.device, grad.dtype].append((grad, place))
        else:
            others.append((grad, place))
    return dense, others
