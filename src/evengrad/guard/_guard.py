"""The guard itself: hooks, the call seam, and what it remembers."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.clip import policy_of
from evengrad.guard._apply import Measured, OnHost, Outcome, overflowed
from evengrad.guard._history import History, Row, rates
from evengrad.guard._log import Log
from evengrad.guard._names import check, dtype_name, groups, named, regrouped
from evengrad.guard._saved import Memory, carried, packed, unpacked
from evengrad.guard._skips import Skips
from evengrad.measure import Norms
from evengrad.nouns import LossError, OptimizerError, Record, SettingError, UnguardedStepWarning

if TYPE_CHECKING:
    import os

    from evengrad.nouns import Finding


@final
class Guard:
    """Guard a training loop against exploding and non-finite gradients; the loop stays as it is.

    Attaches to the optimizer's step hooks. Before each step it measures the norm of every gradient once, lets a policy
    decide, and clips the gradients in place or leaves the step out. A skipped step leaves weights, moments and step
    counters equal to the bit to never having had it; its gradients are back in `.grad` afterwards, not finite as they
    were, for the loop's own `zero_grad` to clear. When nothing is clipped the run is equal to the bit to one without.

    All parameters of the optimizer are guarded; those of the model that are not in the optimizer are not. On a CPU the
    decision is free; on an accelerator it waits for the device once per step, as a GradScaler does.

    With `step(closure)` the gradients come into being inside the step, where the hook does not see them: call `clip_()`
    in the closure after `backward()`. Under a GradScaler with a fused optimizer nothing else is needed. With any other
    optimizer the scaler does not call `step` on an overflow; the guard counts such a step only where `clip_()` saw it.
    A scaler's overflow is how it looks for its scale: the step counts as skipped, its reading has no gradient norms,
    and it is no finding.

    Args:
        model: Gives the parameters their names.
        optimizer: Any torch optimizer of the model. One that is itself wrapped must be the inner one.
        clip: A policy, a number (a threshold as in `clip_grad_norm_`), or None for `ByZScore()`, which needs none.
        log: A run directory; one reading per step is written there.
        scaler: The loop's GradScaler; needed only where `clip_()` is called: it calls `scaler.unscale_` unless the loop
            has, and tells the scaler's overflows from faults also where the optimizer is not fused.
        max_consecutive_skips: More skipped steps in a row raise. 100 outlasts a GradScaler that looks for its scale.

    Raises:
        ModelError: The model has no parameters, or a sharded one.
        OptimizerError: The optimizer holds none of the model's parameters, or is guarded already.
        SettingError: A setting is out of range.
        TooManySkipsError: From `optimizer.step()`: too many steps in a row were skipped.

    Cost: One read of the gradients per step and about 0.1 ms; a read and a write more when something is clipped. On a
    CPU that is 0.2 (1,000 small tensors) to 0.7 (a 10M transformer) of what `clip_grad_norm_` adds to the optimizer's
    step, and 0.7 to 1.2 of it on steps that are clipped. Norms of the last 1,000 steps, at most 16 MB.

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
        optimizer: Optimizer,
        *,
        clip: object = None,
        log: str | os.PathLike[str] | None = None,
        scaler: Any = None,
        max_consecutive_skips: int = 100,
    ) -> None:
        check(model, optimizer)
        _check_settings(optimizer, scaler, max_consecutive_skips)
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._policy = policy_of(clip)
        self._apply = OnHost()
        self._skips = Skips(max_consecutive_skips)
        self._step = 0
        self._loss: Tensor | float | None = None
        self._last: Outcome | None = None
        self._pending: Outcome | None = None  # decided by clip_(), its step has not come yet
        self._current: Outcome | None = None  # in force in the step that is going on
        self._inside = False  # a step with a closure is going on
        self._warned = False
        self._plan()
        self._state = self._policy.init(len(self._names))
        self._history = History(len(self._names))
        self._log = None if log is None else Log(log, self._names, dtype_name(self._parameters))
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def loss(self, loss: Tensor) -> Tensor:
        """Hand over the loss of the coming step, for the reading; returns it unchanged.

        Args:
            loss: A scalar; a copy is kept on its device, not waited for.

        Raises:
            LossError: It is not a scalar.

        Example:
            `guard.loss(criterion(output, target)).backward()`
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise LossError(
                    "loss", came=f"shape {tuple(loss.shape)}", wanted="a scalar", advice="reduce it: .mean()"
                )
            self._loss = loss.detach().clone()  # a replayed CUDA graph writes its loss in place
        else:
            try:
                self._loss = float(loss)
            except (TypeError, ValueError) as err:
                raise LossError("loss", came=type(loss).__name__, wanted="a scalar tensor or a number") from err
        return loss

    def clip_(self) -> Tensor:
        """Clip now, between backward (and unscale) and step: a drop-in for `clip_grad_norm_(parameters, max_norm)`.

        The step that follows is not measured again, and is left out when the norm is not finite. Call it once per step;
        inside a closure after each backward.

        Returns:
            The total norm before clipping, 0-d float32 on the parameters' device; NaN or infinite when it is.

        Raises:
            OptimizerError: The guard is detached.
        """
        if not self._hooks:
            raise OptimizerError("guard", came="a detached one", wanted="an attached one", advice="make a new Guard")
        if not self._inside:
            self._apply.release()
            self._close_unstepped()
        if self._scaling:
            _unscale(self._scaler, self._optimizer)
        outcome = self._decided()
        self._apply.scale(outcome, self._parameters)
        if self._inside:
            self._current = outcome
            if outcome.skipped:
                self._apply.hold(self._parameters)
        else:
            self._pending = outcome
        return self._on_device(outcome.total)

    @property
    def skipped(self) -> Tensor:
        """Whether the last step was left out: a 0-d bool tensor on the parameters' device; False before the first."""
        return torch.full((), bool(self._last and self._last.skipped), device=self._parameters[0].device)

    @property
    def last_norm(self) -> Tensor:
        """The total norm of the last step before clipping, 0-d float32; NaN before the first."""
        return self._on_device(self._last.total if self._last else math.nan)

    @property
    def skips(self) -> int:
        """How many steps were left out."""
        return self._skips.total

    @property
    def step(self) -> int:
        """How many optimizer steps went by, skipped ones included."""
        return self._step

    @property
    def record(self) -> Record:
        """The last steps (at most 1,000) as readings.

        Cost: On an accelerator it waits for the device.
        """
        return self._history.record(self._names, dtype_name(self._parameters))

    def findings(self) -> tuple[Finding, ...]:
        """Return what the rules say about the last steps (at most 1,000).

        Cost: On an accelerator it waits for the device.
        """
        from evengrad.diagnose import findings_of

        return tuple(findings_of(self.record))

    def state_dict(self) -> dict[str, Any]:
        """Return what the guard remembers, for a checkpoint; `torch.load(weights_only=True)` reads it.

        The window of the last steps is not part of it.
        """
        return packed(
            Memory(
                policy=self._policy,
                names=self._names,
                state=self._state,
                step=self._step,
                skips=self._skips.total,
                skips_in_row=self._skips.in_a_row,
            )
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another guard was when its `state_dict()` was taken, equal to the bit.

        Args:
            state_dict: From a guard with the same kind of policy; settings may differ. Per-parameter numbers are
                matched by name; parameters that it does not know start afresh.

        Raises:
            SettingError: It is of a newer version or another policy, or not a guard's.
        """
        memory = unpacked(state_dict, self._policy, self._names)
        self._state, self._step = memory.state, memory.step
        self._skips.total, self._skips.in_a_row = memory.skips, memory.skips_in_row
        self._pending = None

    def detach(self) -> None:
        """Remove the hooks, give back held gradients, end the log; a second call does nothing."""
        self._detach(ended=True)

    def _detach(self, *, ended: bool) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._apply.release()
        try:
            self._close_unstepped()
        finally:
            if self._log is not None:
                self._log.close(ended=ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detach(ended=kind is None)

    def __repr__(self) -> str:
        return (
            f"Guard({self._policy!r}, {len(self._names)} parameters, decides {self._apply.cost}; "
            f"step={self._step}, skips={self.skips}{'' if self._hooks else ', detached'})"
        )

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._apply.release()  # what a step that raised has left behind
        self._inside, self._current = False, None
        if (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None:
            self._inside = True
        elif self._pending is None:
            outcome = self._decided(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
            self._apply.scale(outcome, self._parameters)
            self._current = outcome
        else:
            self._current = self._pending
            if self._pending.skipped and overflowed(getattr(optimizer, "found_inf", None)):
                self._current = replace(self._pending, overflow=True)
        self._pending = None
        if self._current is not None and self._current.skipped:
            self._apply.hold(self._parameters)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outcome, self._current, self._inside = self._current, None, False
        self._apply.release()
        self._close(outcome)
        if outcome is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(optimizer).__name__}.step(closure) makes its gradients inside the step, where the guard cannot "
                "see them: call guard.clip_() in the closure, after backward()",
                UnguardedStepWarning,
                stacklevel=3,
            )

    @property
    def _scaling(self) -> bool:
        return self._scaler is not None and bool(self._scaler.is_enabled())

    def _decided(self, grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> Outcome:
        if regrouped(self._groups, self._optimizer):
            old_names = self._names
            self._plan()
            self._state = carried(self._state, old_names, self._policy, self._names)
        measured = Measured(squared=self._norms.squared(), grad_scale=grad_scale, found_inf=found_inf)
        outcome = self._apply.decide(measured, self._policy, self._state)
        self._state = outcome.state
        return outcome

    def _close_unstepped(self) -> None:
        """Close a decision of `clip_()` that no step followed: a GradScaler has left the step out on an overflow.

        Where the guard knows of no scaler, it may as well be the loop that has left the step out, for a fault.
        """
        outcome, self._pending = self._pending, None
        if outcome is not None and outcome.skipped:
            self._close(replace(outcome, overflow=self._scaling))

    def _close(self, outcome: Outcome | None) -> None:
        row = Row(step=self._step, loss=self._loss, lrs=rates(self._optimizer.param_groups), outcome=outcome)
        self._loss, self._last = None, outcome
        self._step += 1
        self._history.append(row)
        if self._log is not None:
            self._log.append(row)
        self._skips.note(outcome, row.step, self._names)

    def _plan(self) -> None:
        parameters = named(self._model, self._optimizer)
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._groups = groups(self._optimizer)
        self._norms = Norms(self._parameters)

    def _on_device(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float32, device=self._parameters[0].device)


def _check_settings(optimizer: Optimizer, scaler: Any, max_consecutive_skips: object) -> None:
    whole = isinstance(max_consecutive_skips, int) and not isinstance(max_consecutive_skips, bool)
    if not whole or max_consecutive_skips < 0:  # type: ignore[operator]
        raise SettingError("max_consecutive_skips", came=repr(max_consecutive_skips), wanted="a whole number from 0")
    if scaler is not None and not (hasattr(scaler, "unscale_") and hasattr(scaler, "is_enabled")):
        raise SettingError("scaler", came=type(scaler).__name__, wanted="a torch.amp.GradScaler or None")
    for hook in getattr(optimizer, "_optimizer_step_pre_hooks", {}).values():
        if isinstance(getattr(hook, "__self__", None), Guard):
            raise OptimizerError(
                "optimizer", came="one with a guard", wanted="one without", advice="call detach() on the other guard"
            )


def _unscale(scaler: Any, optimizer: Optimizer) -> None:
    """Unscale the gradients unless the loop has; a scaler says only by raising that it has."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as err:
        if "already been called" not in str(err):
            raise
