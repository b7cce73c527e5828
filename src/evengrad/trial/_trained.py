"""What trials have shown of each cure that the findings name: won, tried or failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from evengrad.nouns import Cure, Finding, Trial
from evengrad.treat import make
from evengrad.trial._told import spread

JOINED = " + "  # between the parts of a combination, in its label
TAILORED = {"ScaleLearningRate": "factor", "ClipGradients": "max_norm"}  # and the setting that readings may give

Parts = frozenset[str]
"""Labels of the treatments that were trained together."""


def with_trials(findings: Iterable[Finding], trials: Iterable[Trial], winner: str) -> tuple[Finding, ...]:
    """Note at each cure what came of training with it, alone or as part of a combination.

    Args:
        findings: With their cures.
        trials: All of the search.
        winner: Label of the treatment that helped; empty for none.
    """
    found, trained = tuple(findings), dict[Parts, list[Trial]]()
    for trial in trials:
        if trial.stage != "control":  # on shuffled targets: what comes of these is no result of a cure
            trained.setdefault(_parts(trial.label), []).append(trial)
    of_cures = {_label(cure) for one in found for cure in one.cures}
    others = sorted(frozenset().union(_parts(winner), *trained) - of_cures)
    return tuple(
        replace(one, cures=tuple(_told(cure, one.cures, others, trained, _parts(winner)) for cure in one.cures))
        for one in found
    )


def _told(
    cure: Cure, cures: Sequence[Cure], others: Sequence[str], trained: dict[Parts, list[Trial]], winner: Parts
) -> Cure:
    """Note what came of a cure as it is; else of it with a number from the readings, which is a cure of no finding."""
    labels = [_label(cure), *(label for label in others if _origin(label, cures) is cure)]
    won = next((label for label in labels if label in winner), "")
    label = won or next((label for label in labels if any(label in parts for parts in trained)), "")
    if not label:
        return replace(cure, trials="")
    name = "" if label == labels[0] else f" as {label}"
    if won:
        return replace(cure, trials="won" + f"{name}{_with(winner - {label})}".rstrip(":"))
    return replace(cure, trials=_of_label(label, name, trained))


def _label(cure: Cure) -> str:
    return make(cure.treatment, cure.settings).label  # with the settings that the cure leaves as they are


def _origin(label: str, cures: Sequence[Cure]) -> Cure | None:
    """Find the cure that a treatment with a number from the readings was made of, as `tailored` makes them.

    That is the first of its kind, and of one that scales the first that goes the same way, up or down.
    """
    for cure in cures:
        if cure.treatment not in TAILORED or not label.startswith(f"{cure.treatment}("):
            continue
        number, own = (_number(one, TAILORED[cure.treatment]) for one in (label, _label(cure)))
        if number is None or own is None:
            continue
        if cure.treatment == "ClipGradients" or (number > 1) == (own > 1):
            return cure
    return None


def _number(label: str, setting: str) -> float | None:
    found = re.search(rf"\b{setting}=([-+.\de]+)", label)
    return float(found[1]) if found else None


def _parts(label: str) -> Parts:
    return frozenset(label.split(JOINED))


def _of_label(label: str, name: str, trained: dict[Parts, list[Trial]]) -> str:
    held = {parts: ran for parts, ran in trained.items() if label in parts}
    parts = min(held, key=lambda parts: (len(parts) > 1, _rank(held[parts])))  # alone it shows what it does itself
    return _of_trials(held[parts], name + _with(parts - {label}))


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
