"""Which treatments are worth a trial: from the findings' cures, the ones that a counterfactual speaks for first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from evengrad.checkup import Patient, Progress, with_causes
from evengrad.nouns import Cure, Finding, Task, TreatmentError
from evengrad.probe import probe
from evengrad.treat import AbstractTreatment, Combined, Treated, make
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import first_batch, fresh_model

# A treatment that removes less than this of a symptom on the batch is not worth a training.
LEAST_RELIEF_DECADES = 0.5
# Where two treatments are combined, the function comes before the weights that are scaled for it, and a norm before
# the shortcut around it.
ORDER = ("SwapActivation", "AddNormalization", "AddResidual", "Reinitialize")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A treatment and the task that it makes."""

    treatment: AbstractTreatment
    treated: Treated[Task]

    @property
    def label(self) -> str:
        """What reports call it."""
        return self.treatment.label


def explained(
    task: Task, findings: tuple[Finding, ...], *, seed: int, progress: Progress | None
) -> tuple[Finding, ...]:
    """Run the counterfactuals on a fresh model, on which the finding is still the first cause and not its wreckage."""
    with seeded(seed):
        model, _ = fresh_model(task)
        batch = first_batch(task)
    record = probe(model, task.loss, batch)
    patient = Patient(model=model, loss=task.loss, batch=batch, record=record, seed=seed)
    return with_causes(findings, patient, progress=progress)


def candidates(task: Task, findings: tuple[Finding, ...], *, seed: int, most: int) -> list[Candidate]:
    """List what to try: single treatments first; pairs only where no single one removed a symptom on the batch.

    What a counterfactual could not try (treatments of the training; everything for a symptom that develops later) is
    worth a trial too and comes behind what one has spoken for, the smallest change first.
    """
    proposed = [(cure, make(cure.treatment, cure.settings)) for finding in findings for cure in finding.cures]
    proven = [part for cure, part in proposed if cure.removes and not cure.brings]
    tried = [part for cure, part in proposed if cure.tried]
    wanted = [*proven, *_helping(proposed), *([] if proven else _pairs(tried)), *_open(proposed)]
    chosen: list[Candidate] = []
    for treatment in {part.label: part for part in wanted}.values():
        if len(chosen) == most:
            break
        try:
            with seeded(seed):
                chosen.append(Candidate(treatment=treatment, treated=treatment.treat_task(task, seed=seed)))
        except TreatmentError:
            continue  # it does not fit this model; the finding's cures say so already
    return chosen


def _helping(proposed: list[tuple[Cure, AbstractTreatment]]) -> list[AbstractTreatment]:
    """Take what made a symptom smaller on the batch or moved it, the most relief first."""
    helping = [(cure.relief_decades or 0.0, part) for cure, part in proposed if cure.tried]
    helping = [pair for pair in helping if pair[0] >= LEAST_RELIEF_DECADES]
    return [part for _, part in sorted(helping, key=lambda pair: -pair[0])]


def _open(proposed: list[tuple[Cure, AbstractTreatment]]) -> list[AbstractTreatment]:
    """Take what a batch could not judge: treatments of the training, and cures without a word on why they failed."""
    open_ = [part for cure, part in proposed if not cure.tried and (not part.changes_model or not cure.change)]
    return sorted(open_, key=lambda part: part.effort)


def _pairs(treatments: list[AbstractTreatment]) -> list[AbstractTreatment]:
    model = [treatment for treatment in treatments if treatment.changes_model]
    pairs = [
        Combined(tuple(sorted(pair, key=lambda part: ORDER.index(part.name))))
        for pair in combinations(model, 2)
        if pair[0].name != pair[1].name
    ]
    return sorted(pairs, key=lambda pair: pair.effort)
