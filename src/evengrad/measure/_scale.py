"""Multiply gradients in place."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


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
    dense: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    with torch.no_grad():
        for grad in grads:
            if grad is None:
                continue
            if grad.layout is torch.strided:
                dense[grad.device, grad.dtype].append(grad)
            else:
                grad.mul_(factor)
        on_cpu = torch.tensor(
            factor, dtype=torch.float64
        )  # 0-d: made once, where a number is made anew for each tensor
        for (device, _), alike in dense.items():
            if device.type == "cpu":
                torch._foreach_mul_(alike, on_cpu)
            else:
                torch._foreach_mul_(alike, factor)
