"""From a record to findings: which readings count, and in which order findings are told."""

from __future__ import annotations

import os
from dataclasses import dataclass

from evengrad.diagnose import rules
from evengrad.diagnose._abstract import AbstractRule, Sign
from evengrad.nouns import Finding, Reading, Record
from evengrad.runlog import read


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What the rules say of a run.

    Args:
        findings: The most severe first, in the order of the rules' codes; empty for a healthy run.
        record: What they were judged on.
    """

    findings: tuple[Finding, ...]
    record: Record

    def __str__(self) -> str:
        note = f"\nnote: {self.record.note}" if self.record.note else ""
        if not self.findings:
            return f"no findings in {len(self.record.readings)} readings of {self.record.source}{note}"
        return "\n\n".join(str(finding) for finding in self.findings) + note


def diagnose(run: str | os.PathLike[str]) -> Diagnosis:
    """Read a run directory and let every rule judge it; torch is not needed.

    Works beside a training that is still writing.

    Args:
        run: A run directory, as given to `Guard(log=...)` or `repair(log=...)`.

    Raises:
        NotARunError: The directory is something else.
        NewerRunError: It was written by a newer evengrad.
    """
    record = read(run)
    return Diagnosis(findings=findings_of(record), record=record)


def findings_of(record: Record) -> tuple[Finding, ...]:
    """Let every rule judge a record.

    A run that ends healthy gets no finding, even if a rule would have spoken on the way: a recurrent network may start
    with a vanishing gradient and learn to hold it. A rule ends healthy only by a reading that it could judge: a network
    that has lost its gradient altogether has not recovered. A run that ends sick is told from its beginning, so that
    what came first is seen: an exploding network is dead by the time it ends. Non-finite numbers are always told; a
    gradient whose step was skipped has done no harm, so that alone does not make the run end sick.
    """
    signs = {rule: _signs(rule, record) for rule in rules.ALL}
    if not any(_ends_sick(rule, [sign for _, sign in seen]) for rule, seen in signs.items()):
        signs = {rule: seen for rule, seen in signs.items() if rule.code in ALWAYS}
    found = [_finding(rule, seen) for rule, seen in signs.items()]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.severity != "critical"))


ALWAYS = frozenset({"EG201", "EG202"})
"""Rules that are told wherever in a run they speak."""


def symptoms_of(reading: Reading, record: Record) -> dict[str, float]:
    """Size of every symptom in one reading, in decades by code, whether or not the rule speaks."""
    judged = {rule.code: rule.sign(reading, record) for rule in rules.ALL}
    return {code: sign.decades for code, sign in judged.items() if sign is not None}


def _signs(rule: AbstractRule, record: Record) -> list[tuple[Reading, Sign]]:
    judged = [(reading, rule.sign(reading, record)) for reading in record.readings]
    return [(reading, sign) for reading, sign in judged if sign is not None]


def _ends_sick(rule: AbstractRule, judged: list[Sign]) -> bool:
    """Tell whether a rule speaks in the last reading that it could judge, or of harm that cannot be undone."""
    if rule.code in ALWAYS:
        return any(sign.speaks and sign.severity == "critical" for sign in judged)
    return bool(judged) and judged[-1].speaks


def _finding(rule: AbstractRule, seen: list[tuple[Reading, Sign]]) -> Finding | None:
    """Make one finding of all readings in which a rule speaks: the numbers are those of the first one."""
    speaking = [(reading, sign) for reading, sign in seen if sign.speaks]
    if not speaking:
        return None
    first, sign = speaking[0]
    last, _ = speaking[-1]
    return Finding(
        code=rule.code,
        symptom=rule.symptom,
        severity="critical" if any(one.severity == "critical" for _, one in speaking) else "warning",
        where=sign.where,
        when=(first.step, last.step),
        decades=sign.decades,
        message=sign.message,
        evidence=sign.evidence,
        cures=rule.cures(),
        source=rule.source,
    )
