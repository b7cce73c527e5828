"""What a search has found so far, and the verdict that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from evengrad.nouns import Finding, Trial, Verdict
from evengrad.trial._case import Case
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._judge import judge
from evengrad.trial._terms import Terms
from evengrad.trial._without import cut_short, in_the_code, not_by_a_tool, without_findings

OUTCOMES = ("cured", "improved", "not cured")  # of a proof, the best first
HELPED = frozenset(OUTCOMES[:2])


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search has found so far.

    Args:
        terms: What it was asked for.
        case: What was searched for last; None before there is an untreated training.
        lost: Why there is no untreated training to look at; empty where there is one.
        in_the_data: What is wrong with the data, so that there is none; empty where nothing is.
        confirmations: Every finalist that got seeds.
        trials: Every training.
        notes: What the report is to say beside.
        interrupted: Whether Ctrl-C has ended the search.
    """

    terms: Terms
    case: Case | None = None
    lost: str = ""
    in_the_data: str = ""
    confirmations: tuple[Confirmation, ...] = ()
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with the untreated training."""
        return self.case.findings if self.case is not None else ()

    @property
    def tried(self) -> bool:
        """Whether any treatment has been tried."""
        return any(trial.label != "untreated" for trial in self.trials)

    def best(self) -> Confirmation | None:
        """Give the confirmation that came out best; None when there was none."""
        judged = [one for one in self.confirmations if one.seeds]
        return min(judged, key=lambda one: (OUTCOMES.index(one.verdict().outcome), one.uneven), default=None)

    def winner(self) -> Confirmation | None:
        """Give the confirmation that helped; None when none did."""
        best = self.best()
        return best if best is not None and self.verdict().outcome in HELPED else None

    def verdict(self) -> Verdict:
        """Say what the trials have shown."""
        best = self.best()
        if best is None and not self.interrupted and (without := self._without_proof()) is not None:
            return without
        verdict = best.verdict() if best is not None else judge([], [], self.findings, floors=[])
        whole = best is not None and not best.unchecked and len(verdict.seeds) >= self.terms.seeds
        if whole or not self.interrupted:
            verdict = self._reasoned(verdict)
        if self.interrupted and (not whole or verdict.outcome == "not cured"):  # others had their turn still
            return cut_short(verdict, self.findings, self.trials)
        return verdict

    def _reasoned(self, verdict: Verdict) -> Verdict:
        """Say of what was not cured what else there is to know of it."""
        if verdict.outcome != "not cured":
            return verdict
        if not self.findings and self.case is not None:
            return without_findings(self.case.scout, tried=True, fresh=self.case.fresh)
        return replace(verdict, message=verdict.message + in_the_code(self.findings))

    def _without_proof(self) -> Verdict | None:
        """Judge a search that came to no pair of trainings; None where it had candidates and none could be trained."""
        if self.in_the_data:
            return Verdict(outcome="cannot be cured by a tool", message=f"the data have to change: {self.in_the_data}")
        if self.lost:
            return Verdict(outcome="not cured", message=f"the untreated training came to nothing: {self.lost}")
        if self.case is None:
            return None
        if not self.findings:
            return without_findings(self.case.scout, tried=self.tried, fresh=self.case.fresh)
        by_code = not_by_a_tool(self.findings, tried=self.tried)
        return None if by_code is None else replace(by_code, metric_before=(self.case.scout.trial.metric,))
