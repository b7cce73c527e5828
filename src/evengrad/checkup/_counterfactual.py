"""The experiment that names a cause: treat a copy, measure the batch again, see whether the symptom goes away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from evengrad.diagnose import findings_of, symptoms_of
from evengrad.nouns import Cure, EvengradError, Finding, Record, TreatmentError
from evengrad.probe import probe
from evengrad.treat import AbstractTreatment, make

# Where the treated model has no unit of that kind any more (a rectifier swapped away), the rule has nothing to judge
# and the symptom is gone. Everywhere else a rule that cannot judge says nothing about a cure.
GONE_WITH_ITS_KIND = frozenset({"EG301", "EG302"})

DEVELOPS = "it is not there at the first step and develops during training; trials show what prevents it"

DOES_NOT_APPLY = "does not apply"
# These look at more than the model where they have a task: at its loss, its autocast, all of its batches. What they say
# of a model alone is not the last word.
ASK_THE_TASK = frozenset({"AddOutputActivation", "KeepInFloat32", "NormalizeInput"})

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much is done, and how much there is in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """What a counterfactual is run on: the model as it was found, and the batch that showed the symptom."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    batch: Any
    record: Record
    seed: int


def with_causes(
    findings: tuple[Finding, ...], patient: Patient, *, progress: Progress | None = None
) -> tuple[Finding, ...]:
    """Try the cures of every finding on copies, rank them by relief, and name the cause.

    A finding that this batch and model do not show (it develops later) is left without counterfactuals; of its cures
    those that do not apply to the model say so. A cause that the rule itself is certain of, such as a mistake in the
    code, stays.

    Each treatment is tried once even when several findings propose it. Treatments of the training (learning rate,
    optimizer, clipping) cannot show on a single batch and are kept, untried, behind those that did.

    Cost: one copy of the model and one probe per treatment, one after the other; without the probe for what only
        findings that develop later propose.
    """
    shown = frozenset(finding.code for finding in findings_of(patient.record))
    wanted = {cure.label: cure for finding in findings if finding.code in shown for cure in finding.cures}
    measured: dict[str, _Measured] = {}
    for done, (label, cure) in enumerate(wanted.items()):
        if progress is not None:
            progress(f"trying {label}", done, len(wanted))
        measured[label] = _measure(cure, patient)
    refusals = _refusals([finding for finding in findings if finding.code not in shown], measured, patient)
    before = _Before(symptoms=symptoms_of(patient.record.readings[0], patient.record), speaking=shown)
    return tuple(
        _with_cause(finding, measured, before) if finding.code in shown else _developing(finding, refusals)
        for finding in findings
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Before:
    """The symptoms of the untreated model, and the rules that speak of them."""

    symptoms: dict[str, float]
    speaking: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What one treatment did: the symptoms afterwards, or why it could not be tried."""

    symptoms: dict[str, float] | None
    speaking: frozenset[str]
    change: str
    code: str
    blames: str
    effort: int


def _measure(cure: Cure, patient: Patient) -> _Measured:
    treatment = make(cure.treatment, cure.settings)
    untried = _Measured(
        symptoms=None, speaking=frozenset(), change="", code="", blames=treatment.blames, effort=treatment.effort
    )
    if not treatment.changes_model:
        return replace(untried, change="acts on the training, which one batch cannot show; a trial can")
    try:
        treated = treatment.treat(patient.model, seed=patient.seed, batch_input=patient.batch[0])
        record = probe(treated.subject, patient.loss, patient.batch)
    except EvengradError as err:
        return replace(untried, change=_why_not(treatment, err))
    return replace(
        untried,
        symptoms=symptoms_of(record.readings[0], record),
        speaking=frozenset(finding.code for finding in findings_of(record)),
        change="; ".join(treated.changes),
        code=treated.code,
    )


def _why_not(treatment: AbstractTreatment, err: EvengradError) -> str:
    certain = isinstance(err, TreatmentError) and treatment.name not in ASK_THE_TASK
    return f"{DOES_NOT_APPLY}: {err.came}" if certain else str(err)


def _refusals(findings: Sequence[Finding], measured: dict[str, _Measured], patient: Patient) -> dict[str, str]:
    """Say of the cures of some findings which do not apply, and why; what has been measured is not asked again."""
    wanted = {cure.label: cure for finding in findings for cure in finding.cures}
    why = {
        label: measured[label].change if label in measured else _asked(cure, patient) for label, cure in wanted.items()
    }
    return {label: words for label, words in why.items() if words.startswith(DOES_NOT_APPLY)}


def _asked(cure: Cure, patient: Patient) -> str:
    treatment = make(cure.treatment, cure.settings)
    if not treatment.changes_model:
        return ""
    try:
        treatment.treat(patient.model, seed=patient.seed, batch_input=patient.batch[0])
    except EvengradError as err:
        return _why_not(treatment, err)
    return ""


def _developing(finding: Finding, refusals: dict[str, str]) -> Finding:
    cures = tuple(replace(cure, change=refusals.get(cure.label, cure.change)) for cure in finding.cures)
    return replace(finding, cures=cures, cause=finding.cause or (DEVELOPS if cures else ""))


def _with_cause(finding: Finding, measured: dict[str, _Measured], before: _Before) -> Finding:
    if not finding.cures:
        return finding
    pairs = [(_tried(cure, measured[cure.label], finding.code, before), measured[cure.label]) for cure in finding.cures]
    ranked = sorted(((cure, result.effort) for cure, result in pairs), key=lambda pair: _rank(*pair))
    return replace(finding, cures=tuple(cure for cure, _ in ranked), cause=finding.cause or _cause(ranked))


def _tried(cure: Cure, result: _Measured, code: str, before: _Before) -> Cure:
    cure = replace(cure, change=result.change, code=result.code, blames=result.blames)
    if result.symptoms is None:
        return cure
    after = result.symptoms.get(code)
    if after is None and code not in GONE_WITH_ITS_KIND:
        return replace(cure, change=f"{result.change}; afterwards the rule could not judge this batch")
    return replace(
        cure,
        tried=True,
        before_decades=before.symptoms[code],
        after_decades=max(after or 0.0, 0.0),
        removes=code not in result.speaking,
        brings=tuple(sorted(result.speaking - before.speaking)),
    )


def _rank(cure: Cure, effort: int) -> tuple[bool, bool, float, int]:
    """Removers first, of those the ones that bring no other finding, then whole decades of relief, then effort.

    Whole decades, because a tenth of a decade more is no reason for the larger change. What was not tried stays in the
    order in which the rule proposes it.
    """
    relief = cure.relief_decades
    return (not cure.removes, bool(cure.brings), -round(relief or 0.0), effort if cure.tried else 0)


def _cause(ranked: list[tuple[Cure, int]]) -> str:
    removers = [(cure, effort) for cure, effort in ranked if cure.removes and not cure.brings]
    if not removers:
        tried = [cure for cure, _ in ranked if cure.tried]
        if not tried:
            return ""
        best = max(tried, key=lambda cure: cure.relief_decades or 0.0)
        return (
            "no single change of the model removes it on this batch; the nearest is "
            f"{best.label} ({best.before_decades:.1f} to {best.after_decades:.1f} decades)"
        )
    cure, _ = min(removers, key=lambda pair: pair[1])
    return (
        f"{cure.blames}: {cure.label} alone brings it from {cure.before_decades:.1f} to "
        f"{cure.after_decades:.1f} decades"
    )
