"""Verdicts without a proof: nothing was wrong, or nothing that a treatment reaches, or the search was cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evengrad.diagnose import loss_left
from evengrad.nouns import Finding, Outcome, Record, Trial, Verdict
from evengrad.treat import make
from evengrad.trial._course import FLAT_FRAC, Course
from evengrad.trial._suspicions import fell_back, spoke_early
from evengrad.trial._told import spread

IN_THE_CODE = "mistake in the code"  # how a rule that is certain begins its cause


def without_findings(scout: Course, *, tried: bool, fresh: float | None = None) -> Verdict:
    """Judge a training in which no rule speaks at the end.

    Args:
        scout: The untreated training.
        tried: Whether treatments were tried all the same, and none helped.
        fresh: The metric that untrained models reach; None if unknown.
    """
    trial = scout.trial
    if trial.error:
        text = f"the training failed and no rule says why: {trial.error}"
        return Verdict(outcome="not cured", metric_before=(trial.metric,), message=text)
    early = spoke_early(scout.record)
    fine = "the gradients are even" if not early and not _all_zero(scout.record) else "no rule speaks at the end"
    notes = [f"{code} spoke until step {step} and fell silent" for code, step in early.items()]
    notes += (
        ["the gradient is exactly zero at the end: look at the loss and the output"] if _all_zero(scout.record) else []
    )
    fall = fell_back(trial)
    notes += [fall] if fall else []
    notes += ["nothing that was tried was proved to do better"] if tried else []
    text = f"{fine}; metric {spread([trial.metric])} after {trial.steps} steps with seed {trial.seed}"
    text += "".join(f"; {note}" for note in notes)
    left = loss_left(scout.record)
    if left is not None and left >= FLAT_FRAC:
        text += f"; its loss is {left:.0%} of that of the best constant prediction: it has learnt nothing of its inputs"
        text += " (do inputs and targets belong together, and is there anything to learn?)"
    lost = fresh is not None and trial.metric is not None and trial.metric <= fresh
    if lost:
        text += f"; untrained models reach {spread([fresh])}: nothing it has learnt carries over to its validation data"
    nothing = lost or _all_zero(scout.record) or bool(fall) or (left is not None and left >= FLAT_FRAC)
    outcome: Outcome = "not cured" if nothing else "was not sick"
    return Verdict(outcome=outcome, metric_before=(trial.metric,), message=text)


def not_by_a_tool(findings: Sequence[Finding], *, tried: bool) -> Verdict | None:
    """Judge a training that no treatment reaches: its roots are in the code or the data. None where one was tried.

    Args:
        findings: What was found.
        tried: Whether any treatment was tried.
    """
    roots = _roots(findings)
    if tried or not roots:
        return None
    said = [f"{one.code} {one.symptom}: {one.cause or one.message}" + _where_to_look(one) for one in roots]
    # Of a treatment of the training a batch shows nothing: that it was not tried on one is no refusal.
    cures = [cure for one in roots for cure in one.cures if not cure.tried and cure.change]
    refused = [f"{cure.label}: {cure.change}" for cure in cures if make(cure.treatment, cure.settings).changes_model]
    text = "no treatment reaches this, the code or the data has to change: " + "; ".join(said)
    text += f" (refused: {'; '.join(refused)})"[:500] if refused else ""
    return Verdict(outcome="cannot be cured by a tool", message=text)


def cut_short(verdict: Verdict, findings: Sequence[Finding], trials: Sequence[Trial]) -> Verdict:
    """Say of a search that was interrupted what it had found; what was not proved until then may yet be.

    Args:
        verdict: On the pairs that there are.
        findings: What was found.
        trials: All that were run, the last of them perhaps not to its end.
    """
    found = verdict.message if verdict.seeds else _until_then(findings, trials)
    message = f"nothing was proved before the search was interrupted; until then {found}"
    return replace(verdict, outcome="not cured", interrupted=True, message=message)


def _until_then(findings: Sequence[Finding], trials: Sequence[Trial]) -> str:
    found = ", ".join(f"{one.code} {one.symptom}" for one in findings) or "nothing"
    tried = [trial for trial in trials if trial.label != "untreated"]
    labels = len({trial.label for trial in tried})
    text = f"{found} was found and {labels or 'no'} treatment{'s' * (labels > 1)} tried"
    known = [(trial.steps, trial.metric, trial) for trial in tried if trial.metric is not None]
    if not known:
        return text
    steps, metric, best = max(known, key=lambda one: one[:2])
    return f"{text}, of which {best.label} is the furthest: metric {spread([metric])} after {steps} steps"


def in_the_code(findings: Sequence[Finding]) -> str:
    """Say which of the roots is a mistake in the code; empty for none."""
    said = [f"{one.code}: {one.cause}{_where_to_look(one)}" for one in _roots(findings) if IN_THE_CODE in one.cause]
    return "".join(f"; {one}" for one in said)


def _roots(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if not finding.follows] or list(findings)


def _where_to_look(finding: Finding) -> str:
    return f" (look at {finding.look_at})" if finding.look_at else ""


def _all_zero(record: Record) -> bool:
    return bool(record.readings) and record.readings[-1].total_norm == 0.0
