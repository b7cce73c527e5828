"""One decision for all optimizers of a guard: which of them have made their step under it."""

import weakref
from collections.abc import Sequence
from typing import final

from torch import Tensor
from torch.optim import Optimizer

from evengrad.guard._outcome import Decided


@final
class Round:
    """A decision, and the optimizers whose step under it has not come yet.

    With several optimizers the gradients of those that step later may change in between (a loop that runs a backward
    for each): then the decision is not for them.

    Args:
        decided: The decision.
        optimizers: All optimizers.
    """

    __slots__ = ("_count", "_marks", "_stepped", "_waiting", "decided")

    def __init__(self, decided: Decided, optimizers: Sequence[Optimizer]) -> None:
        self.decided = decided
        self._waiting = list(optimizers)
        self._count = len(self._waiting)
        self._stepped = 0
        several = len(self._waiting) > 1
        self._marks = {id(optimizer): _marks(optimizer) for optimizer in self._waiting} if several else {}

    def is_for(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer's coming step is under this decision."""
        if not any(waiting is optimizer for waiting in self._waiting):
            return False
        return not self._marks or _are(self._marks[id(optimizer)], optimizer)

    def enter(self, optimizer: Optimizer) -> None:
        """Take note that an optimizer's step begins; one that then raises is not under this decision again."""
        self._waiting = [waiting for waiting in self._waiting if waiting is not optimizer]

    def leave(self) -> None:
        """Take note that a step has been made."""
        self._stepped += 1

    @property
    def complete(self) -> bool:
        """Whether every optimizer has made its step."""
        return not self._waiting

    @property
    def begun(self) -> bool:
        """Whether one has."""
        return self._stepped > 0

    @property
    def untouched(self) -> bool:
        """Whether none has begun one."""
        return len(self._waiting) == self._count


Mark = tuple["weakref.ref[Tensor]", int] | None


def _marks(optimizer: Optimizer) -> list[Mark]:
    """Mark the gradients of an optimizer: which tensors (an address may be used again), and how often written to."""
    grads = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return [None if grad is None else (weakref.ref(grad), grad._version) for grad in grads]


def _are(marks: list[Mark], optimizer: Optimizer) -> bool:
    """Whether an optimizer's gradients are still those that were marked."""
    grads = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    return len(grads) == len(marks) and all(map(_is, grads, marks))


def _is(grad: Tensor | None, mark: Mark) -> bool:
    if grad is None or mark is None:
        return grad is None and mark is None
    return mark[0]() is grad and mark[1] == grad._version
