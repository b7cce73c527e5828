"""One training of a task from a fresh seed, watched: what a trial is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from evengrad.clip import AbstractPolicy, State, policy_of
from evengrad.diagnose import findings_of, symptoms_of
from evengrad.measure import Norms, scale_
from evengrad.nouns import (
    EvengradError,
    Finding,
    ParameterReading,
    Reading,
    Record,
    Task,
    Trial,
    output_of,
)
from evengrad.probe import Untouched, WeightSampler, named_parameters, probe, setup_and_untrained, those
from evengrad.runlog import Writer
from evengrad.trial._seeded import seed_all, seeded
from evengrad.trial._user_code import Batch, batches, called, fingerprint, fresh_model, held_by

FEWEST_STEPS = 8  # of a trial that can show who trains what

Tick = Callable[[int], None]
"""Called with the number of optimizer steps that have been done since the last call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A training and everything that was read on the way.

    Args:
        trial: What goes into reports.
        record: A reading for each step, with layers on the sampled ones.
        findings: What the rules say of the record.
        model: The trained model.
        first_batch: What the first batch sums up to, to notice trials that do not see the same data.
        interrupted: Whether Ctrl-C ended it; the rest is what it had come to.
    """

    trial: Trial
    record: Record
    findings: tuple[Finding, ...]
    model: nn.Module
    first_batch: str = ""
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which training to run.

    Args:
        task: The task, treated or not.
        label: What the trial is called.
        seed: Seed of weights and loop.
        steps: Optimizer steps.
        stage: As in `Trial`.
        log: A run directory for the readings; None for none.
    """

    task: Task
    label: str
    seed: int
    steps: int
    stage: str
    log: Path | None = None


def sampled_steps(steps: int) -> frozenset[int]:
    """Choose the steps at which layers are read: powers of two at the start, then sixteen evenly spaced.

    Example:
        >>> sorted(sampled_steps(64))[:8]
        [0, 1, 2, 4, 8, 12, 16, 20]
    """
    early = {0, *(2**power for power in range(8))}
    even = {round(part * steps / 16) for part in range(16)}
    return frozenset(step for step in early | even if step < steps)


def run_course(plan: Plan, tick: Tick) -> Course:
    """Train from the plan's seed; every random state outside is left as it was.

    The training stops early when the loss is no longer finite, as nothing is learnt after that, and on Ctrl-C.

    Raises:
        TaskError: Code of the task raised, or made something else than it should.
        BatchError: There is no batch, or one is not finite.
        ModelError, LossError, OptimizerError: As for `probe` and `fresh_model`.
    """
    started = time.perf_counter()
    with seeded(plan.seed), ExitStack() as stack:
        training = _Training(plan.task)
        if plan.log is not None:
            facts = {"task": plan.task.name, "label": plan.label, "seed": str(plan.seed), "stage": plan.stage}
            writer = Writer(
                plan.log, parameters=training.names, dtype=training.dtype, facts=facts, setup=training.setup
            )
            training.writer = stack.enter_context(writer)
        seed_all(plan.seed)  # the loop draws the same numbers whatever the treatment drew before
        metric, interrupted = None, False
        try:
            error = training.run(plan.steps, tick)
            if not error:
                metric, error = training.validate()
        except KeyboardInterrupt:
            interrupted, error = True, f"interrupted after {len(training.losses)} steps"
    record = training.record(f"{plan.task.name}, {plan.label}, seed {plan.seed}")
    findings = findings_of(record)
    trial = Trial(
        label=plan.label,
        seed=plan.seed,
        steps=plan.steps,
        stage=plan.stage,
        losses=tuple(training.losses),
        metric=metric,
        symptoms=_symptoms(record),
        findings=tuple(finding.code for finding in findings),
        error=error,
        duration_s=time.perf_counter() - started,
    )
    return Course(
        trial=trial,
        record=record,
        findings=findings,
        model=training.model,
        first_batch=training.first_batch,
        interrupted=interrupted,
    )


def _symptoms(record: Record) -> tuple[tuple[str, float], ...]:
    """Size of each symptom: the larger one of the first and the last sampled reading."""
    sampled = [reading for reading in record.readings if reading.layers]
    sizes: dict[str, float] = {}
    for reading in (sampled[0], sampled[-1]) if sampled else ():
        for code, size in symptoms_of(reading, record).items():
            sizes[code] = max(size, sizes.get(code, 0.0))
    return tuple(sorted(sizes.items()))


class _Training:
    """The loop itself: model, optimizer and everything that changes from step to step."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model, self.optimizer = fresh_model(task)
        everything = named_parameters(self.model)
        held = held_by(self.optimizer)
        parameters = {name: value for name, value in everything.items() if id(value) in held}
        self.names = tuple(parameters)
        self._held = [name in parameters for name in everything]
        self.dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
        self.norms = Norms(list(parameters.values()))
        self.weights = WeightSampler(parameters, self.model)
        setup, untrained = setup_and_untrained(self.model, [self.optimizer], parameters)
        self.setup = replace(setup, untrained=())  # until some steps have shown who moves them
        self._untouched = Untouched(untrained)
        self.parameters = list(parameters.values())
        self.policy: AbstractPolicy | None = None if task.clip is None else policy_of(task.clip)
        self.state: State = {} if self.policy is None else self.policy.init(len(self.names))
        self.losses: list[float] = []
        self.readings: list[Reading] = []
        self.writer: Writer | None = None
        self.first_batch = ""
        self.schedule: Any = None
        if (schedule := task.schedule) is not None:
            self.schedule = called("Task.schedule", lambda: schedule(self.optimizer), wanted="a scheduler")

    def run(self, steps: int, tick: Tick) -> str:
        """Train; say why it ended early, or nothing."""
        sampled = sampled_steps(steps)
        batch: Batch | None = None
        self.model.train()
        for step, batch in zip(range(steps), batches(self.task), strict=False):
            if step == 0:
                self.first_batch = fingerprint(batch)
            reading = self._layers(batch, step) if step in sampled else Reading(step=step)
            error = self._step(batch, reading)
            tick(1)
            if error:
                self._keep(self._layers(batch, step + 1))  # what the failing batch looks like, layer by layer
                return error
        if batch is not None:
            self._keep(self._layers(batch, steps))
        self._settle()
        return ""

    def _settle(self) -> None:
        """Write down which weights are still as they were drawn."""
        names, flags = self._untouched.look()
        if len(self.losses) >= FEWEST_STEPS and (untrained := those(names, flags.tolist())):
            self.setup = replace(self.setup, untrained=untrained)
            if self.writer is not None:
                self.writer.update(self.setup)

    def _layers(self, batch: Batch, step: int) -> Reading:
        reading = probe(self.model, self.task.loss, batch, step=step, allow_broken_loss=bool(self.losses)).readings[0]
        norms = tuple(norm for norm, held in zip(reading.grad_norms, self._held, strict=False) if held)
        self.weights.before(gradients={})
        moved = {one.name: one.moved_ratio for one in self._read_weights()}
        pairs = zip(reading.weights, self._held, strict=False)
        weights = tuple(replace(one, moved_ratio=moved.get(one.name)) for one, held in pairs if held)
        return replace(reading, grad_norms=norms, weights=weights)

    def _step(self, batch: Batch, reading: Reading) -> str:
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        what = f"{self.task.name}, step {reading.step}"
        try:
            loss = self.task.loss(output_of(self.model, batch[0]), batch[1])
            loss.backward()
        except Exception as err:
            return self._broken(batch, reading, err)
        value = float(loss.detach())
        self.losses.append(value)
        if reading.weights:
            self.weights.before()
        norms = self.norms.squared().sqrt().cpu().numpy()
        scale, skipped = self._clip(norms)
        reading = replace(
            reading,
            loss=value,
            lrs=tuple(float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group),
            grad_norms=tuple(norms.tolist()),
            total_norm=float(np.linalg.norm(norms.astype(np.float64))),
            scale=scale,
            skipped=skipped,
        )
        try:
            if isfinite(value) and not skipped:
                called(f"{what}, optimizer.step", self.optimizer.step, wanted="a step that goes through")
                if reading.weights:
                    self.weights.after()
        finally:
            self._keep(replace(reading, weights=self._read_weights()) if reading.weights else reading)
        if not isfinite(value):
            return f"the loss is {value} at step {reading.step}"
        self._after(what, value)
        return ""

    def _read_weights(self) -> tuple[ParameterReading, ...]:
        return self.weights.readings(self.weights.packed().tolist())

    def _broken(self, batch: Batch, reading: Reading, err: Exception) -> str:
        """Tell a loss that raises because of NaN, which ends the training, from a mistake in the task.

        Raises:
            TaskError: The model is finite: it is a mistake.
        """
        seen = probe(self.model, self.task.loss, batch, step=reading.step, allow_broken_loss=True).readings[0]
        if all(layer.output_finite for layer in seen.layers):
            called(f"{self.task.name}, step {reading.step}", lambda: _again(err), wanted="a step that goes through")
        self.losses.append(float("nan"))
        return f"the loss raised {type(err).__name__} at step {reading.step}, on a model that is not finite any more"

    def _after(self, what: str, value: float) -> None:
        """Call what comes after an optimizer step."""
        if self.schedule is not None:
            on_plateau = isinstance(self.schedule, ReduceLROnPlateau)
            step = (lambda: self.schedule.step(value)) if on_plateau else self.schedule.step
            called(f"{what}, schedule.step", step, wanted="a scheduler that steps")
        if (after_step := self.task.after_step) is not None:
            called(f"{what}, after_step", lambda: after_step(self.model), wanted="a function of the model")

    def _clip(self, norms: Any) -> tuple[float, bool]:
        if self.policy is None:
            return 1.0, False
        decision = self.policy(norms, self.state)
        self.state = decision.state
        scale, skipped = float(decision.scale[0]), bool(decision.skip[0])
        if scale != 1.0 and not skipped:
            scale_([parameter.grad for parameter in self.parameters], scale)
        return scale, skipped

    def _keep(self, reading: Reading) -> None:
        self.readings.append(reading)
        if self.writer is not None:
            self.writer.append(reading)

    def validate(self) -> tuple[float | None, str]:
        """Return the metric, or why there is none."""
        self.model.eval()
        try:
            with torch.no_grad():
                what = f"{self.task.name}, validate(model)"
                metric = called(what, lambda: float(self.task.validate(self.model)), wanted="a float")
        finally:
            self.model.train()
        return (metric, "") if isfinite(metric) else (None, f"validate returned {metric}")

    def record(self, source: str) -> Record:
        return Record(
            readings=tuple(self.readings), parameters=self.names, dtype=self.dtype, source=source, setup=self.setup
        )


def _again(err: Exception) -> None:
    raise err


def failed(plan: Plan, err: EvengradError) -> Trial:
    """Make a trial of a treated training that raised: a result like any other, and not the end of the search."""
    return Trial(label=plan.label, seed=plan.seed, steps=plan.steps, stage=plan.stage, error=str(err)[:500])
