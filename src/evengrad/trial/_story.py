"""A repair as a story: what the report shows."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from evengrad.nouns import Curve, Finding, HeatMap, Record, Task, Trial, Verdict
from evengrad.trial._course import Course

MOST_TIME_ROWS = 40


def heat_maps(record: Record, label: str) -> tuple[HeatMap, ...]:
    """Draw gradient size over weighted layers and sampled steps, and over time steps for recurrent layers."""
    sampled = [reading for reading in record.readings if reading.layers]
    if not sampled:
        return ()
    names = tuple(layer.name for layer in sampled[0].layers if layer.weighted)
    columns = [{layer.name: layer.grad_norm for layer in reading.layers} for reading in sampled]
    rows = tuple(tuple(column.get(name) or 0.0 for column in columns) for name in names)
    steps = tuple(reading.step for reading in sampled)
    maps = [HeatMap(title=f"Gradient norm at layer outputs, {label}", rows=names, steps=steps, values=rows)]
    return (*maps, *_through_time(record, label))


def _through_time(record: Record, label: str) -> list[HeatMap]:
    sampled = [reading for reading in record.readings if any(layer.time_grad_rms for layer in reading.layers)]
    if not sampled:
        return []
    name = next(layer.name for layer in sampled[0].layers if layer.time_grad_rms)
    profiles = {
        reading.step: layer.time_grad_rms for reading in sampled for layer in reading.layers if layer.name == name
    }
    length = max(len(profile) for profile in profiles.values())
    same = [(step, profile) for step, profile in profiles.items() if len(profile) == length]
    shown = same[:: -(-len(same) // MOST_TIME_ROWS)]
    return [
        HeatMap(
            title=f"Gradient that reaches each time step of {name}, {label}",
            rows=tuple(f"step {step}" for step, _ in shown),
            steps=tuple(range(length)),
            values=tuple(profile for _, profile in shown),
            row_axis="training step",
            column_axis="time step",
        )
    ]


def curves(courses: Sequence[Course], group: str) -> tuple[Curve, ...]:
    """Take the loss curves of trials."""
    return tuple(
        Curve(
            label=f"{group}, seed {course.trial.seed}",
            group=group,
            steps=tuple(range(len(course.trial.losses))),
            values=course.trial.losses,
        )
        for course in courses
    )


def headline(findings: Sequence[Finding], verdict: Verdict | None) -> str:
    """Say the result in one sentence."""
    found = ", ".join(dict.fromkeys(finding.symptom for finding in findings)) or "no finding"
    if verdict is None or verdict.interrupted:
        when = "so far" if verdict is None else "when it was interrupted"
        return f"{found[:1].upper()}{found[1:]} {when}; nothing proved"
    if verdict.outcome == "was not sick":
        return "Not sick: no finding at the end of a full training"
    if not findings:
        return f"No finding; {verdict.outcome}: {verdict.message}"
    end = f"{verdict.outcome} by {verdict.label}" if verdict.label else verdict.outcome
    return f"{found[:1].upper()}{found[1:]}: {end}"


def facts(task: Task, trials: Sequence[Trial]) -> tuple[tuple[str, str], ...]:
    """List what describes the repair."""
    return (
        ("task", task.name),
        ("optimizer steps of one training", str(task.steps)),
        ("trials", str(len(trials))),
        ("optimizer steps in all", str(sum(len(trial.losses) for trial in trials))),
        ("seconds in trials", f"{sum(trial.duration_s for trial in trials):.1f}"),
        ("confirming seeds", _seeds(trials)),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
    )


def _seeds(trials: Sequence[Trial]) -> str:
    seeds = dict.fromkeys(trial.seed for trial in trials if trial.stage == "confirmation")
    return ", ".join(str(seed) for seed in seeds) or "none"
