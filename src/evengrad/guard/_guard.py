"""The guard itself: hooks, the call seam, and what it remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.guard._blame import Blame
from evengrad.guard._choice import apply_of, watching
from evengrad.guard._gate import Gate
from evengrad.guard._history import History
from evengrad.guard._ledger import Books
from evengrad.guard._log import Log
from evengrad.guard._names import dtype_name, optimizers_of
from evengrad.guard._outcome import Decided
from evengrad.guard._plan import Plan
from evengrad.guard._program import Program, parts_of
from evengrad.guard._rollback import Keeper, Rollback
from evengrad.guard._sampling import Sampling
from evengrad.guard._saved import packed, unpacked
from evengrad.guard._schedule import Every, Schedule
from evengrad.guard._settings import check_settings
from evengrad.guard._skips import Counts
from evengrad.guard._statistics import RunningStatistics
from evengrad.guard._steps import Steps
from evengrad.guard._voice import Voice
from evengrad.nouns import Event, Record

if TYPE_CHECKING:
    import os

    from evengrad.nouns import Finding


@final
class Guard:
    """Guard a training loop against exploding and non-finite gradients; the loop stays as it is.

    Attaches to the optimizer's step hooks. Before each step it measures the norm of every gradient once, lets a policy
    decide, and clips the gradients or leaves the step out. A skipped step leaves weights, moments and step counters
    equal to the bit to never having had it, and the running statistics of normalisation layers as they were after the
    step before; its gradients are in `.grad` afterwards, not finite as they were, for the loop's own `zero_grad` to
    clear. When nothing is clipped the run is equal to the bit to one without.

    All parameters of the optimizers are guarded; those of the model that are in none are not. How a decision is applied
    is chosen by device and optimizer and said in `repr`: on a CPU the host decides, which is free there; on a CUDA
    device with fused optimizers the decision is folded into their kernel and nothing ever waits for the device, and
    what is counted, logged and told comes a few steps late (of running statistics only what is not finite is mended
    then); with other optimizers there the host waits once per step, as a GradScaler does.

    With `step(closure)` the gradients come into being inside the step, where the hook does not see them: call `clip_()`
    in the closure after `backward()`. Under a GradScaler with a fused optimizer nothing else is needed. With any other
    optimizer the scaler does not call `step` on an overflow; the guard counts such a step only where `clip_()` saw it.
    A scaler's overflow is how it looks for its scale: the step counts as skipped, its reading has no gradient norms,
    and it is no finding.

    Args:
        model: Gives the parameters their names.
        optimizer: Any torch optimizer of the model, or several that step after one backward: they are decided together.
            One that is itself wrapped must be the inner one.
        clip: A policy, a number (a threshold as in `clip_grad_norm_`), or a sequence of policies and transforms, in the
            order in which they are to act. None for `ByZScore()`, which needs no threshold; with SGD also
            `ByPolyakStep()`: no step longer than the loss allows, where it is handed over with `guard.loss`. False to
            watch only: nothing is changed and no step left out, whatever its gradients are; `apply` and `rollback` do
            not go with it.
        log: A run directory; one reading per step is written there.
        scaler: The loop's GradScaler; needed where `clip_()` is called (it calls `scaler.unscale_` unless the loop
            has), with several optimizers, and to tell the scaler's overflows from faults with one that is not fused.
        max_consecutive_skips: More skipped steps in a row raise. 100 outlasts a GradScaler that looks for its scale.
        apply: None chooses how decisions are applied. `conditional`: the host decides and multiplies what is clipped.
            `folded`: the device decides, the fused optimizer scales and skips. `foreach`: the device decides and
            multiplies, always.
        rollback: When to go back to the last good weights with a lower learning rate; None never.
        on_event: Called with an `Event` after each step that was clipped, skipped or taken back.
        sample_every_steps: When to look inside, so that the rules for depth, units, weights, data and the loop can
            speak of this run. At a sampled step layers, weights, what the step does to them, the model's input and
            output, the graph of the loss and a gradient that was left over are read from samples of their elements.
            `auto`: each of the first 8 steps, one in 25 to step 100, one in 50 to step 1,000, one in 100 later, and 4
            in a row when something moves: a sampled step takes 1.1 to 1.2 plain ones, and 1.9 where a thousand layers
            are tiny, so that it is about 1 % of the first 200 steps (6 %) and 0.2 % later (1 %). A number: every so
            many steps; None never. On the other steps no hook is on any module. A compiled model shows its layers to a
            number only, for these forwards run eagerly then, which rounds in another way.
        tell: Whether to log what the rules find while the run goes on, each finding once and again when its severity
            changes, on `logging.getLogger("evengrad.guard")`. They judge after 8, 32, 100 and 300 steps (8 and 300 of a
            model with very many layers), then after every 1,000, and after something has moved. What may pass is told
            when two judgements in a row have come to it.

    Raises:
        ModelError: The model has no parameters, or a sharded one.
        OptimizerError: An optimizer holds none of the model's parameters, is guarded already, or cannot fold.
        SettingError: A setting is out of range.
        TooManySkipsError: From `optimizer.step()`: too many steps in a row were skipped.

    Cost: One read of the gradients per step and about 0.1 ms; a read and a write more when something is clipped. Norms
    of the last 1,000 steps, at most 16 MB.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with Guard(model, optimizer) as guard:
        ...     for value in (1.0, float("nan"), 2.0):
        ...         optimizer.zero_grad()
        ...         guard.loss(model(torch.full((1, 2), value)).sum()).backward()
        ...         optimizer.step()
        >>> guard.step, guard.skips, bool(guard.skipped)
        (3, 1, False)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        clip: object = None,
        log: str | os.PathLike[str] | None = None,
        scaler: Any = None,
        max_consecutive_skips: int = 100,
        apply: str | None = None,
        rollback: Rollback | None = None,
        on_event: Callable[[Event], object] | None = None,
        sample_every_steps: Every = "auto",
        tell: bool = True,
    ) -> None:
        optimizers = optimizers_of(model, optimizer)
        check_settings(scaler, max_consecutive_skips, rollback, on_event)
        schedule = Schedule(sample_every_steps)
        parts = parts_of(clip, optimizers)
        back = rollback is not None
        if clip is False:
            way = watching(apply, optimizers, rollback=back)
        else:
            way = apply_of(apply, optimizers, parts, rollback=back)
        plan = Plan(model, optimizers, parts, way)
        most = math.inf if way.hands_off else max_consecutive_skips
        self._books = Books(
            counts=Counts(most, Blame(model, plan.names), on_event),
            history=History(len(plan.names)),
            log=None if log is None else Log(log, plan.names, dtype_name(plan.program.parameters), plan.setup),
            statistics=None if way.hands_off else RunningStatistics(model, plan.program.parameters),
            keeper=None if rollback is None else Keeper(rollback, model, optimizers),
            sampling=Sampling(model, schedule),
            voice=Voice(tell=tell),
            scaled=scaler is not None,
        )
        self._steps = Steps(plan, scaler, self._books, self)

    def loss(self, loss: Tensor) -> Tensor:
        """Hand over the loss of the coming step, for the reading and for policies that judge it; returns it unchanged.

        The loss itself, not its part: where gradients are accumulated, before it is divided. Hand it over before its
        backward: at a sampled step its graph is looked at.

        Where no loss is handed over the reading holds what is found by itself: what the backwards began with whose
        gradients the step sees, divided by a GradScaler's scale. Of accumulated gradients and of several losses that is
        the sum. Policies see only what is handed over.

        Args:
            loss: A scalar; a copy is kept on its device, not waited for.

        Raises:
            LossError: It is not a scalar.

        Example:
            `guard.loss(criterion(output, target)).backward()`
        """
        self._steps.hand_over(loss)
        return loss

    def clip_(self) -> Tensor:
        """Clip now, between backward (and unscale) and step: a drop-in for `clip_grad_norm_(parameters, max_norm)`.

        The step that follows is not measured again, and is left out when the norm is not finite. Call it once per step;
        inside a closure after each backward.

        Returns:
            The total norm before clipping, of the kind that the first policy bounds: 0-d float32 on the parameters'
            device; NaN or infinite when it is.

        Raises:
            OptimizerError: The guard is detached.
        """
        return self._norm(self._steps.clip_())

    @property
    def skipped(self) -> Tensor:
        """Whether the last step was left out: a 0-d bool tensor on the parameters' device; False before the first."""
        last = self._steps.in_force
        if last is not None and last.skip is not None:
            return last.skip != 0
        return torch.full((), last is not None and last.known_skipped(), device=self._steps.plan.device)

    @property
    def last_norm(self) -> Tensor:
        """The total norm of the last step before clipping, as `clip_` returns it; NaN before the first."""
        last = self._steps.in_force
        return self._norm(last) if last is not None else self._number(math.nan)

    @property
    def skips(self) -> int:
        """How many steps were left out; where the device decides, it is waited for."""
        return self.counts().skips

    @property
    def clips(self) -> int:
        """How many steps were clipped; where the device decides, it is waited for."""
        return self.counts().clips

    def counts(self, *, wait: bool = True) -> Counts:
        """Return what was counted.

        Args:
            wait: Whether to wait for the device where it decides; otherwise the last steps may not be counted yet.
        """
        self._steps.ledger.drain(wait=wait)
        return self._books.counts

    @property
    def step(self) -> int:
        """How many optimizer steps went by, skipped ones included."""
        return self._steps.count

    @property
    def record(self) -> Record:
        """The first 32 steps and the last 1,000 (fewer where there are very many parameters) as readings.

        Cost: On an accelerator it waits for the device.
        """
        self._steps.ledger.drain(wait=True)
        return self._steps.record()

    def findings(self) -> tuple[Finding, ...]:
        """Return what the rules say about the first 32 steps and the last 1,000.

        Cost: On an accelerator it waits for the device.
        """
        from evengrad.diagnose import findings_of

        return tuple(findings_of(self.record))

    def gate(self, scheduler: Any) -> Gate:
        """Keep a learning-rate schedule from advancing on skipped steps: `scheduler = guard.gate(scheduler)`.

        For schedules that are stepped once after each optimizer step; one that is stepped per epoch needs none.

        Args:
            scheduler: Anything with a `step()`; all else of it is reached through the gate too.

        Raises:
            SettingError: It has no `step`.

        Cost: Where the device decides, each `step()` waits for it: the host has to know.
        """
        return Gate(scheduler, lambda: self._steps.begun, lambda: bool(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """Return what the guard remembers, for a checkpoint; `torch.load(weights_only=True)` reads it.

        The window of the last steps and the snapshots of a rollback are not part of it.
        """
        self._steps.ledger.drain(wait=True)
        counts = {
            "step": self._steps.count,
            "skips": self._books.counts.skips,
            "skips_in_row": self._books.counts.in_a_row,
            "clips": self._books.counts.clips,
            "rollbacks": 0 if self._books.keeper is None else self._books.keeper.count,
        }
        return packed(self._program, counts, self._steps.lr_factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another guard was when its `state_dict()` was taken, equal to the bit.

        Args:
            state_dict: From a guard with the same kinds of policies and transforms; settings may differ, but for the
                sizes of windows. Numbers for each parameter are matched by name; parameters that it does not know start
                afresh.

        Raises:
            SettingError: It is of another version, other policies or another model, or not a guard's.
        """
        states, counts, lr_factor = unpacked(state_dict, self._program)
        self._steps.ledger.drain(wait=True)
        self._program.states, self._steps.count = states, counts["step"]
        self._books.counts.skips, self._books.counts.in_a_row = counts["skips"], counts["skips_in_row"]
        self._books.counts.clips = counts["clips"]
        if self._books.keeper is not None:
            self._books.keeper.start_anew(counts["rollbacks"])
        self._steps.forget(lr_factor)
        self._books.sampling.schedule.start(counts["step"])
        if self._books.statistics is not None:
            self._books.statistics.keep()

    def detach(self) -> None:
        """Remove the hooks, give back what is held, end the log; a second call does nothing."""
        self._detach(ended=True)

    def _detach(self, *, ended: bool) -> None:
        if not self._steps.attached:
            return
        self._books.counts.close()
        if self._books.statistics is not None:
            self._books.statistics.end()
        try:
            self._steps.detach()
        finally:
            if self._books.log is not None:
                self._books.log.close(ended=ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detach(ended=kind is None)

    def __repr__(self) -> str:
        way = self._steps.plan.apply
        does = "watching only" if way.hands_off else self._program.described()
        return (
            f"Guard({does}, {len(self._steps.plan.names)} parameters, "
            f"{way.described(self._program)}; step={self.step}, skips={self._books.counts.skips}, "
            f"clips={self._books.counts.clips}{'' if self._steps.attached else ', detached'})"
        )

    @property
    def _program(self) -> Program:
        return self._steps.plan.program

    def _norm(self, decided: Decided) -> Tensor:
        if decided.packed is not None:
            return decided.packed.norm()
        return self._number(math.nan if decided.outcome is None else decided.outcome.norm)

    def _number(self, value: float) -> Tensor:
        if abs(value) > torch.finfo(torch.float32).max:
            value = math.copysign(math.inf, value)
        return torch.full((), value, dtype=torch.float32, device=self._steps.plan.device)
