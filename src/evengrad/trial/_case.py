"""What a search is after: an untreated training, what the rules find in it, and what may help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from evengrad.checkup import Progress
from evengrad.nouns import Finding, Task
from evengrad.treat import AbstractTreatment
from evengrad.trial._candidates import explained, proposed
from evengrad.trial._course import Course
from evengrad.trial._suspicions import suspected
from evengrad.trial._tailored import tailored


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An untreated training for which a cure is searched.

    Args:
        scout: The training.
        findings: What the rules say of it, with causes once they have been looked for; empty where none speaks.
        seeds: Of the trainings to choose by: that of the scout, and the one on which the last few are compared.
        fresh: The metric that untrained models reach, the median of three; None where nobody has asked or it is none.
    """

    scout: Course
    findings: tuple[Finding, ...]
    seeds: tuple[int, int]
    fresh: float | None = None

    @property
    def reachable(self) -> bool:
        """Whether any treatment reaches a root: what only follows from one is not worth a trial."""
        roots = [finding for finding in self.findings if not finding.follows]
        return not roots or any(finding.cures for finding in roots)

    def explained(self, task: Task, progress: Progress) -> Case:
        """Look for the causes of what was found, and add cures with the numbers that the readings ask for."""
        if not self.findings:
            return self
        found = explained(task, self.findings, seed=self.seeds[0], progress=progress)
        return replace(self, findings=tailored(found, self.scout.record))

    def treatments(self) -> tuple[list[AbstractTreatment], list[str]]:
        """List what is worth a try, by rank, and say why where no rule speaks.

        Cures of the findings; where there is none, what may help all the same.
        """
        if self.findings:
            return proposed(self.findings), []
        return suspected(self.scout)
