"""Learning rates that hold for one step only."""

from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer


@final
class Rates:
    """Change learning rates within a step and put them back after it, whoever changed them."""

    def __init__(self) -> None:
        self._before: dict[int, list[tuple[dict[str, Any], Any]]] = {}

    def enter(self, optimizer: Optimizer, factor: float) -> None:
        """Remember an optimizer's learning rates, and multiply them."""
        self.leave(optimizer)
        kept = []
        for group in optimizer.param_groups:
            lr = group.get("lr")
            if lr is not None:
                if factor != 1.0:
                    group["lr"] = lr * factor
                kept.append((group, lr))
        self._before[id(optimizer)] = kept

    def leave(self, optimizer: Optimizer) -> None:
        """Put them back."""
        for group, lr in self._before.pop(id(optimizer), []):
            group["lr"] = lr


def rates(optimizers: list[Optimizer], factor: float) -> tuple[Any, ...]:
    """Take the learning rate of every group, times a factor; a copy where one is a tensor, which changes in place."""
    values = [group.get("lr", float("nan")) for optimizer in optimizers for group in optimizer.param_groups]
    return tuple(value.detach() * factor if isinstance(value, Tensor) else value * factor for value in values)
