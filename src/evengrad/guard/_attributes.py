"""The two attributes through which a fused optimizer takes a scale and a skip."""

from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from evengrad.guard._outcome import Decided

NAMES = ("grad_scale", "found_inf")
FOLDING = (Adam, AdamW, SGD, Adagrad)  # exactly these: others ignore the attributes, and step on bad gradients
ABSENT = object()


def can_fold(optimizer: Optimizer) -> bool:
    """Whether an optimizer's fused kernel takes a scale and a skip."""
    return (
        type(optimizer) in FOLDING
        and getattr(optimizer, "_step_supports_amp_scaling", False) is True
        and all(group.get("fused") is True for group in optimizer.param_groups)
    )


def can_fold_now(optimizer: Optimizer) -> bool:
    """Whether it does in the coming step.

    Fused SGD makes its momentum from memory that nobody has written, and a step that is skipped then leaves it so:
    seen in torch 2.6 to 2.15. So not before every momentum is there.
    """
    if not can_fold(optimizer):
        return False
    if type(optimizer) is not SGD:
        return True
    return not any(
        group["momentum"] and optimizer.state.get(parameter, {}).get("momentum_buffer") is None
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    )


def grad_scale_of(decided: Decided, optimizer: Optimizer) -> Tensor | None:
    """Return what an optimizer is to divide by: a scaler's scale and ours."""
    there: Tensor | None = None if decided.unscaled else getattr(optimizer, "grad_scale", None)
    if decided.by is None:
        return there
    return decided.by if there is None else decided.by * there.to(decided.by)


@final
class Attributes:
    """Set an optimizer's attributes for one step, and put back what was there: a GradScaler deletes them itself."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Optimizer, dict[str, Any], dict[str, Any]]] = {}

    @property
    def there(self) -> bool:
        """Whether any are set."""
        return bool(self._before)

    def set(self, optimizer: Optimizer, **values: Tensor | None) -> None:
        """Set attributes of an optimizer, until `restore`."""
        before = {name: optimizer.__dict__.get(name, ABSENT) for name in values}
        for name, value in values.items():
            setattr(optimizer, name, value)
        self._before[id(optimizer)] = (optimizer, before, values)

    def restore(self, optimizer: Optimizer) -> None:
        """Put back what was there; what somebody else has set since stays."""
        _, before, values = self._before.pop(id(optimizer), (optimizer, {}, {}))
        for name, value in before.items():
            if optimizer.__dict__.get(name, ABSENT) is not values[name]:
                continue
            if value is ABSENT:
                delattr(optimizer, name)
            else:
                setattr(optimizer, name, value)

    def restore_all(self) -> None:
        """Put back what was there in every optimizer."""
        for optimizer, _, _ in list(self._before.values()):
            self.restore(optimizer)


def relaid(optimizer: Optimizer) -> int:
    """Lay out gradients as their parameters are, where a fused kernel would read them in the wrong order.

    torch's fused kernels on a CPU go through the memory of a gradient as if it were laid out as its parameter is, and
    update wrong elements without a word where it is not; on CUDA they raise (pytorch issue 106951).

    Returns:
        How many there were.
    """
    count = 0
    for group in optimizer.param_groups:
        if not group.get("fused"):
            continue
        params = group["params"]
        grads = [grad for parameter in params if (grad := parameter.grad) is not None]
        if all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, params)):
            continue  # nearly always; asked in this way because there may be thousands
        for parameter in params:
            grad = parameter.grad
            if grad is None or (grad.is_contiguous() and parameter.is_contiguous()):
                continue
            if grad.stride() != parameter.stride() and grad.layout is torch.strided:
                fresh = torch.empty_like(parameter, dtype=grad.dtype, memory_format=torch.preserve_format)
                parameter.grad = fresh.copy_(grad)
                count += 1
    return count
