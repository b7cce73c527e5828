"""A sweep as rows: one for each setting, with what it reached and the readings that explain it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import final

from evengrad.nouns import Story, Sweep, SweepPoint
from evengrad.report import _clean
from evengrad.report._words import NOTHING, finite, number, spread

MOST_SETTINGS = 300
WORST = 4.0  # times the distance from the best to the median
NONE = "none"

_ENDINGS = {"finished": "", "pruned": "stopped early", "failed": "failed"}

HEADS = (
    "setting",
    "metric",
    "confirmed, min to max",
    "ended",
    "steps",
    "clipped",
    "mean scale",
    "largest norm",
    "let through",
    "skipped",
    "spikes",
    "not finite",
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """One setting.

    Args:
        label: As it would be written.
        short: Its numbers alone, for a table of one policy.
        frac: The metric as a share of the range of all; None where there is none.
        recommended: Whether it is the one.
        cells: The other columns, by `HEADS`.
    """

    label: str
    short: str
    frac: float | None
    recommended: bool
    cells: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SweepGroup:
    """The settings of one policy in the order of its number: a curve.

    Args:
        name: The policy, or what else was swept.
        range: What was swept, and why there.
        rows: Its settings.
    """

    name: str
    range: str
    rows: tuple[SweepRow, ...]


def groups_of(sweep: Sweep) -> tuple[SweepGroup, ...]:
    """Sort the settings by policy and number; what has no number comes first."""
    points = swept(sweep)
    low, high = limits(sweep)
    names = dict.fromkeys(point.policy for point in sorted(points, key=lambda point: point.value is not None))
    reasons = {
        one.name: _clean.sentence(f"{one.setting} {number(one.low)} to {number(one.high)}: {one.reason}")
        for one in sweep.ranges
    }
    groups = [
        SweepGroup(
            name=_clean.name(name),
            range=reasons.get(name, ""),
            rows=tuple(
                _row(point, confirmed(sweep, point.label), low, high, recommended=point.label == sweep.recommended)
                for point in sorted(points, key=_order)
                if point.policy == name
            ),
        )
        for name in names
    ]
    beside = {name for point in points for name, _ in point.others}
    extra = [one.name for one in sweep.ranges if one.name in beside and one.name not in names]
    return (*groups, *(SweepGroup(name=_clean.name(name), range=reasons[name], rows=()) for name in extra))


def swept(sweep: Sweep) -> list[SweepPoint]:
    """Give the trainings of the sweep, each setting once, as many as are shown."""
    points = {point.label: point for point in sweep.points if point.stage == "sweep"}
    kept = [point for point in points.values() if point.label in {NONE, sweep.recommended}]
    rest = [point for point in points.values() if point.label not in {NONE, sweep.recommended}]
    return [*kept, *rest][:MOST_SETTINGS]


def limits(sweep: Sweep) -> tuple[float, float]:
    """Give the metrics between which a plot is drawn: from the best to four times as far as the median is from it.

    A metric that has no lower end, such as the explained share of a variance, may be -1e30 once a training diverges.
    """
    metrics = finite([point.metric for point in sweep.points])
    if not metrics:
        return 0.0, 1.0
    best = max(metrics)
    lowest = best - WORST * (best - median(metrics))
    return max(min(metrics), lowest) if lowest < best else min(metrics), best


def settings_left_out(sweep: Sweep) -> int:
    """Count the settings that are not shown."""
    return max(0, len({point.label for point in sweep.points if point.stage == "sweep"}) - MOST_SETTINGS)


def confirmed(sweep: Sweep, label: str) -> list[SweepPoint]:
    """Give the trainings of a setting on seeds that were not used for choosing."""
    return [point for point in sweep.points if point.stage == "confirmation" and point.label == label]


def badge_of_sweep(story: Story) -> tuple[str, str]:
    """Give the badge's words and its tone."""
    sweep = story.sweep
    if sweep is None or not sweep.recommended:
        return ("nothing trains", "bad") if sweep is not None and sweep.message else ("not over", "warn")
    return ("no clipping needed", "good") if sweep.recommended == NONE else ("worth clipping", "fair")


def _row(point: SweepPoint, again: Sequence[SweepPoint], low: float, high: float, *, recommended: bool) -> SweepRow:
    read = point.quantities
    beside = [f"{name} {number(value)}" for name, value in point.others]
    metric = point.metric
    known = metric is not None and math.isfinite(metric)
    failed = sum(one.metric is None for one in again)
    said = spread([one.metric for one in again]) if again else NOTHING
    ended = _ENDINGS.get(point.ending, point.ending)
    return SweepRow(
        label=_clean.name(point.label),
        short=_clean.name(", ".join([*([number(point.value)] if point.value is not None else []), *beside]))
        or _clean.name(point.label),
        frac=None if metric is None or not known else max(0.0, (metric - low) / (high - low)) if high > low else 0.5,
        recommended=recommended,
        cells=(
            number(metric),
            said + (f", {failed} of {len(again)} failed" if failed else ""),
            _clean.sentence(f"{ended}: {point.error}" if point.error else ended),
            str(read.steps),
            f"{100 * read.clipped_frac:.0f} %",
            number(read.mean_scale),
            number(read.largest_norm),
            number(read.largest_let_through),
            str(read.skipped_steps or NOTHING),
            str(read.spikes or NOTHING),
            str(read.non_finite_steps or NOTHING),
        ),
    )


def _order(point: SweepPoint) -> tuple[float, tuple[tuple[str, float], ...]]:
    return (-math.inf if point.value is None else point.value), point.others
