"""One training of a task from a fresh seed, watched: what a trial is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.clip import AbstractPolicy, State, policy_of
from evengrad.diagnose import findings_of, symptoms_of
from evengrad.measure import Norms, scale_
from evengrad.nouns import BatchError, EvengradError, Finding, OptimizerError, Reading, Record, Task, TaskError, Trial
from evengrad.probe import named_parameters, probe
from evengrad.runlog import Writer

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
        interrupted: Whether Ctrl-C ended it; the rest is what it had come to.
    """

    trial: Trial
    record: Record
    findings: tuple[Finding, ...]
    model: nn.Module
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
    """Train from the plan's seed; torch's random state outside is left as it was.

    The training stops early when the loss is no longer finite, as nothing is learnt after that, and on Ctrl-C.

    Raises:
        TaskError: A factory of the task raised or made something else than it should.
        BatchError: There is no batch, or one is not finite.
        ModelError, LossError: As for `probe`.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=_devices()), ExitStack() as stack:
        torch.manual_seed(plan.seed)
        training = _Training(plan.task)
        if plan.log is not None:
            facts = {"task": plan.task.name, "label": plan.label, "seed": str(plan.seed), "stage": plan.stage}
            writer = Writer(plan.log, parameters=training.names, dtype=training.dtype, facts=facts)
            training.writer = stack.enter_context(writer)
        torch.manual_seed(plan.seed)  # the loop draws the same numbers whatever the treatment drew before
        interrupted = False
        try:
            error = training.run(plan.steps, tick)
            metric, metric_error = (None, "") if error else training.validate()
        except KeyboardInterrupt:
            interrupted, metric, metric_error = True, None, ""
            error = f"interrupted after {len(training.losses)} steps"
    record = training.record(f"{plan.task.name}, {plan.label}, seed {plan.seed}")
    trial = Trial(
        label=plan.label,
        seed=plan.seed,
        steps=plan.steps,
        stage=plan.stage,
        losses=tuple(training.losses),
        metric=metric,
        symptoms=_symptoms(record),
        findings=tuple(finding.code for finding in findings_of(record)),
        error=error or metric_error,
        duration_s=time.perf_counter() - started,
    )
    findings = findings_of(record)
    return Course(trial=trial, record=record, findings=findings, model=training.model, interrupted=interrupted)


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


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
        parameters = named_parameters(self.model)
        self.names = tuple(parameters)
        self.dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
        self.norms = Norms(list(parameters.values()))
        self.gradients = list(parameters.values())
        self.policy: AbstractPolicy | None = None if task.clip is None else policy_of(task.clip)
        self.state: State = {} if self.policy is None else self.policy.init(len(self.names))
        self.losses: list[float] = []
        self.readings: list[Reading] = []
        self.writer: Writer | None = None
        self.schedule = task.schedule(self.optimizer) if task.schedule is not None else None

    def run(self, steps: int, tick: Tick) -> str:
        """Train; say why it ended early, or nothing."""
        sampled = sampled_steps(steps)
        batch: tuple[Any, Any] | None = None
        self.model.train()
        for step, batch in zip(range(steps), batches(self.task), strict=False):
            reading = self._layers(batch, step) if step in sampled else Reading(step=step)
            error = self._step(batch, reading)
            tick(1)
            if error:
                self._keep(self._layers(batch, step + 1))  # what the failing batch looks like, layer by layer
                return error
        if batch is not None:
            self._keep(self._layers(batch, steps))
        return ""

    def _layers(self, batch: tuple[Any, Any], step: int) -> Reading:
        return probe(self.model, self.task.loss, batch, step=step).readings[0]

    def _step(self, batch: tuple[Any, Any], reading: Reading) -> str:
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = self.task.loss(self.model(batch[0]), batch[1])
            loss.backward()
        except Exception as err:
            raise TaskError(
                f"{self.task.name}, step {reading.step}",
                came=f"{type(err).__name__}: {err}"[:300],
                wanted="a forward and backward that go through",
            ) from err
        value = float(loss.detach())
        self.losses.append(value)
        norms = self.norms.squared().sqrt().cpu().numpy()
        scale, skipped = self._clip(norms)
        self._keep(
            replace(
                reading,
                loss=value,
                lrs=tuple(float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group),
                grad_norms=tuple(norms.tolist()),
                total_norm=float(np.linalg.norm(norms.astype(np.float64))),
                scale=scale,
                skipped=skipped,
            )
        )
        if not isfinite(value):
            return f"the loss is {value} at step {reading.step}"
        if not skipped:
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.task.after_step is not None:
            self.task.after_step(self.model)
        return ""

    def _clip(self, norms: Any) -> tuple[float, bool]:
        if self.policy is None:
            return 1.0, False
        decision = self.policy(norms, self.state)
        self.state = decision.state
        scale, skipped = float(decision.scale[0]), bool(decision.skip[0])
        if scale != 1.0 and not skipped:
            scale_([parameter.grad for parameter in self.gradients], scale)
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
                metric = float(self.task.validate(self.model))
        except Exception as err:
            raise TaskError(
                f"{self.task.name}, validate(model)", came=f"{type(err).__name__}: {err}"[:300], wanted="a float"
            ) from err
        finally:
            self.model.train()
        return (metric, "") if isfinite(metric) else (None, f"validate returned {metric}")

    def record(self, source: str) -> Record:
        return Record(readings=tuple(self.readings), parameters=self.names, dtype=self.dtype, source=source)


def fresh_model(task: Task) -> tuple[nn.Module, Optimizer]:
    """Build the model and the optimizer of a task from torch's random state as it is.

    Raises:
        TaskError: A factory raised or made something else.
        OptimizerError: The optimizer holds none of the model's parameters.
    """
    model: nn.Module = _made(task.model, "Task.model", nn.Module)
    parameters = named_parameters(model)
    optimizer: Optimizer = _made(lambda: task.optimizer(model), "Task.optimizer", Optimizer)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in parameters.values()):
        raise OptimizerError(
            "Task.optimizer",
            came=f"an optimizer with {len(held)} parameters, none of them of the model that it was given",
            wanted="optimizer(model) to use model.parameters()",
        )
    return model, optimizer


def first_batch(task: Task) -> tuple[Any, Any]:
    """Take the first training batch of a task.

    Raises:
        BatchError: There is none, or it is not a pair.
    """
    return next(batches(task))


def _made(factory: Callable[[], Any], what: str, kind: type) -> Any:
    wanted = f"a function that makes a {kind.__name__}"
    try:
        made = factory()
    except EvengradError:
        raise
    except Exception as err:
        raise TaskError(what, came=f"{type(err).__name__}: {err}"[:300], wanted=wanted) from err
    if not isinstance(made, kind):
        raise TaskError(what, came=type(made).__name__, wanted=wanted)
    return made


def batches(task: Task) -> Iterator[tuple[Any, Any]]:
    """Repeat the task's training batches without end.

    Raises:
        BatchError: `train()` has no batch, or one that is not a pair.
        TaskError: `train()` raised.
    """
    while True:
        count = 0
        for batch in _iterated(task):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise BatchError("Task.train()", came=type(batch).__name__, wanted="pairs (input, target)")
            count += 1
            yield batch[0], batch[1]
        if count == 0:
            raise BatchError("Task.train()", came="no batch", wanted="at least one", advice="is the data set empty?")


def _iterated(task: Task) -> Iterator[Any]:
    try:
        yield from task.train()
    except EvengradError:
        raise
    except Exception as err:
        raise TaskError("Task.train()", came=f"{type(err).__name__}: {err}"[:300], wanted="batches") from err
