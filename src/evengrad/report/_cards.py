"""Findings as cards: what both outputs show of a finding, cleaned and in the order of reading."""

import math
from dataclasses import dataclass
from typing import final

from evengrad.nouns import Cure, Finding
from evengrad.report import _clean
from evengrad.report._words import NOT_FINITE, decades, finite, number, with_unit

MOST_FINDINGS = 200
_MOST_PLACES = 8
_MOST_EVIDENCE = 30
_MOST_CURES = 20


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CureRow:
    """A cure: its label, the symptom before and after as text and as shares of the longest bar, and what it did.

    `tried` is whether it was on one batch; `trials` is what came of training with it, empty where nothing was trained.
    """

    label: str
    tried: bool
    removes: bool
    before: str
    after: str
    before_frac: float
    after_frac: float
    outcome: str
    change: str
    code: str
    trials: str = ""

    @property
    def sizes(self) -> str:
        """The size before and after on one line, with the unit behind what has one."""
        if NOT_FINITE in {self.before, self.after}:
            return f"{with_unit(self.before)} → {with_unit(self.after)}"
        return f"{self.before} → {self.after} decades"

    @property
    def sizes_aloud(self) -> str:
        """The same for who cannot see the bars."""
        return f"{with_unit(self.before)} before, {self.after} after"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A finding in words."""

    code: str
    symptom: str
    severity: str
    message: str
    where: tuple[str, ...]
    where_left_out: int
    when: str
    size: str
    evidence: tuple[tuple[str, str], ...]
    cause: str
    cures: tuple[CureRow, ...]
    untried: tuple[tuple[str, tuple[str, ...]], ...]
    left_out: str
    source: str
    follows: tuple[str, ...] = ()
    look_at: str = ""

    @property
    def places(self) -> str:
        """The places on one line."""
        if not self.where_left_out:
            return ", ".join(self.where) or "(model)"
        half = len(self.where) // 2
        return ", ".join((*self.where[:half], f"... ({self.where_left_out} more) ...", *self.where[half:]))


def cards_of(findings: tuple[Finding, ...]) -> tuple[Card, ...]:
    """Make the cards of the first findings."""
    return tuple(_card(finding) for finding in findings[:MOST_FINDINGS])


def _card(finding: Finding) -> Card:
    first, last = finding.when
    places = finding.where
    if len(places) > _MOST_PLACES:
        places = (*places[: _MOST_PLACES // 2], *places[-_MOST_PLACES // 2 :])
    return Card(
        code=_clean.name(finding.code),
        symptom=_clean.name(finding.symptom),
        severity=_clean.name(finding.severity),
        message=_clean.sentence(finding.message),
        where=tuple(_clean.name(place) for place in places),
        where_left_out=len(finding.where) - len(places),
        when=f"step {first}" + (f" to {last}" if last != first else ""),
        size=with_unit(decades(finding.size)) if finding.size is not None else "",
        evidence=tuple(
            (_clean.name(item.name), f"{number(item.value)} {_clean.name(item.unit)}".strip())
            for item in finding.evidence[:_MOST_EVIDENCE]
        ),
        cause=_clean.sentence(finding.cause),
        cures=_cure_rows(finding),
        untried=_untried(finding.cures[:_MOST_CURES]),
        left_out=_left_out(finding),
        source=_clean.sentence(finding.source),
        follows=tuple(_clean.name(code) for code in finding.follows[:_MOST_PLACES]),
        look_at=_clean.sentence(finding.look_at),
    )


def _left_out(finding: Finding) -> str:
    gone = [
        f"{have - most} more {thing}"
        for have, most, thing in (
            (len(finding.evidence), _MOST_EVIDENCE, "numbers"),
            (len(finding.cures), _MOST_CURES, "cures"),
        )
        if have > most
    ]
    return f"{' and '.join(gone)} not shown" if gone else ""


def _untried(cures: tuple[Cure, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Put cures that were tried nowhere together by the reason: the reason and their labels."""
    reasons: dict[str, list[str]] = {}
    for cure in cures:
        if not cure.tried and not cure.trials:
            reasons.setdefault(_clean.sentence(cure.change) or "not tried on one batch", []).append(
                _clean.name(cure.label)
            )
    return tuple((reason, tuple(labels)) for reason, labels in reasons.items())


def _cure_rows(finding: Finding) -> tuple[CureRow, ...]:
    cures = [cure for cure in finding.cures[:_MOST_CURES] if cure.tried or cure.trials]
    sizes = finite([size for cure in cures for size in (cure.before_decades, cure.after_decades)])
    longest = max(map(abs, sizes), default=0.0) or 1.0
    return tuple(_cure_row(finding, cure, longest) for cure in cures)


def _cure_row(finding: Finding, cure: Cure, longest: float) -> CureRow:
    compared = cure.before_decades is not None and cure.after_decades is not None
    outcome = "could not be measured" if cure.tried else ""
    if compared:
        outcome = "symptom gone" if cure.removes else "symptom still there"
    return CureRow(
        label=_clean.name(cure.label),
        tried=compared,
        removes=cure.removes and compared,
        before=decades(finding.sized(cure.before_decades)) if compared else "",
        after=decades(finding.sized(cure.after_decades)) if compared else "",
        before_frac=_share(cure.before_decades, longest),
        after_frac=_share(cure.after_decades, longest),
        outcome=outcome,
        change=_clean.sentence(cure.change),
        code=_clean.code(cure.code),
        trials=_clean.sentence(cure.trials),
    )


def _share(size: float | None, longest: float) -> float:
    if size is None or math.isnan(size):
        return 0.0
    return min(1.0, max(0.0, abs(size) / longest))
