"""What it means to decide a step and to apply the decision: the seam between the guard and the device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from evengrad.guard._outcome import Decided, Given
from evengrad.guard._program import Program


class AbstractApply(ABC):
    """Decide for the gradients as they are, and apply the decision to them and to the optimizer's step."""

    __slots__ = ()

    on_device: bool
    """Whether the decision is made on the device, and the host may not know it."""
    hands_off = False
    """Whether nothing is ever changed: neither gradients nor steps nor buffers."""

    @abstractmethod
    def described(self, program: Program) -> str:
        """Say how it applies a decision and what that waits for, for the guard's repr."""

    @abstractmethod
    def decide(self, program: Program, given: Given, fold: Sequence[Optimizer]) -> Decided:
        """Measure, decide, and change the gradients; a skip leaves every memory as it was.

        Args:
            program: The policies and transforms.
            given: What is known of the step beside its gradients.
            fold: The optimizers that may take the scale in their step instead; empty where the gradients themselves
                are to be clipped when this returns.
        """

    @abstractmethod
    def enter(self, decided: Decided, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step: so that it does nothing when it is to be left out."""

    @abstractmethod
    def leave(self, optimizer: Optimizer) -> None:
        """Clear away what `enter` prepared."""

    @abstractmethod
    def leave_all(self) -> None:
        """Clear away what is prepared, for every optimizer."""


@final
class Held:
    """Gradients that are taken away from an optimizer, so that its step does nothing, whatever optimizer it is."""

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._noted: dict[int, tuple[Optimizer, Callable[[], None]]] = {}
        self._cleared: set[int] = set()

    @property
    def there(self) -> bool:
        """Whether there are any."""
        return bool(self._held)

    def hold(self, optimizer: Optimizer) -> None:
        """Take the gradients of an optimizer's parameters away."""
        self.release(optimizer)
        held = self._held[id(optimizer)] = []
        self._note_zero_grad(optimizer)
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                held.append((parameter, parameter.grad))
                parameter.grad = None

    def release(self, optimizer: Optimizer) -> None:
        """Give them back, all or none: a new gradient means that a backward has come since.

        Not where the optimizer's `zero_grad` was called in the meantime, within the step or by another hook.
        """
        held = self._held.pop(id(optimizer), [])
        _, undo = self._noted.pop(id(optimizer), (None, None))
        if undo is not None:
            undo()
        if id(optimizer) in self._cleared:
            self._cleared.discard(id(optimizer))
        else:
            self._release(held)

    def release_all(self) -> None:
        """Give back those of every optimizer."""
        for optimizer, _ in list(self._noted.values()):
            self.release(optimizer)

    def _note_zero_grad(self, optimizer: Optimizer) -> None:
        """Take note when the loop clears the gradients that it no longer sees."""
        zero_grad, own = optimizer.zero_grad, "zero_grad" in vars(optimizer)

        def noted(*args: Any, **kwargs: Any) -> None:
            self._cleared.add(id(optimizer))
            zero_grad(*args, **kwargs)

        def undo() -> None:
            if own:
                optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
            else:
                vars(optimizer).pop("zero_grad", None)

        optimizer.zero_grad = noted  # type: ignore[method-assign]
        self._noted[id(optimizer)] = (optimizer, undo)

    def _release(self, held: Sequence[tuple[Tensor, Tensor]]) -> None:
        if all(parameter.grad is None for parameter, _ in held):
            for parameter, grad in held:
                parameter.grad = grad
