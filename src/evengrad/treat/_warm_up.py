"""Begin with small steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from evengrad.nouns import SettingError, Task, TreatmentError, called
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks
from evengrad.treat._optimizer_of import lrs_of, optimizer_of

SHARE = 0.1
FEWEST_STEPS = 10
# A schedule that begins below this share of the optimizer's own rate warms up by itself.
STARTS_LOW = 0.5


class WarmedUp:
    """Step a scheduler and hold the learning rate down for the first steps; the scheduler does not see that."""

    def __init__(self, optimizer: Optimizer, inner: Any, steps: int) -> None:
        self.optimizer, self.inner, self.steps, self.done = optimizer, inner, steps, 0
        self._hold_down()

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the scheduler on the rates that it had set."""
        if self.done < self.steps:
            for group, lr in zip(self.optimizer.param_groups, self._wanted, strict=True):
                group["lr"] = lr
        if self.inner is not None:
            self.inner.step(*args, **kwargs)
        self.done += 1
        self._hold_down()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler and of the warm-up."""
        inner = None if self.inner is None else self.inner.state_dict()
        return {"inner": inner, "done": self.done, "wanted": self._wanted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; the learning rates of the optimizer come with the optimizer's own."""
        self.done, self._wanted = state["done"], state["wanted"]
        if self.inner is not None:
            self.inner.load_state_dict(state["inner"])

    def _hold_down(self) -> None:
        part = (self.done + 1) / self.steps
        self._wanted = [group["lr"] for group in self.optimizer.param_groups]
        if part < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * part


class WarmedUpOnPlateau(WarmedUp, ReduceLROnPlateau):
    """Hold the rate down in front of a scheduler that is stepped with a metric, so that it is seen to be one."""

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class WarmedSchedule:
    """Make the scheduler of a task and hold its first rates down; can be pickled if the factory can."""

    factory: Callable[[Optimizer], Any] | None
    steps: int

    def __call__(self, optimizer: Optimizer) -> Any:
        inner = None if self.factory is None else self.factory(optimizer)
        kind = WarmedUpOnPlateau if isinstance(inner, ReduceLROnPlateau) else WarmedUp
        return kind(optimizer, inner, self.steps)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp(AbstractTreatment):
    """Let the learning rate rise in a straight line over the first steps, in a copy of the task.

    At step k of n it is (k + 1) / n of what it would be; from step n - 1 on nothing is changed. A schedule of the task
    goes on as before, and what it sets is what is held down. One that warms up by itself is refused: `OneCycleLR`, and
    any that begins below half of the optimizer's rate.

    Args:
        steps: How many, at least 2. None for a tenth of the task's steps, at least 10. Adam's mean of squared gradients
            needs 2 / (1 - beta2), which is 2,000 steps at the usual 0.999: more than short trainings have.

    Raises:
        SettingError: It is not a whole number of at least 2.

    Example:
        >>> WarmUp(steps=100).label
        'WarmUp(steps=100)'

    Source:
        Goyal et al. 2017, arXiv 1706.02677, section 2.2; Ma and Yarats 2021, arXiv 1910.04209, equation 9.
    """

    steps: int | None = None

    effort: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "first steps that are too large"

    def __post_init__(self) -> None:
        if self.steps is not None and (isinstance(self.steps, bool) or self.steps != int(self.steps) or self.steps < 2):
            raise SettingError("steps", came=repr(self.steps), wanted="a whole number of at least 2, or None")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no learning rate."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no learning rate."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Warm a copy of the task up: `AbstractTreatment.treat_task`."""
        steps = max(FEWEST_STEPS, round(SHARE * task.steps)) if self.steps is None else int(self.steps)
        optimizer = optimizer_of(task, task.optimizer, seed)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        said = lrs_of(optimizer)
        self._want_no_warm_up(task, optimizer, rates)
        return Treated(
            subject=replace(task, schedule=WarmedSchedule(factory=task.schedule, steps=steps)),
            changes=(f"the learning rate rises to {said} over the first {steps} steps, from 1/{steps} of it",),
            code=_code(steps, alone=task.schedule is None),
        )

    def _want_no_warm_up(self, task: Task, optimizer: Optimizer, rates: list[float]) -> None:
        if task.schedule is None:
            return
        schedule = called("Task.schedule", partial(task.schedule, optimizer), wanted="a scheduler")
        first = [float(group["lr"]) for group in optimizer.param_groups]
        low = any(now < STARTS_LOW * rate for now, rate in zip(first, rates, strict=True))
        if low or isinstance(schedule, OneCycleLR | WarmedUp):
            raise TreatmentError(
                self.label, came=f"a schedule that warms up by itself: {type(schedule).__name__}", wanted="one without"
            )


def _code(steps: int, *, alone: bool) -> str:
    if alone:
        return (
            f"warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / {steps}))\n"
            "# after each optimizer.step(): warm_up.step()"
        )
    return (
        f"ramp = iter(range(1, {steps}))\n"
        "\n\n"
        "def hold_down(optimizer, args, kwargs):\n"
        f"    part = next(ramp, {steps}) / {steps}\n"
        "    for group in optimizer.param_groups:\n"
        "        group['wanted_lr'] = group['lr']\n"
        "        group['lr'] = group['lr'] * part\n"
        "\n\n"
        "def let_go(optimizer, args, kwargs):\n"
        "    for group in optimizer.param_groups:\n"
        "        group['lr'] = group.pop('wanted_lr')\n"
        "\n\n"
        "optimizer.register_step_pre_hook(hold_down)\n"
        "optimizer.register_step_post_hook(let_go)"
    )
