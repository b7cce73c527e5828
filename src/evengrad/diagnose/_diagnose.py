"""From a record to findings: which readings count, and in which order findings are told."""

from __future__ import annotations

import os
from dataclasses import dataclass

from evengrad.diagnose import rules
from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule, Sign
from evengrad.diagnose._profile import without_call
from evengrad.diagnose._story import told_as_a_story
from evengrad.nouns import Finding, Reading, Record
from evengrad.runlog import read


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What the rules say of a run.

    Args:
        findings: One story: what stands at the root first, the critical ones before the others, what follows from
            each below it; empty for a healthy run.
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
    """Let every rule judge a record, and tell what they say as one story: roots first, what follows below.

    A run that ends healthy gets no finding, even if a rule would have spoken on the way: a recurrent network may start
    with a vanishing gradient and learn to hold it. A rule ends healthy only by a reading that it could judge: a network
    that has lost its gradient altogether has not recovered. A run that ends sick is told from its beginning, so that
    what came first is seen: an exploding network is dead by the time it ends. What is wrong in any case (non-finite
    numbers, a mistake in the loop) is always told; what can be a cause but does no harm by itself is told only in a run
    that is sick. A gradient whose step was skipped has done no harm, so that alone does not make the run end sick.
    """
    seen = {rule.code: _signs(rule, record) for rule in rules.ALL}
    sick = any(_ends_sick(rule, [sign for _, sign in seen[rule.code]]) for rule in rules.ALL)
    told = [rule for rule in rules.ALL if sick or rule.tells == "always"]
    found = [_finding(rule, seen[rule.code], record) for rule in told]
    return told_as_a_story([one for one in found if one is not None])


def symptoms_of(reading: Reading, record: Record) -> dict[str, float]:
    """Size of every symptom in one reading, in decades by code, whether or not the rule speaks."""
    judged = {rule.code: rule.sign(reading, record) for rule in rules.ALL if isinstance(rule, AbstractRule)}
    return {code: sign.decades for code, sign in judged.items() if sign is not None}


Rule = AbstractRule | AbstractRunRule


def _signs(rule: Rule, record: Record) -> list[tuple[Reading, Sign]]:
    if isinstance(rule, AbstractRunRule):
        sign = rule.judge(record) if record.readings else None
        return [] if sign is None else [(record.readings[-1], sign)]
    judged = [(reading, rule.sign(reading, record)) for reading in record.readings]
    return [(reading, sign) for reading, sign in judged if sign is not None]


def _ends_sick(rule: Rule, judged: list[Sign]) -> bool:
    """Tell whether a rule speaks in the last reading that it could judge, or of harm that cannot be undone."""
    if rule.tells == "cause":
        return False
    if rule.tells == "always":
        return any(sign.speaks and sign.severity == "critical" for sign in judged)
    return bool(judged) and judged[-1].speaks


def _finding(rule: Rule, seen: list[tuple[Reading, Sign]], record: Record) -> Finding | None:
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
        when=(first.step, last.step) if sign.when is None else sign.when,
        decades=sign.decades,
        message=sign.message,
        evidence=sign.evidence,
        cause=sign.cause,
        cures=rule.cures(),
        source=rule.source,
        family=rule.family,
        look_at=_look_at(sign.where, record),
    )


def _look_at(where: tuple[str, ...], record: Record) -> str:
    """Find the user's code of the first place: of the module itself, or of the nearest one that holds it."""
    sources = dict(record.setup.sources) if record.setup is not None else {}
    for place in where:
        parts = without_call(place).split(".")
        for length in range(len(parts), 0, -1):
            if found := sources.get(".".join(parts[:length])):
                return found
    return sources.get("(model)", "") if where else ""
