"""Proof: treated and untreated trainings in pairs, on seeds that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import final

from torch import nn

from evengrad.nouns import Finding, Trial, Verdict
from evengrad.treat import built
from evengrad.trial._candidates import Candidate
from evengrad.trial._control import DOUBT_FRAC, is_doubtful
from evengrad.trial._course import Course, is_flat
from evengrad.trial._engine import Failure
from evengrad.trial._judge import gains_of, hopeless, is_sick, judge
from evengrad.trial._seeded import seeded

Fresh = tuple[float | None, float | None]
"""Metrics of a fresh untreated and a fresh treated model; None where there is none."""


# Of a disease that comes and goes, treated trainings in a row that have it not: as rare as three gains of three are.
LUCK = 1 / 8


@final
class Confirmation:
    """A finalist and its paired trials so far, one pair per seed that was used for nothing else.

    Args:
        candidate: The finalist.
        findings: What it is to cure.
    """

    def __init__(self, candidate: Candidate, findings: tuple[Finding, ...]) -> None:
        self.candidate = candidate
        self.findings = findings
        self.before: list[Course] = []
        self.after: list[Course | Failure] = []
        self.control: list[Course | Failure] = []
        self._fresh: list[Fresh] = []
        self.unchecked = False  # whether the gain asks for a control that there is none of
        self.left_out: list[int] = []  # seeds that are in no pair, as they are not sick untreated
        self.sick_frac = 1.0  # of all untreated trainings so far

    def add(self, before: Course, after: Course | Failure, fresh: Fresh) -> None:
        """Take a pair, and the metrics of the fresh models of its seed, untreated and treated."""
        self.before.append(before)
        self.after.append(after)
        self._fresh.append(fresh)

    @property
    def floors(self) -> list[float | None]:
        """The better of what fresh models reach, untreated and treated: of all seeds, as one may be lucky.

        The median of three and more, the least of fewer.
        """
        sides = [[value for value in side if value is not None] for side in zip(*self._fresh, strict=True)]
        typical = [median(side) if len(side) > 2 else min(side) for side in sides if side]
        return [max(typical, default=None)] * len(self._fresh)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the pairs."""
        return tuple(one.trial.seed for one in self.after)

    @property
    def uneven(self) -> bool:
        """Whether the treated trainings differ by more than a quarter of the best: it helps with some seeds only."""
        known = [trial.metric for trial in _trials(self.after) if trial.metric is not None]
        return bool(known) and max(known) - min(known) > DOUBT_FRAC * max(map(abs, known))

    def verdict(self) -> Verdict:
        """Judge the pairs; without the control that they ask for, a gain is none where nothing has been learnt."""
        verdict = self._judged()
        if verdict.outcome == "not cured" or not (self.unchecked or self._flat):
            return verdict
        if not self.unchecked:
            return replace(verdict, outcome="improved")
        message = f"{verdict.message}; not held against the same training on shuffled targets, which it asks for"
        return replace(verdict, outcome="not cured" if self._flat else "improved", message=message)

    def _judged(self) -> Verdict:
        """Judge the pairs as they are; what may be luck of the seeds, where these were chosen, is not cured."""
        before, after, control = _trials(self.before), _trials(self.after), _trials(self.control)
        verdict = judge(before, after, self.findings, floors=self.floors, control=control)
        said = ""
        if self.left_out:
            seeds = ", ".join(map(str, self.left_out))
            said = f"; left out, as not sick untreated: {'seeds' if len(self.left_out) > 1 else 'seed'} {seeds}"
        if verdict.outcome == "cured" and (1.0 - self.sick_frac) ** len(after) > LUCK:
            said += (
                f"; of the untreated trainings {self.sick_frac:.0%} were sick, so that {len(after)} in a row that are "
                "not may be luck: more seeds would tell"
            )
            verdict = replace(verdict, outcome="improved")
        return replace(verdict, message=verdict.message + said)

    def hopeless(self) -> bool:
        """Tell whether more seeds cannot make it good; a seed on which no rule speaks proves nothing of a disease."""
        before = _trials(self.before)
        if self.findings and not any(map(is_sick, before)):
            return any(one.trial.metric is None for one in self.after)
        return hopeless(before, _trials(self.after), self.floors)

    @property
    def _flat(self) -> bool:
        """Whether a treated loss is that of the best constant prediction in the end."""
        return any(is_flat(one.record) for one in self.after if isinstance(one, Course))

    def doubtful(self) -> bool:
        """Tell whether a control has to be trained: the gains are small, or a loss is that of a constant in the end."""
        if self._flat:
            return True
        after = _trials(self.after)
        gains = [gain for gain in gains_of(_trials(self.before), after, self.floors) if gain is not None]
        return is_doubtful(gains, after)

    def courses(self) -> tuple[list[Course], list[Course]]:
        """Give the untreated and the treated trainings that came through."""
        return self.before, [one for one in self.after if isinstance(one, Course)]

    def best_model(self) -> nn.Module | None:
        """Build the treated model with the best metric and give it its trained state."""
        trained = [one for one in self.courses()[1] if one.trial.metric is not None and one.state is not None]
        if not trained:
            return None
        best = max(trained, key=lambda one: one.trial.metric or float("-inf"))
        with seeded(best.trial.seed):
            model = built(self.candidate.treated.subject)
        try:
            model.load_state_dict(best.state or {})
        except RuntimeError:  # the state of a model that makes part of itself while it runs does not fit a fresh one
            return None
        return model


def _trials(results: Sequence[Course | Failure]) -> list[Trial]:
    return [one.trial for one in results]
