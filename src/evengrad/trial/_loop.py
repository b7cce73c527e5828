"""One optimizer step of a task after the other, watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, final

import numpy as np
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from evengrad.measure import Norms
from evengrad.nouns import ParameterReading, Reading, Setup, Task, called, output_of
from evengrad.probe import Untouched, WeightSampler, named_parameters, probe, setup_and_untrained, those
from evengrad.trial._clipping import Clipping
from evengrad.trial._on_batch import batch_named, on_batch
from evengrad.trial._precision import LossScale, autocast_of
from evengrad.trial._user_code import Batch, fresh_model, held_by

Build = Callable[[Task], tuple[nn.Module, Optimizer]]
FEWEST_STEPS = 8  # of a trial that can show who trains what


@final
class Loop:
    """Model, optimizer and everything that changes from step to step.

    Args:
        task: What is trained; its factories draw from the random state as it is.
        keep: Called with each reading that is finished.
        build: Builds model and optimizer, as `fresh_model` does.
    """

    def __init__(self, task: Task, keep: Callable[[Reading], None], build: Build = fresh_model) -> None:
        self.task = task
        self.model, self.optimizer = build(task)
        everything = named_parameters(self.model)
        held = held_by(self.optimizer)
        parameters = {name: value for name, value in everything.items() if id(value) in held}
        self.names = tuple(parameters)
        self._held = [name in parameters for name in everything]
        self.dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
        self._norms = Norms(list(parameters.values()))
        self._weights = WeightSampler(parameters, self.model)
        setup, untrained = setup_and_untrained(self.model, [self.optimizer], parameters)
        self.setup: Setup = replace(setup, untrained=())  # until some steps have shown who moves them
        self._untouched = Untouched(untrained)
        self._parameters = list(parameters.values())
        self._clipping = Clipping(task.clip, self._parameters, self.optimizer)
        self._scale = LossScale(task.loss_scale)
        self._keep = keep
        self._look_again = False
        self._overflowed = False
        self.losses: list[float] = []
        self._schedule: Any = None
        if (schedule := task.schedule) is not None:
            self._schedule = called("Task.schedule", lambda: schedule(self.optimizer), wanted="a scheduler")

    def settle(self) -> bool:
        """Note which weights are still as they were drawn; tell whether there are any."""
        names, flags = self._untouched.look()
        if len(self.losses) < FEWEST_STEPS or not (untrained := those(names, flags.tolist())):
            return False
        self.setup = replace(self.setup, untrained=untrained)
        return True

    def layers(self, batch: Batch, step: int) -> Reading:
        """Take a full reading of the model on a batch, without changing it."""
        with autocast_of(self.task.autocast, self.model):
            reading = probe(
                self.model,
                self.task.loss,
                batch,
                step=step,
                allow_broken_loss=bool(self.losses),
                loss_scale=self._scale.value,
            ).readings[0]
        norms = tuple(norm for norm, held in zip(reading.grad_norms, self._held, strict=False) if held)
        self._weights.before(gradients={})
        moved = {one.name: one.moved_ratio for one in self._read_weights()}
        pairs = zip(reading.weights, self._held, strict=False)
        weights = tuple(replace(one, moved_ratio=moved.get(one.name)) for one, held in pairs if held)
        return replace(reading, grad_norms=norms, weights=weights)

    def step(self, batches: Sequence[Batch], step: int, *, sampled: bool) -> str:
        """Train on one or several batches; say why there is nothing more to learn, or nothing."""
        sampled, self._look_again = sampled or self._look_again, False
        reading = Reading(step=step)
        if sampled:
            reading = on_batch(self.task, self._number(step), batches[0], lambda: self.layers(batches[0], step))
        error = self._step(batches, reading)
        if error:
            self._keep(self.layers(batches[0], step + 1))  # what the failing batch looks like, layer by layer
        return error

    def _step(self, batches: Sequence[Batch], reading: Reading) -> str:
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        what = f"{self.task.name}, step {reading.step}"
        value = 0.0
        for place, batch in enumerate(batches):
            try:
                value += self._backward(batch, len(batches))
            except Exception as err:
                return self._broken(batch, self._number(reading.step) + place, reading.step, err)
        self.losses.append(value)
        reading, skipped = self._clipped(replace(reading, loss=value))
        try:
            if isfinite(value) and not skipped:
                called(f"{what}, optimizer.step", self.optimizer.step, wanted="a step that goes through")
                if reading.weights:
                    self._weights.after()
        finally:
            self._keep(replace(reading, weights=self._read_weights()) if reading.weights else reading)
        if not isfinite(value):
            return f"the loss is {value} at step {reading.step}"
        if not self._overflowed:  # as a loop with GradScaler does it: no step, no step of the schedule
            self._after(what, value)
        return ""

    def _backward(self, batch: Batch, count: int) -> float:
        with autocast_of(self.task.autocast, self.model):
            loss = self.task.loss(output_of(self.model, batch[0]), batch[1])
        loss = loss / count if count > 1 else loss
        self._scale.scaled(loss).backward()
        return float(loss.detach())

    def _clipped(self, reading: Reading) -> tuple[Reading, bool]:
        """Unscale and clip the gradients; tell whether the step is to be skipped."""
        self._scale.unscale_(self._parameters)
        if reading.weights:
            self._weights.before()
        norms = self._norms.squared().sqrt().cpu().numpy()
        total = float(np.linalg.norm(norms.astype(np.float64)))
        self._overflowed = self._scale.on and not isfinite(total)
        self._scale.after(finite=isfinite(total))
        scale, skipped = (1.0, True) if self._overflowed else self._clipping.clip_(norms, float(reading.loss or 0.0))
        if self._overflowed and reading.layers:  # the scale comes down: what the layers look like shows after that
            self._look_again = True
            reading = Reading(step=reading.step, loss=reading.loss)
        reading = replace(
            reading,
            lrs=tuple(float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group),
            grad_norms=tuple(norms.tolist()),
            total_norm=total,
            scale=scale,
            skipped=skipped,
        )
        return reading, skipped

    def _read_weights(self) -> tuple[ParameterReading, ...]:
        return self._weights.readings(self._weights.packed().tolist())

    def _number(self, step: int) -> int:
        """Number the first batch of a step, from 1 on."""
        return step * self.task.accumulate + 1

    def _broken(self, batch: Batch, number: int, step: int, err: Exception) -> str:
        """Tell a loss that raises because of NaN, which ends the training, from a mistake in the task.

        Raises:
            TaskError: The model is finite: it is a mistake.
        """
        look = partial(probe, self.model, self.task.loss, batch, step=step, allow_broken_loss=True)
        with autocast_of(self.task.autocast, self.model):
            seen = on_batch(self.task, number, batch, look).readings[0]
        if all(layer.output_finite for layer in seen.layers):
            what = batch_named(self.task, number, batch)
            called(what, lambda: _again(err), wanted="a step that goes through")
        self.losses.append(float("nan"))
        return f"the loss raised {type(err).__name__} at step {step}, on a model that is not finite any more"

    def _after(self, what: str, value: float) -> None:
        """Call what comes after an optimizer step."""
        if self._schedule is not None:
            on_plateau = isinstance(self._schedule, ReduceLROnPlateau)
            step = (lambda: self._schedule.step(value)) if on_plateau else self._schedule.step
            called(f"{what}, schedule.step", step, wanted="a scheduler that steps")
        if (after_step := self.task.after_step) is not None:
            called(f"{what}, after_step", lambda: after_step(self.model), wanted="a function of the model")


def _again(err: Exception) -> None:
    raise err
