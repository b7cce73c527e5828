"""Learning rates that hold for one step only."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]


@final
class Rates:
    """Put learning rates back that were changed for one step, except where somebody else has set another since."""

    def __init__(self) -> None:
        self._seen: list[tuple[Group, Any]] = []
        self._changed: list[tuple[Group, Any, Any]] = []

    def watch(self, optimizers: Sequence[Optimizer]) -> None:
        """Remember the learning rates as they are."""
        self._seen = [(group, group["lr"]) for one in optimizers for group in one.param_groups if "lr" in group]

    def changed(self) -> None:
        """Take note of those that are others now."""
        for group, before in self._seen:
            if group["lr"] is not before:
                self._changed.append((group, before, group["lr"]))
        self._seen = []

    def multiply(self, optimizer: Optimizer, factor: float) -> None:
        """Multiply an optimizer's learning rates."""
        if factor != 1.0:
            self.watch([optimizer])
            for group, lr in self._seen:
                group["lr"] = lr * factor
            self.changed()

    def leave(self) -> None:
        """Put back what was changed, the last first."""
        changed, self._changed = self._changed, []
        for group, before, ours in reversed(changed):
            if group["lr"] is ours:
                group["lr"] = before


def rates(optimizers: Sequence[Optimizer], factor: float) -> tuple[Any, ...]:
    """Take the learning rate of every group, times a factor; a copy where one is a tensor, which changes in place."""
    values = [group.get("lr", float("nan")) for optimizer in optimizers for group in optimizer.param_groups]
    return tuple(value.detach() * factor if isinstance(value, Tensor) else value * factor for value in values)
