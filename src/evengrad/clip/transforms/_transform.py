"""What a transform is: a change of gradients before the optimizer's step, or of weights after it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

Memory = dict[str, Tensor]
"""What a transform remembers: named tensors. What belongs to a parameter is called `what:parameter name`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A parameter that is guarded, and where it belongs.

    Args:
        name: Its dotted name in the model, or its place in the optimizer where the model does not know it.
        parameter: The parameter itself; its gradient is `parameter.grad`.
        module: The module that owns it; None where the model does not know it.
        last: Whether its module is the model's last with a weight of two or more dimensions: the output layer.
        optimizer: The optimizer that steps it.
        group: Its parameter group.
    """

    name: str
    parameter: Tensor
    module: nn.Module | None
    last: bool
    optimizer: Optimizer
    group: dict[str, Any]


class AbstractTransform(ABC):
    """Change gradients in place before the optimizer's step, or weights in place after it.

    A transform holds settings only; its memory is what it is handed and hands back, in new tensors: a step that is
    skipped after all keeps the old memory. It runs without autograd and never waits for the device.

    It is not called for steps that are known to be skipped. Where the decision stays on the device nobody knows, and it
    is called on gradients that may not be finite, of a step that the optimizer then leaves out: a transform for which
    that matters sets `needs_host`.
    """

    __slots__ = ()

    needs_host: ClassVar[bool]
    """Whether it must know that the step is not skipped: it has a memory, draws random numbers, or touches more than
    gradients before the step. The guard then decides on the host."""

    @abstractmethod
    def init(self, targets: Sequence[Target]) -> Memory:
        """Make the memory before the first step; called again when parameters are added.

        Raises:
            OptimizerError: It cannot work with an optimizer of these targets.
            SettingError: A setting does not fit these targets.
        """

    @abstractmethod
    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Change gradients in place; a target without a gradient is passed over.

        It may also change the optimizer's memory, and set `target.group["lr"]` to a new value for this one step: the
        guard puts the old one back afterwards.

        Returns:
            The memory for the next step; the one that came is left as it was.
        """

    @abstractmethod
    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Change weights in place after the optimizer's step."""
