"""The first thing to be read: badge, tiles and gaps."""

import math
from dataclasses import dataclass
from typing import final

from evengrad.nouns import Finding, Story, Sweep, Verdict
from evengrad.report._sweep import badge_of_sweep
from evengrad.report._words import counted, decades, mean, mean_size, number

TONES = {
    "cured": "good",
    "improved": "fair",
    "not cured": "bad",
    "was not sick": "good",
    "cannot be cured by a tool": "warn",
    "interrupted": "warn",
}

NORMS_ONLY = (
    "Depth, time, dead and saturated units were not judged: "
    "they need layer readings; run `evengrad checkup` on the model."
)
NOTHING = "Nothing was judged: no steps were recorded."

# A story without findings and with one of these notes is no clean bill of health.
_NOT_JUDGED = {NORMS_ONLY: "gradient norms only", NOTHING: "nothing recorded"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One number of the summary."""

    name: str
    value: str
    detail: str = ""


def badge(story: Story) -> tuple[str, str]:
    """Give the badge's words and its tone: `good`, `fair`, `warn` or `bad`."""
    if story.sweep is not None:
        return badge_of_sweep(story)
    if story.verdict is not None:
        return story.verdict.said, TONES.get(story.verdict.said, "warn")
    if not story.findings:
        words = [_NOT_JUDGED[note] for note in story.notes if note in _NOT_JUDGED]
        return (words[0], "fair") if words else ("no findings", "good")
    return counted(len(story.findings), "finding"), "bad" if _critical(story.findings) else "warn"


def tiles(story: Story) -> tuple[Tile, ...]:
    """Give the numbers that a reader in a hurry wants."""
    critical = _critical(story.findings)
    kinds = f"{critical} critical, {len(story.findings) - critical} warning" if story.findings else "nothing to report"
    found = [Tile(name="Findings", value=str(len(story.findings)), detail=kinds)]
    verdict = story.verdict
    if verdict is not None and (verdict.metric_before or verdict.metric_after):
        found.append(_metric_tile(verdict))
    found += _symptom_tiles(story)
    if story.trials:
        seeds = len({trial.seed for trial in story.trials})
        seconds = sum(trial.duration_s for trial in story.trials)
        found.append(
            Tile(
                name="Trials", value=str(len(story.trials)), detail=f"{counted(seeds, 'seed')}, {seconds:.0f} s in all"
            )
        )
    if story.sweep is not None:
        found += _swept_tiles(story.sweep)
    return tuple(found)


def _symptom_tiles(story: Story) -> list[Tile]:
    """Give the sizes before and after where trials have measured some, else the largest of what was found."""
    verdict = story.verdict
    if verdict is not None and any(size is not None for size in (*verdict.symptoms_before, *verdict.symptoms_after)):
        two = (verdict.symptoms_before, verdict.symptoms_after)
        said = " → ".join(decades(mean_size(sizes)) for sizes in two)
        return [Tile(name="Symptom, decades", value=said, detail=f"mean of {counted(max(map(len, two)), 'seed')}")]
    sizes = [(size, finding.symptom) for finding in story.findings if (size := finding.size) is not None]
    if not sizes:
        return []
    size, symptom = max(sizes, key=lambda pair: pair[0])
    unit = "decades, " if math.isfinite(size) else ""
    return [Tile(name="Largest symptom", value=decades(size), detail=f"{unit}{symptom}")]


def _swept_tiles(sweep: Sweep) -> list[Tile]:
    points = [point for point in sweep.points if point.stage == "sweep"]
    ended = {how: sum(point.ending == how for point in points) for how in ("pruned", "failed")}
    detail = f"{ended['pruned']} stopped early, {ended['failed']} failed"
    found = [Tile(name="Settings tried", value=str(len(points)), detail=detail)]
    if sweep.saved_steps:
        found.append(Tile(name="Steps saved", value=str(sweep.saved_steps), detail="by stopping early"))
    return found


def headline_of(findings: tuple[Finding, ...], steps: int, *, norms_only: bool = False) -> str:
    """Say the result of a plain run, and that it is half a result where no layers were read.

    Example:
        >>> headline_of((), 500)
        'No findings in 500 steps'
    """
    if not steps:
        return "No steps were recorded"
    if not findings:
        half = "; only gradient norms were recorded" if norms_only else ""
        return f"No findings in {counted(steps, 'step')}{half}"
    roots = [finding for finding in findings if not finding.follows]
    named = [f"{finding.symptom} ({finding.severity})" for finding in roots[:5]]
    more = f", and {len(roots) - 5} more" if len(roots) > 5 else ""
    below = len(findings) - len(roots)
    more += f", and {below} that {'follows' if below == 1 else 'follow'}" if below else ""
    return f"{counted(len(findings), 'finding')} in {counted(steps, 'step')}: {', '.join(named)}{more}"


def _metric_tile(verdict: Verdict) -> Tile:
    before, after = verdict.metric_before, verdict.metric_after
    failed = sum(1 for value in (*before, *after) if value is None)
    detail = f"mean of {counted(max(len(before), len(after)), 'seed')}" + (f", {failed} failed" if failed else "")
    return Tile(name="Metric", value=f"{number(mean(before))} → {number(mean(after))}", detail=detail)


def _critical(findings: tuple[Finding, ...]) -> int:
    return sum(1 for finding in findings if finding.severity == "critical")
