"""Learning rates that hold for one step only."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer


@final
class Rates:
    """Change learning rates within a step and put them back after it, whoever changed them."""

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], Any]] = []

    def enter(self, optimizers: Sequence[Optimizer], factor: float) -> None:
        """Put back what an earlier call has changed, remember the learning rates of optimizers, and multiply them."""
        self.leave()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                lr = group.get("lr")
                if lr is not None:
                    if factor != 1.0:
                        group["lr"] = lr * factor
                    self._before.append((group, lr))

    def leave(self) -> None:
        """Put them back."""
        before, self._before = self._before, []
        for group, lr in before:
            group["lr"] = lr


def rates(optimizers: Sequence[Optimizer], factor: float) -> tuple[Any, ...]:
    """Take the learning rate of every group, times a factor; a copy where one is a tensor, which changes in place."""
    values = [group.get("lr", float("nan")) for optimizer in optimizers for group in optimizer.param_groups]
    return tuple(value.detach() * factor if isinstance(value, Tensor) else value * factor for value in values)
