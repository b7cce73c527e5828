"""The search for a cure: look, explain, choose, confirm, so that an interruption leaves what was found so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from evengrad.checkup import Progress
from evengrad.nouns import BadDataError, Story
from evengrad.runlog import write_story
from evengrad.treat import AbstractTreatment
from evengrad.trial._candidates import Candidate
from evengrad.trial._case import Case
from evengrad.trial._choosing import Choosing
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._engine import AbstractEngine, Failure
from evengrad.trial._found import Found
from evengrad.trial._fresh_metric import fresh_metric
from evengrad.trial._fresh_seeds import FreshSeeds
from evengrad.trial._look import Look
from evengrad.trial._patch import Patch
from evengrad.trial._proof import Proof
from evengrad.trial._runs import Runs
from evengrad.trial._spared import tried_with
from evengrad.trial._telling import told, unfinished
from evengrad.trial._terms import Terms
from evengrad.trial._trainings import Trainings

MOST_FULL = 5  # treated trainings of full length, as a third finalist would need


@final
class Search:
    """Conducts the stages; each leaves its results here before the next one begins.

    Args:
        terms: What is asked for.
        engine: Where trainings run; closed by whoever made it.
        progress: Told how the search goes on.
    """

    def __init__(self, terms: Terms, engine: AbstractEngine, progress: Progress | None = None) -> None:
        self._terms = terms
        self._case: Case | None = None
        self._lost = ""  # why there is no untreated training to look at
        self._in_the_data = ""  # what is wrong with them, so that nothing can be trained
        self._confirmations: list[Confirmation] = []
        self._notes: list[str] = []
        self._interrupted = False
        self._runs = Runs(engine, self._keep_unfinished)
        self._runs.progress = progress
        self._trainings = Trainings(terms, self._runs)
        fresh_seeds = FreshSeeds(terms.seed + 2, terms.seeds, self._trainings.train_untreated)
        self._look = Look(self._trainings, fresh_seeds, self.note)
        self._proof = Proof(self._trainings, fresh_seeds, self.note)

    @property
    def found(self) -> Found:
        """What there is so far."""
        return Found(
            terms=self._terms,
            case=self._case,
            lost=self._lost,
            in_the_data=self._in_the_data,
            confirmations=tuple(self._confirmations),
            trials=self._runs.trials,
            notes=tuple(self._notes),
            interrupted=self._interrupted,
        )

    def note(self, text: str) -> None:
        """Have the report say something."""
        self._notes.append(text)

    def run(self) -> None:
        """Go through all stages; Ctrl-C ends them, and what was found until then stays."""
        try:
            self._keep_unfinished()  # a directory of something else is refused before anything is done
            self._stages()
        except KeyboardInterrupt:
            self._interrupted = True
            scout = self._runs.interrupted
            if self._case is None and scout is not None:
                self._case = self._look.case_of(scout)

    def told(self, patch: Patch | None) -> Story:
        """Tell what was found, and keep it in the log."""
        return self._kept(told(self.found, patch))

    def _keep_unfinished(self) -> None:
        if self._terms.log is not None:
            self._kept(unfinished(self.found))

    def _kept(self, story: Story) -> Story:
        if self._terms.log is not None:
            write_story(self._terms.log, story)
        return story

    def _stages(self) -> None:
        """Look, and search for a cure; once more where the proof meets another disease."""
        self._trainings.expect(self._terms.task.steps + self._terms.most_steps)
        try:
            seen = self._look.first()
        except BadDataError as err:
            self._in_the_data = str(err)
            return
        if isinstance(seen, Failure):
            self._lost = seen.trial.error
            return
        self._case = seen  # before the next look: an interruption leaves what the first has seen
        self._case = self._look.closer(seen)
        if not self._cured(self._case):
            self._search_again(self._case)

    def _search_again(self, first: Case) -> None:
        """Search for a cure of another disease, where the proof has met one; without one the first stays the case."""
        untreated = [course for confirmation in self._confirmations for course in confirmation.before]
        other = self._look.another(first, untreated)
        if other is None:
            return
        self._case, self._runs.heading = other, "second search, "
        if not self._cured(other) and first.findings:
            self._case = first

    def _cured(self, case: Case) -> bool:
        """Explain, choose among treatments and confirm, until one holds; tell whether one does."""
        if not case.reachable:
            return False
        self._case = case = case.explained(self._terms.task, self._explaining)
        treatments, why = case.treatments()
        self._notes += why
        if not treatments:
            return False
        self._trainings.expect(self._terms.most_steps)
        return self._confirmed(case, self._chosen(case, treatments))

    def _explaining(self, text: str, done: int, total: int) -> None:
        self._runs.tell(f"{text} ({done + 1} of {total})")

    def _chosen(self, case: Case, treatments: Sequence[AbstractTreatment]) -> list[Candidate]:
        """Rank what was tried, the best first."""
        choosing = Choosing(
            self._terms.task,
            self._runs,
            self._terms.rungs,
            seeds=case.seeds,
            untreated=case.scout.trial,
            floor=fresh_metric(self._terms.task, case.seeds[0]),
            generous=self._terms.budget is None,
            known=frozenset(one.candidate.label for one in self._confirmations),
        )
        finalists = choosing.run(treatments)
        if choosing.stopped:
            self.note(f"Choosing ended early: {choosing.stopped}.")
        return finalists

    def _confirmed(self, case: Case, finalists: list[Candidate]) -> bool:
        """Prove one after the other until one holds; tell whether any has helped."""
        earlier = len(self._confirmations)
        while finalists and self._may_go_on(self._confirmations[earlier:]):
            if not self._trainings.room_for(self._proof.steps_to_come):
                which = "another" if self._confirmations else "any"
                self.note(f"The budget was used up before {which} candidate could be confirmed.")
                return False
            finalist = finalists[0]
            confirmation = Confirmation(finalist, case.findings)
            self._confirmations.append(confirmation)  # before its first pair: an interruption leaves what it has
            self._proof.run(confirmation)
            best = self.found.best()
            if best is not None and best.verdict().outcome != "not cured" and not best.uneven:
                return True
            finalists = [one for one in finalists[1:] if not tried_with(finalist, one)]
        return self.found.winner() is not None

    def _may_go_on(self, confirmations: Sequence[Confirmation]) -> bool:
        """Tell whether another finalist gets seeds: the second always, a third where the others gave up early."""
        full = sum(len(one.seeds) for one in confirmations)
        return len(confirmations) < 2 or full + self._terms.seeds <= MOST_FULL
