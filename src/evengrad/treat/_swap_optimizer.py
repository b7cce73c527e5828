"""Train with another optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, Literal, final

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks
from evengrad.treat._optimizer_of import lrs_of, optimizer_of

Kind = Literal["adamw", "adam", "sgd", "rmsprop", "nadam", "radam", "adagrad"]

_CLASSES: dict[str, type[Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
}
_DEFAULT_LRS = {
    "adamw": 1e-3,
    "adam": 1e-3,
    "sgd": 1e-2,
    "rmsprop": 1e-2,
    "nadam": 2e-3,
    "radam": 1e-3,
    "adagrad": 1e-2,
}
# Adam and its kin move a weight by about their rate in a step and no further, whatever the gradient. So a short
# training needs a higher one: that with which a weight can get this far in all steps, up to ten times torch's default.
# Of distances from 1 to 10 the best one on the clinic's programs (benchmarks/adam_rate.py).
_OF_ADAMS_KIND = frozenset({"adamw", "adam", "nadam", "radam"})
DISTANCE = 2.0
MOST_TIMES = 10.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SwappedOptimizer:
    """Make an optimizer, and another over the same parameter groups; can be pickled if the factory can."""

    factory: Callable[[nn.Module], Optimizer]
    to: str
    lr: float

    def __call__(self, model: nn.Module) -> Optimizer:
        groups = [
            {
                "params": group["params"],
                "weight_decay": group.get("weight_decay", 0.0),
                "maximize": group.get("maximize", False),
            }
            for group in self.factory(model).param_groups
        ]
        make: Callable[..., Optimizer] = _CLASSES[self.to]
        return make(groups, lr=self.lr, **_extra(self.to))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SwapOptimizer(AbstractTreatment):
    """Replace the optimizer in a copy of the task.

    The new one has the same parameter groups, each with its weight decay (0 if it had none, not the new optimizer's
    default) and direction. Learning rates are not kept: one that suits plain gradient descent does not suit Adam. All
    other settings are torch's defaults, except that SGD has momentum 0.9.

    Args:
        to: The optimizer. AdamW, because its step does not depend on the scale of the gradient.
        lr: The learning rate of all groups. None for torch's default (0.001 for Adam, 0.01 for SGD), which for Adam and
            its kin is raised in a short training, up to ten times, until a weight can move by 2 in all steps.

    Raises:
        SettingError: The optimizer is unknown, or the rate is not a positive finite number.

    Example:
        >>> SwapOptimizer(to="sgd", lr=0.1).label
        "SwapOptimizer(to='sgd', lr=0.1)"
    """

    to: Kind = "adamw"
    lr: float | None = None

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "the optimizer"

    def __post_init__(self) -> None:
        if self.to not in _CLASSES:
            raise SettingError("to", came=repr(self.to), wanted=f"one of {', '.join(_CLASSES)}")
        if self.lr is not None and not (self.lr > 0 and isfinite(self.lr)):
            raise SettingError("lr", came=repr(self.lr), wanted="a positive finite number, or None")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no optimizer."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no optimizer."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Replace the optimizer of a copy of the task: `AbstractTreatment.treat_task`."""
        lr = default_lr(self.to, task.steps) if self.lr is None else self.lr
        factory = SwappedOptimizer(factory=task.optimizer, to=self.to, lr=lr)
        before = optimizer_of(task, task.optimizer, seed)
        after = optimizer_of(task, factory, seed)
        usual = {lrs_of(after)} | ({f"{_DEFAULT_LRS[self.to]:.4g}"} if self.lr is None else set())
        if type(before) is type(after) and lrs_of(before) in usual:  # at another rate of its own it is no other
            raise TreatmentError(
                self.label, came=f"a task with {_said(before)}", wanted="another optimizer or learning rate"
            )
        return Treated(
            subject=replace(task, optimizer=factory),
            changes=(f"optimizer {_said(before)} -> {_said(after)}; weight decay as before",),
            code=_code(self.to, lr),
        )


def default_lr(to: str, steps: int) -> float:
    """Choose the learning rate of a training of so many optimizer steps.

    Example:
        >>> [default_lr("adamw", steps) for steps in (50, 440, 100_000)], default_lr("sgd", 50)
        ([0.01, 0.0045, 0.001], 0.01)
    """
    usual = _DEFAULT_LRS[to]
    if to not in _OF_ADAMS_KIND:
        return usual
    return min(MOST_TIMES * usual, max(usual, float(f"{DISTANCE / steps:.2g}")))


def _extra(to: str) -> dict[str, float]:
    return {"momentum": 0.9} if to == "sgd" else {}


def _said(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__name__} with learning rate {lrs_of(optimizer)}"


def _code(to: str, lr: float) -> str:
    extra = "".join(f", {key}={value!r}" for key, value in _extra(to).items())
    return (
        "groups = [\n"
        "    {\n"
        "        'params': group['params'],\n"
        "        'weight_decay': group.get('weight_decay', 0.0),\n"
        "        'maximize': group.get('maximize', False),\n"
        "    }\n"
        "    for group in optimizer.param_groups\n"
        "]\n"
        f"optimizer = torch.optim.{_CLASSES[to].__name__}(groups, lr={lr!r}{extra})"
    )
