"""Train a program as its user would, with a guard that only watches, and let the rules judge the log that it leaves."""

import math
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import evengrad
from clinic._program import Architecture, Loop
from evengrad import Task
from evengrad.diagnose import Diagnosis, diagnose, told_as_a_story
from evengrad.nouns import EvengradError, Finding, TornLogWarning, output_of

ONLY_BY_A_CHECKUP = frozenset({"EG504"})  # a derivative of one's own is compared with differences of the loss
DEAD_STEPS = 20  # a user ends a training whose loss has not been a number for so long


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One training and what was said of it.

    Args:
        findings: As one story, the first root first.
        metric: What the training reached; None where it broke or has no metric.
        seconds: Training and watching.
        judging_s: The diagnosis of the log alone.
        steps: Optimizer steps.
    """

    findings: tuple[Finding, ...]
    metric: float | None
    seconds: float
    judging_s: float
    steps: int


def watch_task(task: Task, seed: int) -> Seen:
    """Train a task once, and diagnose its log."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run"
        model = task.model()
        optimizer = task.optimizer(model)
        before = _seen_by_a_checkup(task, model)
        with evengrad.Guard(model, optimizer, clip=False, log=log, tell=False) as guard:
            steps = _train(task, model, optimizer, guard)
        metric = _metric(task, model)
        found, judging_s = _diagnosed(log)
    return Seen(
        findings=told_as_a_story([*before, *found.findings]),
        metric=metric,
        seconds=time.perf_counter() - began,
        judging_s=judging_s,
        steps=steps,
    )


def watch_loop(loop: Loop, seed: int) -> Seen:
    """Run a loop of its own once, and diagnose its log."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        logs: list[Path] = []

        def make_guard(model: Any, optimizer: Any) -> evengrad.Guard:
            logs.append(Path(folder) / f"run-{len(logs)}")
            return evengrad.Guard(model, optimizer, clip=False, log=logs[-1], tell=False)

        guard = loop.run(make_guard)
        for one in guard if isinstance(guard, list | tuple) else [guard]:
            one.detach()
        diagnoses = [_diagnosed(log) for log in logs]
    return Seen(
        findings=tuple(finding for found, _ in diagnoses for finding in found.findings),
        metric=None,
        seconds=time.perf_counter() - began,
        judging_s=sum(judging_s for _, judging_s in diagnoses),
        steps=max((len(found.record.readings) for found, _ in diagnoses), default=0),
    )


def watch_architecture(architecture: Architecture, seed: int) -> Seen:
    """Look at an architecture's first batch."""
    began = time.perf_counter()
    model, loss, batch = architecture.build(torch.Generator().manual_seed(seed))
    built = time.perf_counter()
    found = evengrad.checkup(model, loss, batch, counterfactuals=False)
    now = time.perf_counter()
    return Seen(findings=found.findings, metric=None, seconds=now - began, judging_s=now - built, steps=0)


def _seen_by_a_checkup(task: Task, model: torch.nn.Module) -> tuple[Finding, ...]:
    """Look at the first batch as `evengrad checkup` does, for what no running training can show."""
    try:
        batch = next(iter(task.train()))
        found = evengrad.checkup(model, task.loss, batch, counterfactuals=False).findings
    except EvengradError:  # a batch that is not finite, say: the log will tell
        return ()
    return tuple(finding for finding in found if finding.code in ONLY_BY_A_CHECKUP)


def _train(task: Task, model: torch.nn.Module, optimizer: Any, guard: evengrad.Guard) -> int:
    schedule = None if task.schedule is None else task.schedule(optimizer)
    done = dead = 0
    model.train()
    while done < task.steps and dead < DEAD_STEPS:
        before = done
        for data, target in task.train():
            optimizer.zero_grad()
            try:
                loss = guard.loss(task.loss(output_of(model, data), target))
                loss.backward()
            except (RuntimeError, ValueError):  # what torch's own checks raise on NaN: the user's training ends here
                return done
            if task.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if task.after_step is not None:
                task.after_step(model)
            dead = 0 if math.isfinite(float(loss.detach())) else dead + 1
            done += 1
            if done == task.steps or dead == DEAD_STEPS:
                break
        if done == before:
            break
    return done


def _metric(task: Task, model: torch.nn.Module) -> float | None:
    model.eval()
    try:
        with torch.no_grad():
            metric = float(task.validate(model))
    except (RuntimeError, ValueError):
        return None
    return metric if math.isfinite(metric) else None


def _diagnosed(log: Path) -> tuple[Diagnosis, float]:
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLogWarning)
        found = diagnose(log)
    return found, time.perf_counter() - began
