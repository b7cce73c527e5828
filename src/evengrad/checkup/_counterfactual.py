"""The experiment that names a cause: treat a copy, measure the batch again, see whether the symptom goes away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from evengrad.diagnose import findings_of, symptoms_of
from evengrad.nouns import Cure, EvengradError, Finding, Record
from evengrad.probe import probe
from evengrad.treat import make

DEVELOPS = "it is not there at the first step and develops during training; trials show what prevents it"

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

    A finding that this batch and model do not show (it develops later) is left without counterfactuals.

    Each treatment is tried once even when several findings propose it. Treatments of the training (learning rate,
    optimizer, clipping) cannot show on a single batch and are kept, untried, behind those that did.

    Cost: one copy of the model and one probe per treatment, one after the other.
    """
    shown = {finding.code for finding in findings_of(patient.record)}
    wanted = {cure.label: cure for finding in findings if finding.code in shown for cure in finding.cures}
    measured: dict[str, _Measured] = {}
    for done, (label, cure) in enumerate(wanted.items()):
        if progress is not None:
            progress(f"trying {label}", done, len(wanted))
        measured[label] = _measure(cure, patient)
    before = symptoms_of(patient.record.readings[0], patient.record)
    return tuple(
        _with_cause(finding, measured, before) if finding.code in shown else replace(finding, cause=DEVELOPS)
        for finding in findings
    )


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
        return replace(untried, change=str(err))
    return replace(
        untried,
        symptoms=symptoms_of(record.readings[0], record),
        speaking=frozenset(finding.code for finding in findings_of(record)),
        change="; ".join(treated.changes),
        code=treated.code,
    )


def _with_cause(finding: Finding, measured: dict[str, _Measured], before: dict[str, float]) -> Finding:
    size = before.get(finding.code, finding.decades)
    pairs = [(_tried(cure, measured[cure.label], finding.code, size), measured[cure.label]) for cure in finding.cures]
    ranked = sorted(pairs, key=lambda pair: _rank(*pair))
    return replace(finding, cures=tuple(cure for cure, _ in ranked), cause=_cause(ranked))


def _tried(cure: Cure, result: _Measured, code: str, size: float) -> Cure:
    cure = replace(cure, change=result.change, code=result.code, blames=result.blames)
    if result.symptoms is None:
        return cure
    after = result.symptoms.get(code, size if code in result.speaking else 0.0)
    return replace(
        cure, tried=True, before_decades=size, after_decades=max(after, 0.0), removes=code not in result.speaking
    )


def _rank(cure: Cure, result: _Measured) -> tuple[bool, bool, float, int]:
    """Removers first, of those the ones that bring no other finding, then whole decades of relief, then effort.

    Whole decades, because a tenth of a decade more is no reason for the larger change.
    """
    relief = cure.relief_decades
    return (not cure.removes, bool(result.speaking), -round(relief) if relief is not None else 0, result.effort)


def _cause(ranked: list[tuple[Cure, _Measured]]) -> str:
    removers = [(cure, result) for cure, result in ranked if cure.removes and not result.speaking]
    if not removers:
        tried = [cure for cure, _ in ranked if cure.tried]
        if not tried:
            return ""
        best = max(tried, key=lambda cure: cure.relief_decades or 0.0)
        return (
            "no single change of the model removes it on this batch; the nearest is "
            f"{best.label} ({best.before_decades:.1f} to {best.after_decades:.1f} decades)"
        )
    cure, result = min(removers, key=lambda pair: pair[1].effort)
    return (
        f"{result.blames}: {cure.label} alone brings it from {cure.before_decades:.1f} to "
        f"{cure.after_decades:.1f} decades"
    )
