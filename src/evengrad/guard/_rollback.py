"""Go back to the last good weights in memory with a lower learning rate, when a run goes wrong for good."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import SettingError

DECAY = 0.9  # of the loss's running mean: about ten steps
GRACE_STEPS = 10  # after a return in which the loss is not judged: its mean is that of the snapshot still


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """Settings for going back to a good snapshot in memory; the learning rate falls each time.

    A snapshot of weights, buffers and optimizer memory is taken every so many good steps, not while the loss has run
    away. It is good once as many steps more have gone by well; so there are two, and a run goes back to the older one
    when the younger is not yet proved.
    The data and random state go on from where they are: the batches that did harm are not met again.

    The learning rate is multiplied within the step only: schedulers see and set their own values.

    Args:
        every_steps: Good steps between snapshots, at least 1. At 100 their cost is hidden.
        after_skips: Skipped steps in a row that make the run go back, at least 1. A single one is harmless, for it is
            skipped; several in a row say that the weights themselves are bad.
        loss_factor: A running mean of the loss this many times that at the snapshot makes the run go back; None never.
            Needs `guard.loss(loss)`, and a loss that is positive.
        lr_factor: What the learning rate is multiplied with at each return, in (0, 1].
        most: Returns after which a run that goes wrong again is left to itself: skips then end it.

    Raises:
        SettingError: A setting is out of range.

    Cost: Two copies of weights and optimizer memory on their device; one copy every `every_steps`.

    Source: Raising and lowering the learning rate by the error, with a return after a bad step: Vogl et al., 1988,
    Biol. Cybern. 59; rewinding and skipping batches: Chowdhery et al., 2022, PaLM, arXiv:2204.02311, section 5.1.
    Here the rate is only lowered, and the trigger is not one worse step but a run that has gone wrong.
    """

    every_steps: int = 100
    after_skips: int = 3
    loss_factor: float | None = None
    lr_factor: float = 0.5
    most: int = 10

    def __post_init__(self) -> None:
        for name in ("every_steps", "after_skips", "most"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(name, came=repr(value), wanted="a whole number from 1")
        if not isinstance(self.lr_factor, int | float) or not 0 < self.lr_factor <= 1:
            raise SettingError("lr_factor", came=repr(self.lr_factor), wanted="a number in (0, 1]")
        if self.loss_factor is not None and not 1 < self.loss_factor < math.inf:
            raise SettingError("loss_factor", came=repr(self.loss_factor), wanted="a number above 1, or None")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Weights, buffers and memories as they were after a step."""

    step: int
    loss: float | None
    tensors: list[tuple[Tensor, Tensor]]
    buffers: list[tuple[nn.Module, str, Tensor]]
    optimizers: list[dict[str, Any]]
    memory: Any


@final
class Keeper:
    """Take snapshots of a run, and take it back to one."""

    def __init__(self, settings: Rollback, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._settings = settings
        self._model, self._optimizers = model, list(optimizers)
        self._snapshots: deque[Snapshot] = deque(maxlen=2)
        self._loss: float | None = None
        self._good_steps = 0
        self._since = GRACE_STEPS  # good steps since the last return
        self.lr_factor = 1.0
        self.count = 0

    @property
    def judges_loss(self) -> bool:
        """Whether it goes back for the sake of the loss."""
        return self._settings.loss_factor is not None

    def start_anew(self, count: int) -> None:
        """Forget what was kept: the run goes on from elsewhere.

        Args:
            count: How often it had gone back there.
        """
        self._snapshots.clear()
        self._loss, self._good_steps = None, 0
        self.count, self.lr_factor = count, 1.0

    def good(self, step: int, loss: float | None, memory: Any) -> None:
        """Take note of a step that went well; take a snapshot when it is time.

        Args:
            step: Its number.
            loss: Its loss; None when nobody handed it over.
            memory: A function that copies what the guard itself remembers.
        """
        if loss is not None and math.isfinite(loss):
            self._loss = loss if self._loss is None else DECAY * self._loss + (1 - DECAY) * loss
        if self._good_steps % self._settings.every_steps == 0 and not self._ran_away():
            self._snapshots.append(self._taken(step, memory()))
        self._good_steps += 1
        self._since += 1

    def due(self, skips_in_a_row: int) -> str:
        """Say why the run should go back now; empty when it should not."""
        settings = self._settings
        if not self._snapshots or self.count >= settings.most:
            return ""
        if skips_in_a_row >= settings.after_skips:
            return f"{skips_in_a_row} skipped steps in a row"
        if self._since < GRACE_STEPS or not self._ran_away():
            return ""
        then: Any = self._snapshots[0].loss
        return f"the loss is {self._loss:.4g}, {self._loss / then:.3g} times that of step {self._snapshots[0].step}"

    def _ran_away(self) -> bool:
        """Whether the loss is so much above that of the snapshot to go back to."""
        factor, then = self._settings.loss_factor, self._snapshots[0].loss if self._snapshots else None
        known = factor is not None and then is not None and then > 0 and self._loss is not None
        return known and self._loss > factor * then  # type: ignore[operator]

    def back(self) -> tuple[int, Any]:
        """Go back; returns the step of the snapshot and the guard's memory then."""
        snapshot = self._snapshots[0]
        while len(self._snapshots) > 1:
            self._snapshots.pop()
        with torch.no_grad():
            for tensor, kept in snapshot.tensors:
                tensor.copy_(kept)
            for module, name, kept in snapshot.buffers:
                now = module._buffers.get(name)  # it may have been assigned anew
                if now is None or now.shape != kept.shape:
                    module._buffers[name] = kept.clone()
                else:
                    now.copy_(kept)
        for optimizer, state in zip(self._optimizers, snapshot.optimizers, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(state))
        self.count += 1
        self.lr_factor *= self._settings.lr_factor
        self._loss, self._good_steps, self._since = snapshot.loss, 1, 0
        return snapshot.step, snapshot.memory

    def _taken(self, step: int, memory: Any) -> Snapshot:
        tensors = list(self._model.parameters())
        buffers = [
            (module, name, buffer.detach().clone())
            for module in self._model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        known = {id(tensor) for tensor in tensors}
        groups = (group["params"] for optimizer in self._optimizers for group in optimizer.param_groups)
        tensors += [parameter for group in groups for parameter in group if id(parameter) not in known]
        return Snapshot(
            step=step,
            loss=self._loss,
            tensors=[(tensor, tensor.detach().clone()) for tensor in tensors],
            buffers=buffers,
            optimizers=[_copied(optimizer.state) for optimizer in self._optimizers],
            memory=memory,
        )


def _copied(state: Any) -> dict[Any, Any]:
    """Copy what an optimizer remembers of each parameter; the parameters stay the keys."""
    with torch.no_grad():
        return {key: copy.deepcopy(value) for key, value in state.items()}
