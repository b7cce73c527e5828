"""Guard every optimizer of a program that knows nothing of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from evengrad.guard._guard import Guard
from evengrad.guard._models_in_memory import ModelsInMemory
from evengrad.guard._program import parts_of
from evengrad.guard._settings import has_closure
from evengrad.guard._skips import LOGGER
from evengrad.guard._steps import guard_of
from evengrad.nouns import EvengradError, RunLogError, SettingError, printable

if TYPE_CHECKING:
    import os

MOST_LINES = 6  # of a summary


@dataclass(kw_only=True, slots=True)
class _Watch:
    """What is known of one optimizer; counts stay when it and its guard are gone."""

    title: str
    guard: weakref.ref[Guard] | None = None
    log: Path | None = None
    why_not: str = ""
    counts: _Counts


@dataclass(kw_only=True, slots=True)
class _Counts:
    steps: int = 0
    clipped: int = 0
    skipped: int = 0
    unseen: int = 0


@final
class Everywhere:
    """Guard every torch optimizer that steps while this context is open; the program stays as it is.

    An optimizer is met at its first step, through torch's global optimizer hooks, and gets a `Guard` of its own before
    that step. Names of parameters come from the models in memory. Left alone are an optimizer that has a guard, one
    that steps inside the step of a guarded one for the same parameters, and one that the guard refuses: that is said in
    one line on `logging.getLogger("evengrad.guard")`, and the program goes on.

    A step with a closure (LBFGS, Lightning's automatic optimization) makes its gradients where no hook sees them: it is
    done, counted as not guarded, and warned of once. A step inside `torch.compile` is not seen either.

    Args:
        clip: As for `Guard`; `ByGlobalNorm(math.inf)` skips only.
        log: A run directory for the first optimizer; that of the second ends in `-2`, and so on. One that cannot be
            written to is said in one line, and the optimizer is guarded without it.
        max_consecutive_skips: As for `Guard`: more skipped steps of one optimizer in a row raise from its step.

    Raises:
        SettingError: A setting is out of range.

    Cost: That of a guard for each optimizer; 3 microseconds a step; at an optimizer's first step a walk over all
        objects in memory, 0.1 s for 300,000.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> with Everywhere(clip=1.0) as everywhere:
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     model(torch.full((1, 2), 9.0)).sum().backward()
        ...     optimizer.step()
        >>> everywhere.summary
        'SGD of Linear: 1 step, 1 clipped, 0 skipped'
    """

    def __init__(
        self,
        *,
        clip: object = None,
        log: str | os.PathLike[str] | None = None,
        max_consecutive_skips: int = 100,
    ) -> None:
        parts_of(clip, ())  # refuses what is none
        self._clip = clip
        whole = isinstance(max_consecutive_skips, int) and not isinstance(max_consecutive_skips, bool)
        if not whole or max_consecutive_skips < 0:
            came = repr(max_consecutive_skips)
            raise SettingError("max_consecutive_skips", came=came, wanted="a whole number from 0")
        self._log = None if log is None else Path(log).absolute()  # a program may change its working directory
        self._max_consecutive_skips = max_consecutive_skips
        self._watches: weakref.WeakKeyDictionary[Optimizer, _Watch] = weakref.WeakKeyDictionary()
        self._all: list[_Watch] = []
        self._stepping: list[weakref.ref[Optimizer]] = []
        self._models = ModelsInMemory()
        self._hooks: list[Any] = []
        self._rank = 0

    def __enter__(self) -> Self:
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        whole = kind is None or (isinstance(error, SystemExit) and not error.code)
        for watch in self._all:
            guard = watch.guard() if watch.guard is not None else None
            if guard is not None:
                _close(watch, guard, None if whole else error)

    @property
    def rank(self) -> int:
        """The process's rank when the last optimizer was met: at the end its process group may be gone."""
        return self._rank

    @property
    def summary(self) -> str:
        """What was guarded, a line for each of the first optimizers, without a line break at the end."""
        if not self._all:
            return "no step of a torch optimizer was seen: nothing was guarded"
        lines = [_line(watch) for watch in self._all[:MOST_LINES]]
        rest = [watch.counts for watch in self._all[MOST_LINES:]]
        if rest:
            steps, clipped, skipped = (
                sum(numbers) for numbers in zip(*((one.steps, one.clipped, one.skipped) for one in rest), strict=True)
            )
            lines.append(f"and {len(rest)} more optimizers: {steps} steps, {clipped} clipped, {skipped} skipped")
        return "\n".join(lines)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if optimizer not in self._watches:
            self._watches[optimizer] = watch = self._met(optimizer)
            self._all.append(watch)
        self._stepping.append(weakref.ref(optimizer))

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        self._step_ended(optimizer)
        watch = self._watches.get(optimizer)
        guard = watch.guard() if watch is not None and watch.guard is not None else None
        if watch is not None and guard is not None:
            watch.counts.unseen += has_closure(args, kwargs)
            _count(watch.counts, guard, wait=False)

    def _step_ended(self, optimizer: Optimizer) -> None:
        """Forget the step, and those inside it that an error has ended."""
        for place, reference in enumerate(self._stepping):
            if reference() is optimizer:
                del self._stepping[place:]
                return

    def _met(self, optimizer: Optimizer) -> _Watch:
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if there else 0
        watch = _Watch(title=type(optimizer).__name__, counts=_Counts())
        outer = self._outer(optimizer)
        if guard_of(optimizer) is not None:
            watch.why_not = "left alone: it has a guard of its own"
        elif outer is not None:
            watch.why_not = f"left to the guard of {type(outer).__name__}, in whose step it steps"
        else:
            try:
                self._guard(optimizer, watch)
            except Exception as err:  # the program shall not end by what was to protect it
                watch.why_not = f"not guarded: {_in_one_line(err)}"
                LOGGER.warning("%s: %s", watch.title, watch.why_not)
        return watch

    def _guard(self, optimizer: Optimizer, watch: _Watch) -> None:
        model, title = self._models.naming(optimizer)
        watch.title = f"{watch.title} of {title}"
        settings: dict[str, Any] = {"clip": self._clip, "max_consecutive_skips": self._max_consecutive_skips}
        try:
            log = self._next_log()
            guard = Guard(model, optimizer, log=log, **settings)
            watch.log = log
        except RunLogError as err:
            LOGGER.warning("%s is guarded without a run log: %s", watch.title, _in_one_line(err))
            guard = Guard(model, optimizer, **settings)
        watch.guard = weakref.ref(guard)

    def _outer(self, optimizer: Optimizer) -> Optimizer | None:
        """Find a guarded optimizer in whose step this one steps, for parameters that both hold."""
        own = _parameters(optimizer)
        for reference in self._stepping:
            outer = reference()
            if outer is not None and guard_of(outer) is not None and own & _parameters(outer):
                return outer
        return None

    def _next_log(self) -> Path | None:
        if self._log is None:
            return None
        number = 1 + sum(watch.guard is not None for watch in self._all)
        return self._log if number == 1 else self._log.with_name(f"{self._log.name}-{number}")


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _count(counts: _Counts, guard: Guard, *, wait: bool) -> None:
    """Take over what a guard has counted; without a wait that may lack its last steps on an accelerator."""
    known = guard.counts(wait=wait)
    counts.steps, counts.clipped, counts.skipped = guard.step, known.clips, known.skips


def _close(watch: _Watch, guard: Guard, error: BaseException | None) -> None:
    """End a guard; an error of steps that the device had not told of yet comes too late to end the program."""
    try:
        guard.__exit__(type(error) if error is not None else None, error, None)
    except EvengradError as late:
        LOGGER.warning("%s: %s", watch.title, _in_one_line(late))
    _count(watch.counts, guard, wait=True)


def _in_one_line(err: Exception) -> str:
    kind = "" if isinstance(err, EvengradError) else f"{type(err).__name__}: "
    return printable(" ".join(f"{kind}{err}".split()))


def _line(watch: _Watch) -> str:
    if watch.why_not:
        return f"{watch.title}: {watch.why_not}"
    counts = watch.counts
    steps = f"{counts.steps} step{'s' * (counts.steps != 1)}"
    line = f"{watch.title}: {steps}, {counts.clipped} clipped, {counts.skipped} skipped"
    if counts.unseen:
        line += f", {counts.unseen} not guarded (step with a closure)"
    return line + (f"; log: {watch.log}" if watch.log else "")
