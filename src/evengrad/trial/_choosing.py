"""Choosing among candidates by successive halving, with combinations only where single treatments do not suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile, zip_longest
from math import ceil, isfinite
from typing import final

from evengrad.nouns import Task, Trial
from evengrad.treat import AbstractTreatment
from evengrad.trial._candidates import Candidate, candidates
from evengrad.trial._entrant import Entrant, metric_at
from evengrad.trial._judge import LEAST_GAIN_FRAC, Floor, Standing, loss_at_end, ranked
from evengrad.trial._partners import FASTER, partners
from evengrad.trial._plan import Plan
from evengrad.trial._rungs import MOST_SINGLES, Rungs
from evengrad.trial._runs import Runs
from evengrad.trial._spared import spared

SINGLES_FRAC = 2 / 3  # of the places on the first rung; the rest is for combinations
MOST_TURNS = 6  # of refining, however many steps are left
BASES = 3  # single treatments that combinations are made from


@final
class Choosing:
    """One search for the best treatment.

    Args:
        task: The sick task.
        runs: Where trainings run.
        rungs: How far, and how many.
        seeds: Of all trainings, and the one on which the last few are compared once more.
        untreated: The untreated training of that seed.
        floor: The metric of a fresh model; None if unknown.
        generous: Whether steps that trainings which failed early have not used may be used by others.
        known: Labels of what has been tried to the end.
    """

    def __init__(
        self,
        task: Task,
        runs: Runs,
        rungs: Rungs,
        *,
        seeds: tuple[int, int],
        untreated: Trial,
        floor: float | None,
        generous: bool = True,
        known: frozenset[str] = frozenset(),
    ) -> None:
        self._task = task
        self._runs = runs
        self._rungs = rungs
        self._seed, self._second_seed = seeds
        self._untreated = untreated
        self._floor = floor
        self._generous = generous
        metrics = [metric for metric in (floor, untreated.metric) if metric is not None]
        loss = loss_at_end(untreated)
        self._nothing = Floor(metric=max(metrics, default=None), loss=loss if isfinite(loss) else float("inf"))
        self._known = set(known)
        self._lost: list[Entrant] = []  # those that failed on the first rung: two of them may hold where neither does
        self._stopped = ""
        self._spent_before = self._spent_on_choosing()

    @property
    def _tenth(self) -> int:
        """The step by which ten times the rate has told how far the rate leads; not before the first rung."""
        return max(self._rungs.lengths[0], int(self._task.steps / FASTER.factor))

    @property
    def stopped(self) -> str:
        """Why the search ended before its last rung; empty if it did not."""
        return self._stopped

    def run(self, treatments: Sequence[AbstractTreatment]) -> list[Candidate]:
        """Rank what was tried, the best first; only what could be trained.

        Who has learnt something after a quarter of the steps, of the best four, trains as far on another seed, since
        one seed may be kind to a treatment that others are not; where nobody has, the best two train on to half, and
        then on the other seed.

        Args:
            treatments: Single ones, by rank.
        """
        first, later, last = self._rungs.lengths
        places = self._rungs.places
        entrants = self._entrants(treatments, min(MOST_SINGLES, ceil(SINGLES_FRAC * places[0])))
        field = self._raced(entrants, first, "halving 1")
        if not field:  # none could be trained: then there is nothing to combine, and others have their turn
            others = self._entrants(treatments, (places[0] - len(entrants)) // 2)
            entrants += others
            field = self._raced(others, first, "halving 1")
        if not field or not self._suffices(field[0]):
            more = self._combinations([*self._mixed(field), *self._lost], treatments, places[0] - len(entrants))
            field = self._ordered([*field, *self._raced(more, first, "halving 1")])
        field = self._raced_on(self._cut(self._mixed(field), places[1]))
        settled = self._settled(field, first, later)
        if not settled:
            field = self._refined(field, treatments)
        last_few = self._cut(field, len(self._contenders(field)) or places[2])
        if last_few and not self._shows(last_few[0]):
            last_few = self._raced(last_few, last, "halving 3")
        self._runs.forget([self._plan(entrant, last, "") for entrant in last_few])
        ended = [*self._on_another_seed(last_few, later), *(one for one in field if one not in last_few)]
        known = [one for one in ended if one.trial is not None and one.trial.metric is not None]
        return [entrant.candidate for entrant in spared(known, self._task.steps, self._suffices)]

    def _refined(self, field: list[Entrant], treatments: Sequence[AbstractTreatment]) -> list[Entrant]:
        """Give the leader a rival that has one treatment more, and then whoever is fine and slow, or leads.

        Not where two suffice already and the leader is not slow.
        """
        refined: list[str] = []
        for turn in range(MOST_TURNS):
            if turn >= self._rungs.refined and not self._has_room(field):
                break
            enough = sum(map(self._suffices, field)) >= self._rungs.places[-1]
            if not field or (enough and not self._rises(field[0])):
                break
            slow = [one for one in field if self._rises(one) and one.candidate.label not in refined]
            base = slow[0] if refined and slow else field[0]
            refined.append(base.candidate.label)
            more = self._raced(self._combinations([base], treatments, 1), self._rungs.lengths[0], "halving 1")
            field = self._ordered([*field, *self._raced_on(more)])
        return field

    def _contenders(self, field: Sequence[Entrant]) -> list[Entrant]:
        """List who has shown something, of the best few: the others would show nothing on another seed either."""
        return list(takewhile(self._shows, field[: self._rungs.places[1]]))

    def _has_room(self, field: Sequence[Entrant]) -> bool:
        """Tell whether trainings that failed early, or have shown nothing, leave the steps of another refinement."""
        if not self._generous:
            return False
        _, later, _ = self._rungs.lengths
        contenders = len(self._contenders(field))
        rivals = min(contenders + 1, self._rungs.places[1])  # the refined one may be another
        last = rivals * later if contenders else self._rungs.last_steps
        spent = self._spent_on_choosing() - self._spent_before
        return spent + last + later <= self._rungs.most_steps

    def _spent_on_choosing(self) -> int:
        return sum(len(trial.losses) for trial in self._runs.trials if trial.stage.startswith("halving"))

    def _on_another_seed(self, duel: list[Entrant], until: int) -> list[Entrant]:
        """Rank the last few by the mean of two seeds."""
        if len(duel) < 2:
            return duel
        plans = [replace(self._plan(one, until, "halving 3"), seed=self._second_seed) for one in duel]
        results = dict(self._runs.run([replace(plan, until=min(self._tenth, until)) for plan in plans]))
        going = [place for place, one in results.items() if not one.trial.error and one.trial.steps < until]
        ran = self._runs.run([plans[place] for place in going]) if going else ()
        results |= {going[place]: result for place, result in ran}
        both = [duel[place].beside(results[place].trial) for place in sorted(results)]
        self._runs.forget(plans)
        return self._ordered(both)

    def _entrants(self, treatments: Sequence[AbstractTreatment], most: int) -> list[Entrant]:
        chosen = candidates(self._task, treatments, seed=self._seed, most=most, known=frozenset(self._known))
        first = len(self._known)
        self._known |= {one.label for one in chosen}
        return [Entrant(candidate=one, place=first + place) for place, one in enumerate(chosen)]

    def _combinations(
        self, field: Sequence[Entrant], treatments: Sequence[AbstractTreatment], most: int
    ) -> list[Entrant]:
        """Combine the best with what the diagnosis of their own trials proposes, and with the next best."""
        if most < 1:
            return []
        tried = [entrant.treatment for entrant in field]
        by_base = [
            partners(
                base,
                [*(one for one in tried if one is not base.treatment), *treatments],
                learns=self._suffices(base),
                slow=self._rises(base),
            )
            for base in field[:BASES]
        ]
        in_turn = [pair for turn in zip_longest(*by_base) for pair in turn if pair is not None]
        return self._entrants(in_turn, most)

    def _rises(self, entrant: Entrant) -> bool:
        """Tell whether a training that is fine so far is slow: it learns, and at this rate not to the end."""
        trial = entrant.trial
        if trial is None or trial.metric is None or not self._suffices(entrant):
            return False
        before = metric_at(trial, self._rungs.lengths[0])
        return (
            trial.steps > self._rungs.lengths[0]
            and before is not None
            and trial.metric - before > LEAST_GAIN_FRAC * abs(trial.metric)
        )

    def _raced(self, entrants: Sequence[Entrant], until: int, stage: str) -> list[Entrant]:
        """Train entrants up to a step and rank those that came through."""
        going = [one for one in entrants if one.trial is None or (one.alive and one.trial.steps < until)]
        rest = [one for one in entrants if one not in going]
        results = self._runs.run([self._plan(one, until, stage) for one in going]) if going else ()
        ran = [going[place].after(result) for place, result in sorted(results, key=lambda pair: pair[0])]
        self._lost += [one for one in ran if not one.alive]
        return self._ordered([*ran, *rest])

    def _raced_on(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Train entrants to the second rung, with a look at the metric after a tenth of the steps."""
        _, later, _ = self._rungs.lengths
        return self._raced(self._raced(entrants, min(self._tenth, later), "halving 2"), later, "halving 2")

    def _mixed(self, field: list[Entrant]) -> list[Entrant]:
        """Where nobody has shown anything yet, rank in turn by what speaks for a change and by how large it is."""
        if not field or self._shows(field[0]):
            return field
        in_turn = (one for turn in zip(field, self._ordered(field, bold=True), strict=True) for one in turn)
        return list(dict.fromkeys(in_turn))

    def _ordered(self, entrants: Sequence[Entrant], *, bold: bool = False) -> list[Entrant]:
        alive = sorted((one for one in entrants if one.alive), key=lambda one: one.place)
        standings = [
            Standing(trial=one.trial, effort=one.treatment.effort, same_loss=one.same_loss, learns=one.learns)
            for one in alive
            if one.trial is not None
        ]
        bold = bold or any(standing.trial.steps > self._rungs.lengths[0] for standing in standings)
        return [alive[place] for place in ranked(standings, self._nothing, bold=bold)]

    def _cut(self, field: list[Entrant], count: int) -> list[Entrant]:
        self._runs.forget([self._plan(one, 0, "") for one in field[count:]])
        return field[:count]

    def _plan(self, entrant: Entrant, until: int, stage: str) -> Plan:
        return Plan(
            task=entrant.candidate.treated.subject,
            label=entrant.candidate.label,
            seed=self._seed,
            steps=self._task.steps,
            stage=stage,
            until=until,
            time_s=self._runs.time_s(until),
        )

    def _suffices(self, entrant: Entrant) -> bool:
        """Tell whether it has no finding and has learnt more than the untreated training and a fresh model."""
        trial = entrant.trial
        if trial is None or trial.metric is None or trial.findings or not entrant.learns:
            return False
        untreated = metric_at(self._untreated, trial.steps)
        if untreated is None:  # of a training of a proof nothing is known on the way
            untreated = self._untreated.metric
        known = [metric for metric in (self._floor, untreated) if metric is not None]
        return not known or trial.metric > max(known) + LEAST_GAIN_FRAC * abs(trial.metric)

    def _shows(self, entrant: Entrant) -> bool:
        """Tell whether it has learnt more than the untreated training and a fresh model, with a finding or without."""
        trial = entrant.trial
        if trial is None or trial.metric is None or not entrant.learns:
            return False
        return self._nothing.metric is None or trial.metric > self._nothing.metric + LEAST_GAIN_FRAC * abs(trial.metric)

    def _settled(self, field: Sequence[Entrant], first: int, later: int) -> bool:
        """Tell whether nobody could come to the leader's metric by the end, were each to go on as it has come."""
        if not field or later <= first or not self._suffices(field[0]):
            return False
        leader = field[0].trial
        if leader is None or leader.metric is None:
            return False
        least = LEAST_GAIN_FRAC * abs(leader.metric)
        bounds = [_bound(one.trial, first, later, self._task.steps) for one in field if one.trial is not None]
        if all(bound is not None and bound <= leader.metric + least for bound in bounds):
            self._stopped = f"no candidate could have gained more than {least:.2g} by training on"
            return True
        return False


def _bound(trial: Trial, first: int, later: int, steps: int) -> float | None:
    """Extend the way from the first rung to the second on a straight line to the end: learning slows down."""
    start, end = metric_at(trial, first), trial.metric
    if start is None or end is None:
        return None
    return end + max(0.0, end - start) / (later - first) * (steps - later)
