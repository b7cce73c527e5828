"""What every rule is: a pure function from readings to at most one finding."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from evengrad.nouns import Cure, Evidence, Reading, Record, Severity

Tells = Literal["harm", "always", "cause"]
"""When a rule that speaks is told.

`harm`: it keeps a network from learning; a run in whose last judged reading it speaks is sick.
`always`: it is wrong whatever the run looks like, and told wherever in the run it speaks.
`cause`: it is harmless in a run that learns, and told only where another rule has found the run sick.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """What a rule sees in one reading, or in a whole run, whether or not it is enough to speak.

    Args:
        decades: Size of the symptom in powers of ten, 0 when there is none: what counterfactuals are ranked by.
        speaks: Whether the rule's threshold is passed.
        where: Modules or parameters that show it, in the order of the forward pass.
        severity: As in `Finding`.
        message: One sentence with the numbers; empty when it does not speak.
        evidence: The numbers.
        when: First and last step at which it was seen; None for the step of the reading.
        cause: What it comes from, where that is certain from what was seen and nothing needs to be tried: a mistake in
            the code, say.
        only_if_sick: Whether this is a cause at the most, although the rule is otherwise told always.
        cures: What is proposed instead of the rule's own cures: nothing, say, where only a change of the code helps;
            None for these.
    """

    decades: float
    speaks: bool = False
    where: tuple[str, ...] = ()
    severity: Severity = "critical"
    message: str = ""
    evidence: tuple[Evidence, ...] = ()
    when: tuple[int, int] | None = None
    cause: str = ""
    only_if_sick: bool = False
    cures: tuple[Cure, ...] | None = None


class AbstractRule(ABC):
    """One fault that a single reading shows: its code, its page (the class docstring), and how it is seen.

    A concrete rule's docstring has the headings Sees / Hurts / Cure / False alarms / Source; `evengrad explain CODE`
    prints it.
    """

    code: ClassVar[str]
    symptom: ClassVar[str]
    source: ClassVar[str]
    family: ClassVar[str]
    tells: ClassVar[Tells]

    @abstractmethod
    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge one reading; None when the reading cannot tell."""

    @abstractmethod
    def cures(self) -> tuple[Cure, ...]:
        """Propose treatments, the smallest change first."""


class AbstractRunRule(ABC):
    """One fault that only several readings show: how the loss goes, what the steps do to the weights.

    Its page is as that of an `AbstractRule`.
    """

    code: ClassVar[str]
    symptom: ClassVar[str]
    source: ClassVar[str]
    family: ClassVar[str]
    tells: ClassVar[Tells]

    @abstractmethod
    def judge(self, record: Record) -> Sign | None:
        """Judge a run as it stands at its last reading, with `when`; None when it cannot be told yet."""

    @abstractmethod
    def cures(self) -> tuple[Cure, ...]:
        """Propose treatments, the smallest change first."""
