"""A sweep as a story: what the report shows."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import replace

import torch

from evengrad.nouns import Curve, Record, Story, Sweep, SweepPoint, SweepRange, Task
from evengrad.trial._course import Course
from evengrad.trial._story import heat_maps
from evengrad.trial._tune_space import NONE, Space

MOST_POINTS = 500  # of the untreated loss curve, which is kept in the journal


def untreated_story(task: Task, course: Course, point: SweepPoint) -> Story:
    """Tell the training without clipping: its findings, its gradients, its loss, and its point."""
    losses = course.trial.losses
    each = -(-len(losses) // MOST_POINTS) if losses else 1
    steps = tuple(sorted({*range(0, len(losses), each), *([len(losses) - 1] if losses else [])}))
    curve = Curve(label="without clipping", group="run", steps=steps, values=tuple(losses[at] for at in steps))
    return Story(
        title=task.name,
        headline="",
        findings=course.findings,
        heat_maps=heat_maps(course.record, "without clipping"),
        curves=(curve,) if losses else (),
        sweep=Sweep(points=(point,), steps=task.steps),
    )


def plain_record(record: Record) -> Record:
    """Leave of a record what ranges are made of: norms, learning rates, and weights on sampled steps."""
    readings = tuple(
        replace(reading, layers=(), ends=None, grad_norms=())
        for reading in record.readings
        if reading.total_norm is not None
    )
    return replace(record, readings=readings)


def ranges_of(space: Space) -> tuple[SweepRange, ...]:
    """List what was swept."""
    named = [*((arm.name, arm.range) for arm in space.arms), *space.others]
    return tuple(
        SweepRange(
            name=name,
            setting=one.setting,
            low=one.low,
            high=one.high,
            logarithmic=one.log,
            reason=one.reason,
        )
        for name, one in named
    )


def story_of(task: Task, sweep: Sweep, untreated: Story | None, *, code: str, notes: tuple[str, ...]) -> Story:
    """Tell a sweep."""
    before = untreated or Story(title="", headline="")
    return Story(
        title=f"Tuning of {task.name}",
        headline=sweep.message or "Nothing is recommended yet",
        findings=before.findings,
        heat_maps=before.heat_maps,
        curves=before.curves,
        code=code,
        facts=_facts(task, sweep),
        notes=(*notes, *_still_found(sweep)),
        sweep=sweep,
    )


def _still_found(sweep: Sweep) -> tuple[str, ...]:
    """Say what the rules find in trainings with the recommended setting: clipping is no cure for it."""
    again = [point for point in sweep.points if point.stage == "confirmation" and point.label == sweep.recommended]
    counts = Counter(code for point in again for code in point.findings)
    if not counts:
        return ()
    where = "without clipping" if sweep.recommended == NONE else "with the recommended setting"
    told = ", ".join(f"{code} ({count} of {len(again)} seeds)" for code, count in sorted(counts.items()))
    return (f"Still found {where}: {told}. Clipping does not cure that; `evengrad repair` looks for what does.",)


def _facts(task: Task, sweep: Sweep) -> tuple[tuple[str, str], ...]:
    swept = [point for point in sweep.points if point.stage == "sweep"]
    seeds = dict.fromkeys(str(point.seed) for point in sweep.points if point.stage == "confirmation")
    pruned, failed = (sum(point.ending == how for point in swept) for how in ("pruned", "failed"))
    return (
        ("task", task.name),
        ("optimizer steps of one training", str(task.steps)),
        ("trainings of the sweep", f"{len(swept)}, {pruned} of them stopped early, {failed} failed"),
        ("confirming seeds", ", ".join(seeds) or NONE),
        ("optimizer steps in all", str(sum(point.quantities.steps for point in sweep.points))),
        ("optimizer steps saved by stopping early", str(sweep.saved_steps)),
        ("seconds in trainings", f"{sum(point.duration_s for point in sweep.points):.1f}"),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
    )
