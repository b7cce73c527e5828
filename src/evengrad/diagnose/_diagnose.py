"""From a record to findings: which readings count, and in which order findings are told."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from evengrad.diagnose import rules
from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule, Sign
from evengrad.diagnose._choice import codes_of
from evengrad.diagnose._fresh import starts_far_above_guessing
from evengrad.diagnose._lasting import lasted
from evengrad.diagnose._profile import without_call
from evengrad.diagnose._story import told_as_a_story, without_idle_causes
from evengrad.nouns import Finding, Reading, Record, printable, shortened
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

    @property
    def headline(self) -> str:
        """What there is to say, in one line."""
        count = len(self.record.readings)
        of = f"in {count} reading{'s' * (count != 1)} of {self.record.source}"
        if not self.findings:
            return f"no findings {of}"
        roots = sum(not finding.follows for finding in self.findings)
        below = len(self.findings) - roots
        rest = f", and {below} that {'follows' if below == 1 else 'follow'} from {'it' if roots == 1 else 'them'}"
        return f"{roots} finding{'s' * (roots > 1)} {of}{rest if below else ''}"

    def __str__(self) -> str:
        parts = [printable(self.headline)]
        for finding in self.findings:
            parts.append(f"\n{finding}" if not finding.follows else f"  \u2514 {in_one_line(finding)}")
        return "\n".join([*parts, *([f"note: {printable(self.record.note)}"] if self.record.note else [])])


def in_one_line(finding: Finding) -> str:
    """Say a finding in a line, for a log.

    Example:
        >>> from evengrad.nouns import Finding
        >>> in_one_line(Finding(code="EG801", symptom="plateau", severity="warning", where=("loss",), when=(3, 9)))
        'EG801 plateau (warning) at loss, step 3'
    """
    where = f" at {shortened(finding.where)}" if finding.where else ""
    said = f": {finding.message}" if finding.message else ""
    return printable(f"{finding.code} {finding.symptom} ({finding.severity}){where}, step {finding.when[0]}{said}")


def diagnose(
    run: str | os.PathLike[str],
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    rank: int = 0,
) -> Diagnosis:
    """Read a run directory and let every rule judge it; torch is not needed.

    Works beside a training that is still writing.

    Args:
        run: A run directory, as given to `Guard(log=...)` or `repair(log=...)`.
        select: Tell findings of these rules only; codes or their beginnings: `EG101`, `EG1`. All are asked.
        ignore: Do as if these rules were not there.
        rank: Whose readings, in a distributed run.

    Raises:
        NotARunError: The directory is something else.
        NewerRunError: It was written by a newer evengrad.
        RunLogError: It cannot be read, or has no such rank.
        UnknownRuleError: No rule has such a code.
    """
    chosen = Choice(select=tuple(select), ignore=tuple(ignore))
    chosen.check()
    record = read(run, rank=rank)
    return Diagnosis(findings=chosen.findings_of(record), record=record)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which rules are asked, and which are told.

    Args:
        select: Codes or their beginnings; empty for all.
        ignore: The same; these are not asked.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what no rule is called.

        Raises:
            UnknownRuleError: No code begins so.
        """
        codes_of(self.select, what="select")
        codes_of(self.ignore, what="ignore")

    def findings_of(self, record: Record) -> tuple[Finding, ...]:
        """Judge a record."""
        told = codes_of(self.select, what="select")
        found = findings_of(record, ignore=codes_of(self.ignore, what="ignore"))
        if not self.select:
            return found
        kept = [finding for finding in found if finding.code in told]
        return tuple(replace(one, follows=tuple(code for code in one.follows if code in told)) for one in kept)


def findings_of(record: Record, *, ignore: frozenset[str] = frozenset()) -> tuple[Finding, ...]:
    """Let every rule judge a record, and tell what they say as one story: roots first, what follows below.

    A run that ends healthy gets no finding, even if a rule would have spoken on the way: a recurrent network may start
    with a vanishing gradient and learn to hold it. A rule ends healthy only by a reading that it could judge: a network
    that has lost its gradient altogether has not recovered. A run that ends sick is told from its beginning, so that
    what came first is seen: an exploding network is dead by the time it ends. So is one that spent a fifth of its steps
    under a symptom without learning anything, and began to learn when the symptom went away. What is wrong in any case
    (non-finite numbers, a mistake in the loop) is always told; what can be a cause but does no harm by itself is told
    only in a run that is sick, and only if it explains something there. A gradient whose step was skipped has done no
    harm, so that alone does not make the run end sick. A single batch of an untrained model is sick if its loss is ten
    times that of guessing.

    Args:
        record: The readings.
        ignore: Codes of rules that are not asked.
    """
    asked = [rule for rule in rules.ALL if rule.code not in ignore]
    seen = {rule.code: _signs(rule, record) for rule in asked}
    fresh = starts_far_above_guessing(record)
    sick = fresh or any(_is_sick(rule, seen[rule.code], record) for rule in asked)
    told = [rule for rule in asked if sick or rule.tells == "always"]
    found = [
        _finding(rule, [one for one in seen[rule.code] if sick or not one[1].only_if_sick], record) for rule in told
    ]
    story = told_as_a_story([one for one in found if one is not None])
    # of a model that has made no step nothing but causes can be seen
    return story if fresh else without_idle_causes(story, {rule.code for rule in asked if _is_cause(rule, seen)})


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


def _is_sick(rule: Rule, seen: list[tuple[Reading, Sign]], record: Record) -> bool:
    """Tell whether a rule speaks in the last reading that it could judge, or of harm that cannot be undone."""
    if rule.tells == "cause":
        return False
    if rule.tells == "always":
        return any(sign.speaks and sign.severity == "critical" and not sign.only_if_sick for _, sign in seen)
    if any(sign.only_if_sick for _, sign in seen):
        seen = [(reading, replace(sign, speaks=sign.speaks and not sign.only_if_sick)) for reading, sign in seen]
    if not seen or seen[-1][1].speaks:
        return bool(seen)
    return isinstance(rule, AbstractRule) and lasted(seen, record) is not None


def _is_cause(rule: Rule, seen: Mapping[str, list[tuple[Reading, Sign]]]) -> bool:
    """Tell whether all that a rule says of a run is a cause at the most."""
    return rule.tells == "cause" or all(sign.only_if_sick for _, sign in seen[rule.code] if sign.speaks)


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
        cures=rule.cures() if sign.cures is None else sign.cures,
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
