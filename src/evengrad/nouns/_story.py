"""A story: all that a report shows, free of torch, so that it can be kept on disk and shown anywhere."""

from dataclasses import dataclass

from evengrad.nouns._finding import Finding
from evengrad.nouns._sweep import Sweep
from evengrad.nouns._verdict import Trial, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A line of a plot.

    Args:
        label: What the line shows, as in the legend.
        group: `before` or `after`; lines of one group share a colour.
        steps: Horizontal positions.
        values: Vertical positions; non-finite values are gaps, marked where they begin.
    """

    label: str
    group: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """Gradient size over layers and steps.

    Args:
        title: What is shown.
        rows: Names, first layer first.
        steps: Steps of the columns.
        values: One tuple per row, one value per column: gradient norms, not logarithms; non-finite where they were.
        row_axis: What a row stands for.
        column_axis: What a column stands for.
    """

    title: str
    rows: tuple[str, ...]
    steps: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    row_axis: str = "layer"
    column_axis: str = "step"


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """One run or repair, ready to be told.

    Args:
        title: What was looked at.
        headline: The result in one sentence.
        findings: In the order to be read.
        heat_maps: Gradient size, before and (where there is one) after the cure.
        curves: Loss curves before and after.
        trials: Every trial that was run.
        verdict: None when nothing was tried.
        code: The cure as code to paste.
        patch: The cure as a unified diff of the user's source; empty where there is none.
        changes: The cure in words.
        facts: Name and value of whatever describes the run: seed, versions, dates, durations.
        notes: What the reader must know about gaps: an incomplete log, an interruption.
        sweep: What a sweep of settings found; None for all else.
    """

    title: str
    headline: str
    findings: tuple[Finding, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()
    curves: tuple[Curve, ...] = ()
    trials: tuple[Trial, ...] = ()
    verdict: Verdict | None = None
    code: str = ""
    patch: str = ""
    changes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    sweep: Sweep | None = None
