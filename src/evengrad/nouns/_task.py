"""A task: everything needed to train a model from scratch, as factories that a user writes in ten lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from evengrad.nouns._errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Describe a training so that it can be started afresh as often as needed.

    Each member is a factory or a function, so that every trial starts from the same seed and never from weights that
    an earlier one broke.

    Args:
        model: Makes a fresh model; draws its weights from torch's global random state, which the trial has seeded.
        optimizer: Makes the optimizer for a model.
        loss: `loss(model(input), target)`, a scalar tensor. An input that is a tuple is spread over the model's
            arguments, a mapping over its keyword arguments (`output_of`).
        train: Makes the training batches, (input, target) each: the same sequence at every call. Starts again from the
            front when it is exhausted before `steps`.
        validate: The metric of a trained model as a float, higher is better. The model is in evaluation mode and
            gradients are off.
        steps: Optimizer steps of one full training.
        schedule: Makes a learning-rate scheduler for the optimizer; stepped after every optimizer step.
        after_step: Called with the model after every optimizer step: weight constraints, moving averages.
        clip: A clip policy, a number (global norm), or None for no clipping.
        name: What to call the task in reports.

    Raises:
        SettingError: A member is not callable, or steps is not positive.
    """

    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    loss: Callable[[Any, Any], Tensor]
    train: Callable[[], Iterable[tuple[Any, Any]]]
    validate: Callable[[nn.Module], float]
    steps: int
    schedule: Callable[[Optimizer], Any] | None = None
    after_step: Callable[[nn.Module], None] | None = None
    clip: Any = None
    name: str = "task"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in {"steps", "clip", "name"} or (value is None and field.name in {"schedule", "after_step"}):
                continue
            if not callable(value):
                raise SettingError(
                    f"Task.{field.name}",
                    came=f"{type(value).__name__}, which cannot be called",
                    wanted="a function",
                    advice=f"write {field.name}=lambda ...: ...",
                )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SettingError("Task.steps", came=repr(self.steps), wanted="a positive whole number")


def output_of(model: Callable[..., Any], data: Any) -> Any:
    """Call a model on the input of a batch, the same way wherever one is called.

    A mapping gives keyword arguments, a tuple gives positional ones; a named tuple, a list and everything else is one
    argument.

    Example:
        >>> output_of(max, (1, 2)), output_of(max, [1, 2]), output_of(dict, {"a": 1})
        (2, 2, {'a': 1})
    """
    if isinstance(data, Mapping):
        return model(**data)
    if isinstance(data, tuple) and not hasattr(data, "_fields"):
        return model(*data)
    return model(data)
