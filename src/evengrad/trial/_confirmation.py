"""Proof: treated and untreated trainings in pairs, on seeds that nothing was chosen by."""

from __future__ import annotations

from typing import final

from torch import nn

from evengrad.nouns import Finding, Trial, Verdict
from evengrad.trial._candidates import Candidate
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._judge import hopeless, judge
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import built


@final
class Confirmation:
    """A finalist and its paired trials so far, one pair per seed that was used for nothing else."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.before: list[Course | Failure] = []
        self.after: list[Course | Failure] = []
        self.untrained: list[float | None] = []

    def add(self, before: Course | Failure, after: Course | Failure, untrained: float | None) -> None:
        """Take a pair and the metric of a fresh model of the same seed."""
        self.before.append(before)
        self.after.append(after)
        self.untrained.append(untrained)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the pairs."""
        return tuple(one.trial.seed for one in self.after)

    def verdict(self, findings: tuple[Finding, ...]) -> Verdict:
        """Judge the pairs."""
        return judge(_trials(self.before), _trials(self.after), findings, untrained=self.untrained)

    def hopeless(self, *, sick: bool) -> bool:
        """Tell whether more seeds cannot make it good.

        Args:
            sick: Whether the disease is one that rules speak of; then a seed on which none does proves nothing.
        """
        before = _trials(self.before)
        if sick and not any(trial.findings or trial.metric is None for trial in before):
            return any(one.trial.metric is None for one in self.after)
        return hopeless(before, _trials(self.after), self.untrained)

    def courses(self) -> tuple[list[Course], list[Course]]:
        """Give the untreated and the treated trainings that came through."""
        before = [one for one in self.before if isinstance(one, Course)]
        return before, [one for one in self.after if isinstance(one, Course)]

    def best_model(self) -> nn.Module | None:
        """Build the treated model with the best metric and give it its trained state."""
        trained = [one for one in self.courses()[1] if one.trial.metric is not None and one.state is not None]
        if not trained:
            return None
        best = max(trained, key=lambda one: one.trial.metric or float("-inf"))
        with seeded(best.trial.seed):
            model = built(self.candidate.treated.subject)
        model.load_state_dict(best.state or {})
        return model


def _trials(results: list[Course | Failure]) -> list[Trial]:
    return [one.trial for one in results]
