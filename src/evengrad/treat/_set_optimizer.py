"""Set single options of the optimizer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, ClassVar, final

from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks
from evengrad.treat._optimizer_of import optimizer_of

# What a group of an optimizer calls each option; beta2 is a part of a pair.
OPTIONS = ("eps", "momentum", "weight_decay", "betas")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdjustedOptimizer:
    """Make an optimizer and set options of all its groups; can be pickled if the factory can."""

    factory: Callable[[nn.Module], Optimizer]
    options: tuple[tuple[str, float], ...]

    def __call__(self, model: nn.Module) -> Optimizer:
        optimizer = self.factory(model)
        changed = _changed(optimizer.param_groups, dict(self.options))
        for group, new in zip(optimizer.param_groups, changed, strict=True):
            group.update(new)
        return optimizer


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SetOptimizer(AbstractTreatment):
    """Set single options of the optimizer of a copy of the task, in every parameter group; the others stay.

    Without any setting, epsilon, momentum, weight decay and betas become the defaults of the optimizer's class, as far
    as it has them and they differ.

    Args:
        eps: What is added to the denominator of an adaptive step, 0 or more. 1e-8 is what Adam's authors used.
        momentum: Share of the last direction that is kept, in [0, 1).
        weight_decay: 0 or more. Where only some groups have any, only theirs is set.
        beta2: How long the mean of squared gradients remembers, in [0, 1); the first of the two betas stays.

    Raises:
        SettingError: A number is out of range.

    Example:
        >>> SetOptimizer(eps=1e-8, beta2=0.95).label
        'SetOptimizer(eps=1e-08, beta2=0.95)'

    Source:
        Kingma and Ba 2015, arXiv 1412.6980, section 2 (defaults); Sutskever et al. 2013 (momentum).
    """

    eps: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    beta2: float | None = None

    effort: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "a setting of the optimizer"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            below = 1.0 if field.name in {"momentum", "beta2"} else float("inf")
            if value is not None and not (isfinite(value) and 0 <= value < below):
                wanted = "0 or more and below 1" if below == 1.0 else "0 or a positive finite number"
                raise SettingError(field.name, came=repr(value), wanted=f"{wanted}, or None")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no optimizer."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no optimizer."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Set the options in a copy of the task: `AbstractTreatment.treat_task`."""
        optimizer = optimizer_of(task, task.optimizer, seed)
        options = self._options(optimizer)
        groups = [dict(group) for group in optimizer.param_groups]
        said = _said(groups, _changed(groups, options))
        if not said:
            raise TreatmentError(
                self.label, came=f"{type(optimizer).__name__} with these settings", wanted="settings that change it"
            )
        factory = AdjustedOptimizer(factory=task.optimizer, options=tuple(options.items()))
        return Treated(subject=replace(task, optimizer=factory), changes=said, code=_code(options))

    def _options(self, optimizer: Optimizer) -> dict[str, float]:
        """Return the options to set, by our names.

        Raises:
            TreatmentError: The optimizer lacks one that was asked for.
        """
        asked = {field.name: getattr(self, field.name) for field in fields(self)}
        asked = {name: float(value) for name, value in asked.items() if value is not None}
        if not asked:
            return _defaults(optimizer)
        for name in asked:
            key = "betas" if name == "beta2" else name
            if not any(key in group for group in optimizer.param_groups):
                raise TreatmentError(
                    self.label, came=f"{type(optimizer).__name__}, which has no {key}", wanted="an optimizer with it"
                )
        return asked


def _defaults(optimizer: Optimizer) -> dict[str, float]:
    """Read the defaults from the signature of the optimizer's class; 0 for a momentum that was left out."""
    parameters = inspect.signature(type(optimizer).__init__).parameters
    found: dict[str, float] = {}
    for key in OPTIONS:
        default = parameters[key].default if key in parameters else None
        if key == "betas" and isinstance(default, tuple):
            found |= {"beta1": float(default[0]), "beta2": float(default[1])}
        elif isinstance(default, int | float) and not isinstance(default, bool):
            found[key] = float(default)
    return found


def _changed(groups: Sequence[Mapping[str, Any]], options: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return what the options make of each group; where only some groups have weight decay, only theirs is set."""
    decaying = any(group.get("weight_decay", 0) for group in groups)
    changed: list[dict[str, Any]] = []
    for group in groups:
        new: dict[str, Any] = {key: value for key, value in options.items() if key in group}
        if decaying and not group.get("weight_decay", 0):
            new.pop("weight_decay", None)
        if "betas" in group:
            one, two = group["betas"]
            new["betas"] = (options.get("beta1", one), options.get("beta2", two))
        changed.append(new)
    return changed


def _said(groups: list[dict[str, Any]], changed: list[dict[str, Any]]) -> tuple[str, ...]:
    pairs = [
        f"{key} {group[key]} -> {value}"
        for group, new in zip(groups, changed, strict=True)
        for key, value in new.items()
        if group[key] != value
    ]
    return tuple(f"optimizer: {pair}" for pair in dict.fromkeys(pairs))


def _code(options: Mapping[str, float]) -> str:
    lines = ["# right after the optimizer is made"]
    if "weight_decay" in options:
        lines.append("decaying = any(group['weight_decay'] for group in optimizer.param_groups)")
    lines.append("for group in optimizer.param_groups:")
    for key, value in options.items():
        if key == "weight_decay":
            lines.append("    if group['weight_decay'] or not decaying:")
            lines.append(f"        group['weight_decay'] = {value!r}")
        elif key not in {"beta1", "beta2"}:
            lines.append(f"    group[{key!r}] = {value!r}")
    if "beta1" in options:
        lines.append(f"    group['betas'] = ({options['beta1']!r}, {options['beta2']!r})")
    elif "beta2" in options:
        lines.append(f"    group['betas'] = (group['betas'][0], {options['beta2']!r})")
    return "\n".join(lines)
