"""The seams between a guard and the loop: the optimizers' step hooks, and the call in between."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from evengrad.guard._attributes import relaid
from evengrad.guard._found_loss import FoundLoss
from evengrad.guard._history import Row
from evengrad.guard._ledger import Books, Ledger
from evengrad.guard._names import dtype_name
from evengrad.guard._outcome import Decided, Given, is_search
from evengrad.guard._plan import Plan
from evengrad.guard._rates import Rates, rates
from evengrad.guard._rounds import Round
from evengrad.guard._sent import Sent
from evengrad.guard._settings import (
    averaged,
    found_inf_of,
    has_closure,
    is_nested,
    loss_of,
    owner,
    scaler_that_calls,
    still_scaled,
    unscale,
)
from evengrad.guard._skips import LOGGER
from evengrad.nouns import OptimizerError, Record, SettingError, UnguardedStepWarning

MANY_LOSSES = 20  # of which none was followed by a step: a loop that was interrupted sooner may yet have stepped


@final
class Steps:
    """Decide once per step, see the optimizers through it, and close it.

    Args:
        plan: What is guarded and how.
        scaler: The loop's GradScaler; None for none.
        books: Where steps are written down.
        guard: Whose seams these are; the optimizers' hooks keep it alive.

    Raises:
        OptimizerError: An optimizer is guarded already.
    """

    def __init__(self, plan: Plan, scaler: Any, books: Books, guard: object) -> None:
        if any(guard_of(optimizer) is not None for optimizer in plan.optimizers):
            advice = "call detach() on the other guard"
            raise OptimizerError("optimizer", came="one with a guard", wanted="one without", advice=advice)
        self.plan, self.guard = plan, guard
        self.count = 0
        self.begun = 0  # steps of optimizers, those within a round and those that raised too
        self._lr_factor = 1.0
        self._evaluations = 0  # of the closure of the step that is going on
        self.loss: Tensor | float | None = None
        self._handed = 0  # losses that were handed over
        self.last: Decided | None = None
        self.ledger = Ledger(books, plan.copied, plan.restore, self.record)
        self._scaler, self._keeper, self._sampling = scaler, books.keeper, books.sampling
        self._met: Any = None  # a GradScaler that calls, where none was given
        self._asked = scaler is not None  # whether one is known to call, or not to
        self._found_loss = FoundLoss(plan.program.parameters)
        self._found: float | Sent | None = None  # the loss of the step that has not gone by yet
        self._round: Round | None = None  # a decision whose steps have not all come yet
        self._inside: Optimizer | None = None  # in whose step with a closure we are
        self._in_closure: Decided | None = None
        self._stepping: list[Optimizer] = []  # in whose step we are, or were when it raised
        self._nested = 0  # steps inside of the step of the same optimizer
        self._warned = self._said_relaid = False
        self._rates = Rates()
        before, after = (torch.compiler.disable(hook) for hook in (self.before, self.after))
        self._hooks = [one.register_step_pre_hook(before) for one in plan.optimizers]
        self._hooks += [one.register_step_post_hook(after) for one in plan.optimizers]
        self._sampling.begin(0, plan.program)
        plan.watch()

    @property
    def attached(self) -> bool:
        """Whether the hooks are there."""
        return bool(self._hooks)

    def detach(self) -> None:
        """Remove the hooks, clear away what is held, close what is open."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._sampling.end()
        self._found_loss.pause()
        self.plan.apply.leave_all()
        self._finish_unstepped()
        self.ledger.drain(wait=True)
        self._look(ends=True)
        if not self.count and not self.begun and self._handed >= MANY_LOSSES:
            names = " + ".join(type(optimizer).__name__ for optimizer in self.plan.optimizers)
            said = "%d losses were handed over, and no step of %s was seen"
            LOGGER.warning(said + ": is another optimizer stepping, or is step() missing?", self._handed, names)

    def hand_over(self, loss: Tensor) -> None:
        """Take in the loss of the coming step.

        Raises:
            LossError: It is not a scalar.
        """
        self.loss = loss_of(loss)
        self._handed += 1
        self._found_loss.pause()
        if isinstance(loss, Tensor):
            self._sampling.look(loss)

    @property
    def in_force(self) -> Decided | None:
        """The last decision: the one whose steps have not all come yet, or the one that went by."""
        return self.last if self._round is None else self._round.decided

    def record(self) -> Record:
        """Make what is settled of the last steps a record."""
        return self.ledger.books.history.record(
            self.plan.names, dtype_name(self.plan.program.parameters), self.plan.setup
        )

    def forget(self, lr_factor: float) -> None:
        """Forget a decision that no step has followed, and go on with another factor of the learning rate."""
        self._round = None
        self._lr_factor = lr_factor

    @property
    def lr_factor(self) -> float:
        """What learning rates are multiplied with: what a rollback has made of them, here and before a checkpoint."""
        return self._lr_factor * (1.0 if self._keeper is None else self._keeper.lr_factor)

    def clip_(self) -> Decided:
        """Decide now, before the step; in a closure for the step that is going on.

        Raises:
            OptimizerError: The guard is detached.
        """
        if not self._hooks:
            raise OptimizerError("guard", came="a detached one", wanted="an attached one", advice="make a new Guard")
        if self._inside is None:
            self.plan.apply.leave_all()
            self._finish_unstepped()
        found_inf, by, scaled = None, None, frozenset[int]()
        if self._scaling and self.plan.apply.hands_off:
            by, scaled = self._loss_scale(None), still_scaled(self._scaler, self.plan.optimizers, None)
        elif self._scaling:
            self._unscale_all()
            found_inf = found_inf_of(self._scaler, self.plan.optimizers)
        decided = self._decided(by, found_inf, fold=(), scaled=scaled)
        if self._inside is None:
            self._round = Round(decided, self.plan.optimizers)
            return decided
        self._evaluations += 1
        if self._evaluations > 1 and any(group.get("line_search_fn") for group in self._inside.param_groups):
            return decided  # a line search copes with what is not finite; it does not with gradients that are not there
        self._in_closure = decided
        self.plan.apply.enter(decided, self._inside)
        return decided

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide, and prepare a step: the optimizer's pre-hook."""
        if self._stepping:  # a step that raised has left it so, or this is a step within one
            if any(one is optimizer for one in self._stepping) and is_nested(optimizer):
                self._nested += 1
                return
            self._stepping = [one for one in self._stepping if one is not optimizer]
        self._stepping.append(optimizer)
        self._nested = 0
        self.begun += 1
        self.plan.apply.leave(optimizer)  # what a step that raised has left behind
        self._inside = self._in_closure = None
        if has_closure(args, kwargs):
            self._inside, self._round, self._evaluations = optimizer, None, 0
            self._rates.multiply(optimizer, self.lr_factor)
            return
        if self._round is None or not self._round.is_for(optimizer):
            self._finish_unstepped()
            self._round = Round(self._decided_for(optimizer), self.plan.optimizers)
        elif self._round.decided.known_skipped():
            self._note_overflow(optimizer)
        self._rates.multiply(optimizer, self.lr_factor)
        self._round.enter(optimizer)
        self.plan.apply.enter(self._round.decided, optimizer)

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Clear away, and close the step when it was the last under its decision: the optimizer's post-hook."""
        if self._nested:
            self._nested -= 1
            return
        if self._stepping:
            self._stepping = [one for one in self._stepping if one is not optimizer]
        self.plan.apply.leave(optimizer)
        if self._inside is optimizer:
            decided, self._inside, self._in_closure = self._in_closure, None, None
            self._finish(decided)
            self._warn_unguarded(optimizer, decided)
            return
        round_ = self._round
        if round_ is not None:
            round_.leave()
            if round_.complete:
                self._round = None
                self._finish(round_.decided)

    def _decided_for(self, optimizer: Optimizer) -> Decided:
        """Decide when an optimizer's step begins, with what a GradScaler says to it."""
        by, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if not self._asked:
            self._asked = True
            self._met = scaler_that_calls()
        if self.plan.apply.hands_off:
            scaled = still_scaled(self._met or self._scaler, self.plan.optimizers, optimizer)
            by = self._loss_scale(by) if scaled and by is None else by
            return self._decided(by, found_inf, fold=(), scaled=scaled)
        if len(self.plan.optimizers) == 1:
            return self._decided(by, found_inf, fold=self.plan.optimizers)
        if not self._scaling and (by is not None or self._met is not None):
            raise SettingError("scaler", came="None, with several optimizers under one", wanted="the GradScaler")
        if not self._scaling:
            return self._decided(fold=self.plan.optimizers)
        self._unscale_all()  # the others' gradients are still scaled: all are unscaled now, and none by its step
        return replace(self._decided(None, found_inf, fold=self.plan.optimizers), unscaled=True)

    def _decided(
        self,
        by: Tensor | None = None,
        found_inf: Tensor | None = None,
        *,
        fold: Sequence[Optimizer],
        scaled: frozenset[int] = frozenset(),
    ) -> Decided:
        """Measure, decide, and change the gradients."""
        self.plan.refresh()
        for optimizer in () if self.plan.apply.hands_off else self.plan.optimizers:
            if relaid(optimizer) and not self._said_relaid:
                self._said_relaid = True
                LOGGER.warning("gradients laid out unlike their parameters: copied, for fused kernels misread them")
        self._rates.watch(self.plan.optimizers if self.plan.program.rest else ())
        judged = self.plan.program.needs_loss or (self._keeper is not None and self._keeper.judges_loss)
        loss = averaged(self.loss, self.plan.device) if judged else self.loss
        scale = self._loss_scale(by)
        self._find_loss(scale)
        self._sampling.take(None if scaled and len(scaled) < len(self.plan.optimizers) else by, scale)
        given = Given(loss=loss, by=by, scale=scale, found_inf=found_inf, scaled=scaled)
        decided = self.plan.apply.decide(self.plan.program, given, fold)
        self._rates.changed()  # by transforms, for this step
        self.loss = None
        return decided

    def _find_loss(self, scale: Tensor | None) -> None:
        """Take the loss from the backward where it was not handed over; not times a scale that is not known."""
        parameters = self.plan.program.parameters
        if self.loss is not None:
            return
        found = self._found_loss.take(parameters)
        self._found_loss.resume(parameters)
        if found is None or not self._asked:
            self._found = None
        elif isinstance(found, Tensor):
            one = found.new_ones(1) if scale is None else scale.detach().reshape(1).to(found.device)
            self._found = Sent(torch.cat([found.reshape(1).float(), one.float()]))
        else:
            by = 1.0 if scale is None else float(scale.detach().cpu().numpy())
            self._found = found / by if by else None  # a scale that has come down to zero has taken the loss with it

    def _finish(self, decided: Decided | None) -> None:
        """Close a step that has gone by."""
        if decided is not None and not decided.known_skipped():
            self.plan.program.after_()
        self._rates.leave()
        found, self._found = self._found, None
        sample = self._sampling.finish(stepped=decided is not None and not decided.known_skipped())
        lrs = rates(self.plan.optimizers, self.lr_factor)
        row = Row(step=self.count, loss=self.loss, lrs=lrs, found=found, sample=sample)
        self.loss, self.last = None, decided
        self.count += 1
        self._look()
        try:
            self.ledger.add(row, decided, self.plan.names)
        finally:
            self._sampling.begin(self.count, self.plan.program)

    def _look(self, *, ends: bool = False) -> None:
        """Look whether weights that nobody trains are still as drawn, and log it when that has changed."""
        log = self.ledger.books.log
        if self.plan.look(ends=ends) and log is not None:
            log.update(self.plan.setup)

    def _finish_unstepped(self) -> None:
        """Close a decision that not all steps followed.

        Where none did after a skip, a GradScaler has left the step out on an overflow; where the guard knows of no
        scaler, it may as well be the loop that has left it out, for a fault.
        """
        round_, self._round = self._round, None
        self._rates.leave()
        if round_ is None:
            return
        before = 0 if self._keeper is None else self._keeper.count
        if round_.begun:
            self._finish(round_.decided)
        elif round_.untouched:
            outcome = round_.decided.read()  # where the device has decided it is waited for: no step followed
            if outcome.skipped:
                scale = self._loss_scale(None)
                number = None if scale is None else float(scale.detach().cpu().numpy())
                overflow = self._scaling and is_search(outcome.loss, number)
                self._finish(Decided(outcome=replace(outcome, overflow=overflow)))
        if self._keeper is not None and self._keeper.count > before:
            for parameter in self.plan.program.parameters:
                parameter.grad = None  # these gradients are of weights that were given up

    def _note_overflow(self, optimizer: Optimizer) -> None:
        """Tell a scaler's overflow from a fault, where `clip_()` has decided before the scaler's step."""
        assert self._round is not None
        outcome, found_inf = self._round.decided.outcome, getattr(optimizer, "found_inf", None)
        if outcome is None or found_inf is None or self._scaling:
            return  # a scaler that the guard knows was asked by clip_()
        if bool(found_inf.detach().cpu().numpy() != 0) and is_search(outcome.loss, None):
            self._round.decided = Decided(outcome=replace(outcome, overflow=True))

    def _loss_scale(self, by: Tensor | None) -> Tensor | None:
        """Return what the loss was multiplied with, as a tensor on its device."""
        if by is not None or not (self._scaling or self._met is not None):
            return by
        scale = getattr(self._met or self._scaler, "_scale", None)  # get_scale() waits for the device
        return scale if isinstance(scale, Tensor) else None

    @property
    def _scaling(self) -> bool:
        return self._scaler is not None and bool(self._scaler.is_enabled())

    def _unscale_all(self) -> None:
        if self._scaling:
            for optimizer in self.plan.optimizers:
                unscale(self._scaler, optimizer)

    def _warn_unguarded(self, optimizer: Optimizer, decided: Decided | None) -> None:
        if decided is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(optimizer).__name__}.step(closure) makes its gradients inside the step, where the guard cannot "
                "see them: call guard.clip_() in the closure, after backward()",
                UnguardedStepWarning,
                stacklevel=4,
            )


def guard_of(optimizer: Optimizer) -> object | None:
    """Find the guard of an optimizer; None where it has none."""
    for hook in getattr(optimizer, "_optimizer_step_pre_hooks", {}).values():
        steps = owner(hook)
        if isinstance(steps, Steps):
            return steps.guard
    return None
