"""One training of a task from a fresh seed, watched, that can be stopped and gone on with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from math import isfinite
from typing import final

import torch

from evengrad.nouns import Reading, Record, Trial, called
from evengrad.runlog import Writer
from evengrad.trial._course import Course, judged
from evengrad.trial._look_at import with_lines
from evengrad.trial._loop import Loop
from evengrad.trial._plan import Plan, Tick, sampled_steps
from evengrad.trial._seeded import RandomState, random_kept, seed_all
from evengrad.trial._user_code import Batch, batches, fingerprint, fresh_model
from evengrad.trial._where_made import WhereMade


@final
class Training:
    """A training that has got to some step.

    It has a random state of its own: whatever happens between two parts of it, and whether it is stopped at all, does
    not change it. The training ends early when the loss is no longer finite, as nothing is learnt after that, and on
    Ctrl-C.

    Args:
        plan: Task, seed, label and length.

    Raises:
        TaskError: Code of the task raised, or made something else than it should.
        BatchError: There is no batch, or one is not finite.
        ModelError, LossError, OptimizerError: As for `probe` and `fresh_model`.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = RandomState(plan.seed)
        self._readings: list[Reading] = []
        self._writer: Writer | None = None
        self._metrics: list[tuple[int, float | None]] = []
        self._step = 0
        self._first_batch = ""
        self._last: Batch | None = None
        self._duration_s = 0.0
        self._stack = ExitStack()
        self._made = WhereMade() if plan.label == "untreated" else None  # lines are told of what is wrong untreated
        with self._random.inside():
            self._loop = Loop(plan.task, self._keep, fresh_model if self._made is None else self._made.fresh_model)
            seed_all(plan.seed)  # the loop draws the same numbers whatever the treatment drew before
        self._batches: Iterator[Batch] = batches(plan.task)
        self._loop.model.train()
        self._write_to(plan)

    def advance(self, plan: Plan, tick: Tick) -> Course:
        """Train until the plan's end, and measure.

        Args:
            plan: Of this training.
            tick: Called after each step.
        """
        started = time.perf_counter()
        metric, interrupted = None, False
        with self._random.inside():
            try:
                error = self._train(plan.end, tick)
                if not error:
                    metric, why = self._validate()
                    self._metrics.append((self._step, metric))
                    error = why if plan.end >= plan.steps else ""  # on the way a metric may be missing
            except KeyboardInterrupt:
                interrupted, error = True, f"interrupted after {len(self._loop.losses)} steps"
            extra = self._look(final=plan.end >= plan.steps or bool(error))
        self._duration_s += time.perf_counter() - started
        return self._course(plan, metric, error, extra, interrupted=interrupted)

    def close(self) -> None:
        """Close the run log."""
        self._stack.close()

    def _write_to(self, plan: Plan) -> None:
        if plan.log is None:
            return
        facts = {"task": plan.task.name, "label": plan.label, "seed": str(plan.seed), "stage": plan.stage}
        loop = self._loop
        writer = Writer(plan.log, parameters=loop.names, dtype=loop.dtype, facts=facts, setup=loop.setup)
        self._writer = self._stack.enter_context(writer)

    def _train(self, until: int, tick: Tick) -> str:
        sampled = sampled_steps(self._plan.steps)
        while self._step < until:
            found = list(islice(self._batches, self._plan.task.accumulate))
            self._last = found[0]
            if self._step == 0:
                self._first_batch = fingerprint(found[0])
            error = self._loop.step(found, self._step, sampled=self._step in sampled)
            self._step += 1
            tick(1)
            if error:
                return error
        return ""

    def _look(self, *, final: bool) -> tuple[Reading, ...]:
        """Read the model as it is now: for good at the end, and only to be judged by on the way."""
        if self._loop.settle() and self._writer is not None:
            self._writer.update(self._loop.setup)
        if self._last is None or (self._readings and self._readings[-1].step >= self._step):
            return ()
        reading = self._loop.layers(self._last, self._step)
        if not final:
            return (reading,)
        self._keep(reading)
        return ()

    def _validate(self) -> tuple[float | None, str]:
        """Return the metric, or why there is none; the random state is as before."""
        loop, task = self._loop, self._plan.task
        modes = [(module, module.training) for module in loop.model.modules()]
        loop.model.eval()
        try:
            with torch.no_grad(), random_kept():
                what = f"{task.name}, validate(model)"
                metric = called(what, lambda: float(task.validate(loop.model)), wanted="a float")
        finally:
            for module, mode in modes:
                module.training = mode
        return (metric, "") if isfinite(metric) else (None, f"validate returned {metric}")

    def _keep(self, reading: Reading) -> None:
        self._readings.append(reading)
        if self._writer is not None:
            self._writer.append(reading)

    def _course(
        self, plan: Plan, metric: float | None, error: str, extra: tuple[Reading, ...], *, interrupted: bool
    ) -> Course:
        loop = self._loop
        record = Record(
            readings=(*self._readings, *extra),
            parameters=loop.names,
            dtype=loop.dtype,
            source=f"{plan.task.name}, {plan.label}, seed {plan.seed}",
            setup=loop.setup,
        )
        findings, symptoms = judged(record)
        try:
            if self._made is not None and (error or plan.end >= plan.steps):
                findings = with_lines(findings, record, self._made)
        except KeyboardInterrupt:  # the training is worth more than the lines
            interrupted = True
        trial = Trial(
            label=plan.label,
            seed=plan.seed,
            steps=plan.end,
            stage=plan.stage,
            losses=tuple(loop.losses),
            metric=metric,
            metrics=tuple(self._metrics),
            symptoms=symptoms,
            findings=tuple(finding.code for finding in findings),
            error=error,
            duration_s=self._duration_s,
        )
        return Course(
            trial=trial,
            record=record,
            findings=findings,
            state=self._state() if plan.end >= plan.steps and plan.keep_state else None,
            first_batch=self._first_batch,
            interrupted=interrupted,
        )

    def _state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._loop.model.state_dict().items()}


def run_course(plan: Plan, tick: Tick) -> Course:
    """Run a training to the plan's end in this process."""
    training = Training(plan)
    try:
        return training.advance(plan, tick)
    finally:
        training.close()
