"""What trials have shown of each cure that the findings name: won, tried or failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from evengrad.nouns import Cure, Finding, Trial
from evengrad.treat import make
from evengrad.trial._told import spread

JOINED = " + "  # between the parts of a combination, in its label

Parts = frozenset[str]
"""Labels of the treatments that were trained together."""


def with_trials(findings: Iterable[Finding], trials: Iterable[Trial], winner: str) -> tuple[Finding, ...]:
    """Note at each cure what came of training with it, alone or as part of a combination.

    Args:
        findings: With their cures.
        trials: All of the search.
        winner: Label of the treatment that helped; empty for none.
    """
    trained: dict[Parts, list[Trial]] = {}
    for trial in trials:
        if trial.stage != "control":  # on shuffled targets: what comes of these is no result of a cure
            trained.setdefault(_parts(trial.label), []).append(trial)
    return tuple(
        replace(one, cures=tuple(_told(cure, trained, _parts(winner)) for cure in one.cures)) for one in findings
    )


def _told(cure: Cure, trained: dict[Parts, list[Trial]], winner: Parts) -> Cure:
    label = make(cure.treatment, cure.settings).label  # with the settings that the cure leaves as they are
    if label in winner:
        return replace(cure, trials=f"won{_with(winner - {label})}".rstrip(":"))
    return replace(cure, trials=_of_label(label, trained))


def _parts(label: str) -> Parts:
    return frozenset(label.split(JOINED))


def _of_label(label: str, trained: dict[Parts, list[Trial]]) -> str:
    held = {parts: ran for parts, ran in trained.items() if label in parts}
    if not held:
        return ""
    parts = min(held, key=lambda parts: (len(parts) > 1, _rank(held[parts])))  # alone it shows what it does itself
    return _of_trials(held[parts], _with(parts - {label}))


def _with(others: Parts) -> str:
    return f" with {JOINED.join(sorted(others))}:" if others else ":"


def _rank(trials: Sequence[Trial]) -> tuple[bool, int, float]:
    """Rank those that came through before those that failed, then by how far they went, then by metric."""
    furthest = max(trials, key=_reached)
    return (furthest.metric is None, -furthest.steps, -(furthest.metric or 0.0))


def _reached(trial: Trial) -> tuple[bool, int]:
    return (trial.metric is not None, trial.steps)


def _of_trials(trials: Sequence[Trial], beside: str) -> str:
    furthest = max(trials, key=_reached)
    if furthest.metric is None and furthest.error:
        how = "begun" if furthest.error.startswith("interrupted") else "failed"
        return f"{how}{beside} {furthest.error}"
    same = [trial for trial in trials if trial.steps == furthest.steps]
    seeds = f" on {len(same)} seeds" if len(same) > 1 else ""
    metric = "not known" if furthest.metric is None else spread([trial.metric for trial in same])
    return f"tried{beside} metric {metric} after {furthest.steps} steps{seeds}"
