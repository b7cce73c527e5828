"""What was told already: each finding once, and again when its severity changes."""

from collections.abc import Sequence
from typing import final

from evengrad.nouns import Finding, Severity


@final
class Told:
    """Remember what was told of a run.

    A finding that has gone and comes back is not told again: a rule that stands on the edge would chatter.

    Example:
        >>> told = Told()
        >>> one = Finding(code="EG101", symptom="", severity="warning", where=())
        >>> len(told.news([one])), len(told.news([one]))
        (1, 0)
    """

    def __init__(self) -> None:
        self._severities: dict[str, Severity] = {}

    def news(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Return the findings that are to be told now, in their order."""
        news = tuple(one for one in findings if self._severities.get(one.code) != one.severity)
        self._severities |= {one.code: one.severity for one in findings}
        return news
