"""What every rule is: a pure function from readings to at most one finding."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from evengrad.nouns import Cure, Evidence, Reading, Record, Severity


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """What a rule sees in one reading, whether or not it is enough to speak.

    Args:
        decades: Size of the symptom in powers of ten, 0 when there is none: what counterfactuals are ranked by.
        speaks: Whether the rule's threshold is passed.
        where: Modules or parameters that show it, in the order of the forward pass.
        severity: As in `Finding`.
        message: One sentence with the numbers; empty when it does not speak.
        evidence: The numbers.
    """

    decades: float
    speaks: bool = False
    where: tuple[str, ...] = ()
    severity: Severity = "critical"
    message: str = ""
    evidence: tuple[Evidence, ...] = ()


class AbstractRule(ABC):
    """One fault: its code, its page (the class docstring), and how it is seen.

    A concrete rule's docstring has the headings Sees / Hurts / Cure / False alarms / Source; `evengrad explain CODE`
    prints it.
    """

    code: ClassVar[str]
    symptom: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge one reading; None when the reading cannot tell."""

    @abstractmethod
    def cures(self) -> tuple[Cure, ...]:
        """Propose treatments, the smallest change first."""
