"""A task: everything needed to train a model from scratch, as factories that a user writes in ten lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from evengrad.nouns._errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


FUNCTIONS = frozenset({"model", "optimizer", "loss", "train", "validate", "schedule", "after_step"})


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
        accumulate: Batches whose gradients are averaged into one optimizer step.
        autocast: `bfloat16` or `float16`: forward and loss run under torch's autocast with this type; None for neither.
        loss_scale: What the loss is multiplied with before backward; the gradients are divided by it before anything
            looks at them, and a step whose gradients are not finite is skipped. `dynamic` starts at 65536, halves after
            such a step and doubles after 2,000 good ones, as torch's `GradScaler`; None for no scale.
        resources: What one trial needs on a cluster: `num_cpus`, `num_gpus`, `memory` (bytes) or a resource's own name.
        name: What to call the task in reports.

    Raises:
        SettingError: A member is not callable, or a number is out of range.
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
    accumulate: int = 1
    autocast: Literal["bfloat16", "float16"] | None = None
    loss_scale: float | Literal["dynamic"] | None = None
    resources: tuple[tuple[str, float], ...] = ()
    name: str = "task"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in FUNCTIONS or (value is None and field.name in {"schedule", "after_step"}):
                continue
            if not callable(value):
                raise SettingError(
                    f"Task.{field.name}",
                    came=f"{type(value).__name__}, which cannot be called",
                    wanted="a function",
                    advice=f"write {field.name}=lambda ...: ...",
                )
        for name in ("steps", "accumulate"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise SettingError(f"Task.{name}", came=repr(number), wanted="a positive whole number")
        if self.autocast not in {None, "bfloat16", "float16"}:
            raise SettingError("Task.autocast", came=repr(self.autocast), wanted="'bfloat16', 'float16' or None")
        if not _is_scale(self.loss_scale):
            raise SettingError(
                "Task.loss_scale", came=repr(self.loss_scale), wanted="a positive finite number, 'dynamic' or None"
            )
        _want_resources(self.resources)


def _is_scale(value: Any) -> bool:
    if value is None or value == "dynamic":
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and isfinite(value)


def _want_resources(resources: Any) -> None:
    pairs = isinstance(resources, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in resources)
    if not pairs or not all(isinstance(name, str) and amount >= 0 for name, amount in resources):
        raise SettingError(
            "Task.resources", came=repr(resources)[:200], wanted="pairs (name, amount)", advice="(('num_gpus', 1),)"
        )


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
