"""A search told as a story, while it goes on and at its end."""

from __future__ import annotations

from dataclasses import replace

from evengrad.nouns import Story, Verdict
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._course import Course
from evengrad.trial._found import Found
from evengrad.trial._patch import Patch
from evengrad.trial._story import curves, facts, headline, heat_maps
from evengrad.trial._trained import with_trials


def unfinished(found: Found) -> Story:
    """Tell what there is so far of a search that goes on, or was killed."""
    return _story(replace(found, notes=("The search is not over, or it was killed.",)), None, None)


def told(found: Found, patch: Patch | None) -> Story:
    """Tell what was found.

    Args:
        found: At the end.
        patch: The cure as code; None for none.
    """
    notes = found.notes
    if found.interrupted:
        notes = ("The search was interrupted: what follows is what was found until then.", *notes)
    if patch is not None and patch.kind == "snippet":
        notes = (*notes, f"The cure is code to paste and no diff: {patch.why}.".replace("..", "."))
    story = _story(replace(found, notes=notes), found.verdict(), found.winner())
    return replace(story, patch=patch.text) if patch is not None and patch.kind == "diff" else story


def _story(found: Found, verdict: Verdict | None, winner: Confirmation | None) -> Story:
    task, trials = found.terms.task, found.trials
    before, after = _shown(found, winner)
    treated = winner.candidate.treated if winner is not None else None
    return Story(
        title=f"Repair: {task.name}",
        headline=headline(found.findings, verdict),
        findings=with_trials(found.findings, trials, winner.candidate.label if winner is not None else ""),
        heat_maps=(
            *(heat_maps(before[0].record, "before") if before else ()),
            *(heat_maps(after[0].record, "after") if after else ()),
        ),
        curves=(*curves(before, "before"), *curves(after, "after")),
        trials=trials,
        verdict=verdict,
        code=treated.code if treated is not None else "",
        changes=treated.changes if treated is not None else (),
        facts=facts(task, trials),
        notes=found.notes,
    )


def _shown(found: Found, winner: Confirmation | None) -> tuple[list[Course], list[Course]]:
    """Give the untreated and the treated trainings to draw: those of the proof, or the one that was looked at."""
    before, after = winner.courses() if winner is not None else ([], [])
    return before or ([found.case.scout] if found.case is not None else []), after
