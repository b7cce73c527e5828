"""Which treatments are worth a trial: from the findings' cures, the ones that a counterfactual speaks for first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch

from evengrad.checkup import Patient, Progress, with_causes
from evengrad.nouns import Finding, Task, TreatmentError
from evengrad.probe import probe
from evengrad.treat import AbstractTreatment, Combined, Treated, make
from evengrad.trial._course import batches

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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.model()
    batch = next(batches(task))
    record = probe(model, task.loss, batch)
    patient = Patient(model=model, loss=task.loss, batch=batch, record=record, seed=seed)
    return with_causes(findings, patient, progress=progress)


def candidates(task: Task, findings: tuple[Finding, ...], *, seed: int, most: int) -> list[Candidate]:
    """List what to try: single treatments first; pairs only where no single one removed a symptom on the batch.

    Treatments of the training are always worth a trial, as a batch cannot judge them; they come after those that a
    counterfactual has spoken for.
    """
    cures = [cure for finding in findings for cure in finding.cures]
    proven = [cure for cure in cures if cure.tried and cure.removes]
    relief = {cure.label: cure.relief_decades or 0.0 for cure in cures if cure.tried and not cure.removes}
    helping = [cure for cure in cures if relief.get(cure.label, 0.0) >= LEAST_RELIEF_DECADES]
    single = [
        make(cure.treatment, cure.settings) for cure in [*proven, *sorted(helping, key=lambda c: -relief[c.label])]
    ]
    open_ = [make(cure.treatment, cure.settings) for cure in cures if not cure.tried]
    fits = {cure.label for cure in cures if not cure.tried and not cure.change}
    open_ = sorted((t for t in open_ if not t.changes_model or t.label in fits), key=lambda t: t.effort)
    pairs = [] if proven else _pairs([make(cure.treatment, cure.settings) for cure in cures if cure.tried])
    wanted = [*single, *pairs, *open_]
    unique = {treatment.label: treatment for treatment in reversed(wanted)}
    ordered = [unique[label] for label in dict.fromkeys(treatment.label for treatment in wanted)]
    chosen: list[Candidate] = []
    for treatment in ordered:
        if len(chosen) == most:
            break
        try:
            chosen.append(Candidate(treatment=treatment, treated=treatment.treat_task(task, seed=seed)))
        except TreatmentError:
            continue  # it does not fit this model; the finding's cures say so already
    return chosen


def _pairs(treatments: list[AbstractTreatment]) -> list[AbstractTreatment]:
    model = [treatment for treatment in treatments if treatment.changes_model]
    pairs = [
        Combined(tuple(sorted(pair, key=lambda part: ORDER.index(part.name))))
        for pair in combinations(model, 2)
        if pair[0].name != pair[1].name
    ]
    return sorted(pairs, key=lambda pair: pair.effort)
