"""Which treatments are worth a trial: from the findings' cures, the ones that a counterfactual speaks for first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evengrad.checkup import Patient, Progress, with_causes
from evengrad.nouns import Cure, EvengradError, Finding, Task
from evengrad.probe import probe
from evengrad.treat import AbstractTreatment, Combined, ScaleLearningRate, Treated, make
from evengrad.trial._precision import autocast_of
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import first_batch, fresh_model

# A treatment that removes less than this of a symptom on the batch is not worth a training.
LEAST_RELIEF_DECADES = 0.5
# Where treatments are combined, what is at the output and the functions come before the weights that are scaled for
# them, a norm before the shortcut around it, what wraps the model behind what changes its inside, the training last.
# Beside each, what it acts on: two that act on the same have less to add to each other.
KINDS = {
    "RemoveOutputActivation": "output",
    "AddOutputActivation": "output",
    "AddActivation": "functions",
    "SwapActivation": "functions",
    "UseGatedCell": "structure",
    "AddNormalization": "structure",
    "AddResidual": "structure",
    "KeepInFloat32": "precision",
    "Reinitialize": "weights",
    "TruncateBackprop": "time",
    "NormalizeInput": "input",
    "NormalizeTarget": "target",
    "TrainEverything": "reach",
    "SwapOptimizer": "optimizer",
    "SetOptimizer": "optimizer",
    "ScaleLearningRate": "rate",
    "WarmUp": "rate",
    "ClipGradients": "bound",
    "ConstrainWeights": "bound",
    "ScaleLoss": "precision",
}
ORDER = tuple(KINDS)
# Of these only one at a time makes sense.
EXCLUDE = (frozenset({"SwapOptimizer", "SetOptimizer"}),)
# A third of the same name, with yet another number, waits until all others have had their turn.
MOST_OF_A_NAME = 2


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
        with autocast_of(task.autocast, model):
            record = probe(model, task.loss, batch)
            patient = Patient(model=model, loss=task.loss, batch=batch, record=record, seed=seed)
            return with_causes(findings, patient, progress=progress)


def proposed(findings: Sequence[Finding]) -> list[AbstractTreatment]:
    """Rank what the findings propose: what a counterfactual has spoken for, the smallest change first; then the rest.

    A cure that removes its symptom on the batch and brings no other comes first, then what a batch cannot judge
    (treatments of the training, and all for a symptom that develops later), then what made a symptom smaller. Of each
    finding the first comes before the second of any, since nobody knows yet which finding is the root. What was tried
    and helped nothing is left out.
    """
    ranks: dict[str, tuple[tuple[int, int, int, int], AbstractTreatment]] = {}
    for number, finding in enumerate(findings):
        places: dict[int, int] = {}
        for cure in finding.cures:
            treatment = make(cure.treatment, cure.settings)
            group = _group(cure)
            if group is None:
                continue
            place = places[group] = places.get(group, -1) + 1
            rank = (group, place, number + 100 * bool(finding.follows), treatment.effort)
            known = ranks.get(treatment.label)
            if known is None or rank < known[0]:
                ranks[treatment.label] = (rank, treatment)
    by_rank = [treatment for _, treatment in sorted(ranks.values(), key=lambda pair: pair[0])]
    counts: Counter[str] = Counter()
    late = []
    for treatment in by_rank:
        counts[treatment.name] += 1
        late.append(counts[treatment.name] > MOST_OF_A_NAME)
    return [one for waits in (False, True) for one, is_late in zip(by_rank, late, strict=True) if is_late == waits]


def _group(cure: Cure) -> int | None:
    """Sort a cure: proven, open, of some help; None for what helped nothing. What does not apply is found out later."""
    if not cure.tried:
        return 1
    if cure.removes:
        return 1 if cure.brings else 0
    return 2 if (cure.relief_decades or 0.0) >= LEAST_RELIEF_DECADES else None


def candidates(
    task: Task, treatments: Iterable[AbstractTreatment], *, seed: int, most: int, known: frozenset[str] = frozenset()
) -> list[Candidate]:
    """Treat the task with the first few that apply to it.

    Args:
        task: Left as it is.
        treatments: By rank.
        seed: Of the models that are built to see whether a treatment applies.
        most: How many are wanted.
        known: Labels that are not wanted again.
    """
    chosen: dict[str, Candidate] = {}
    for treatment in treatments:
        if len(chosen) == most:
            break
        if treatment.label in known or treatment.label in chosen:
            continue
        try:
            with seeded(seed):
                treated = treatment.treat_task(task, seed=seed)
        except EvengradError:
            continue  # it does not fit this task; the finding's cures say so where a counterfactual was run
        chosen[treatment.label] = Candidate(treatment=treatment, treated=treated)
    return list(chosen.values())


def combined(first: AbstractTreatment, others: Iterable[AbstractTreatment]) -> list[AbstractTreatment]:
    """Combine one treatment with each of the others that goes with it, in the order in which they work together.

    A factor of the learning rate and another make their product: so a rate is followed up or down while that helps.
    """
    found: list[AbstractTreatment] = []
    for other in others:
        whole = _together(parts_of(first), parts_of(other))
        if whole is None or _clash(frozenset(whole)):
            continue
        parts = tuple(sorted(whole.values(), key=lambda part: _place(part.name)))
        found.append(Combined(parts) if len(parts) > 1 else parts[0])
    return found


def _together(
    first: Sequence[AbstractTreatment], second: Sequence[AbstractTreatment]
) -> dict[str, AbstractTreatment] | None:
    """Join two lists of parts by name; two factors of a learning rate multiply, two others of a name do not go."""
    whole = {part.name: part for part in first}
    for part in second:
        known = whole.get(part.name)
        if isinstance(known, ScaleLearningRate) and isinstance(part, ScaleLearningRate):
            factor = float(f"{known.factor * part.factor:.6g}")
            if factor == 1.0:
                return None
            part = ScaleLearningRate(factor=factor)  # noqa: PLW2901
        elif known is not None:
            return None
        whole[part.name] = part
    return whole


def akin(one: AbstractTreatment, other: AbstractTreatment) -> bool:
    """Tell whether one treatment is part of the other: what the smaller one does has been tried with the larger."""
    first, second = ({part.label for part in parts_of(treatment)} for treatment in (one, other))
    return first <= second or second <= first


def likeness(base: AbstractTreatment, other: AbstractTreatment, *, own: bool) -> tuple[bool, bool, bool]:
    """Rank a partner for a treatment: what acts on something else first, then what its own trial is found to lack.

    Args:
        base: What is to be combined.
        other: With what.
        own: Whether the diagnosis of the trial of `base` proposes it.
    """
    kinds = {KINDS.get(part.name, part.name) for part in parts_of(base)}
    sides = {part.changes_model for part in parts_of(base)}
    follows = own and isinstance(other, ScaleLearningRate) and other.name in {part.name for part in parts_of(base)}
    same_kind = not follows and all(KINDS.get(part.name, part.name) in kinds for part in parts_of(other))
    same_side = all(part.changes_model in sides for part in parts_of(other))
    return (same_kind, not own, same_side and not own)


def parts_of(treatment: AbstractTreatment) -> tuple[AbstractTreatment, ...]:
    """Take a treatment apart; a single one is its own only part."""
    return treatment.treatments if isinstance(treatment, Combined) else (treatment,)


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _clash(names: frozenset[str]) -> bool:
    return any(pair <= names for pair in EXCLUDE)
