"""Findings: what a rule says, with evidence, cause and cures."""

from dataclasses import dataclass, replace
from typing import Literal

from evengrad.nouns._size import size_of

Severity = Literal["warning", "critical"]
Setting = str | float | int | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One number that a finding rests on.

    Example:
        >>> str(Evidence(name="gradient norm at layer 0", value=6.1e-8, unit=""))
        'gradient norm at layer 0: 6.1e-08'
    """

    name: str
    value: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g}" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cure:
    """A treatment that a rule proposes, and what the counterfactual showed when it was tried.

    Args:
        treatment: The name of a treatment, a member of `evengrad.treat.ALL`.
        settings: Its settings.
        tried: Whether a counterfactual was run.
        before_decades: Size of the symptom before, in decades.
        after_decades: Size of the symptom after; None when it was not tried or the treatment does not apply.
        removes: Whether the rule could judge afterwards and is silent.
        brings: Codes of rules that speak afterwards and did not before.
        change: What the treatment changed, in words; or why it could not be tried.
        code: The change as code to paste.
        blames: What a success of this treatment shows to be the cause.
        trials: What came of training with it, alone or with others, in words: `won`; empty where nothing was trained.
    """

    treatment: str
    settings: tuple[tuple[str, Setting], ...] = ()
    tried: bool = False
    before_decades: float | None = None
    after_decades: float | None = None
    removes: bool = False
    brings: tuple[str, ...] = ()
    change: str = ""
    code: str = ""
    blames: str = ""
    trials: str = ""

    @property
    def relief_decades(self) -> float | None:
        """Decades of the symptom that the treatment removed; None when unknown."""
        if self.before_decades is None or self.after_decades is None:
            return None
        return self.before_decades - self.after_decades

    @property
    def label(self) -> str:
        """The treatment as it would be called: `Reinitialize(scheme='he')`."""
        return f"{self.treatment}({', '.join(f'{key}={value!r}' for key, value in self.settings)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A symptom with its place, time, evidence, cause and cures; `str(finding)` is the card.

    Args:
        code: The rule's code, `EG101`.
        symptom: The rule's name in words: `vanishing with depth`.
        severity: `critical` when the layers named cannot learn or the run is lost, otherwise `warning`.
        where: The smallest set of modules or parameters that shows it, in the order of the forward pass.
        when: First and last step at which it was seen.
        decades: Size of the symptom in powers of ten, as the rule defines it.
        message: One sentence with the numbers.
        evidence: The numbers.
        cause: What the counterfactual showed to be the cause; empty when none was run.
        cures: Ranked, the best first.
        source: The paper that the rule rests on.
        family: The kind of trouble that the rule sees, one word for several rules: `vanishing-depth`.
        follows: Codes of the findings of the same run that this one follows from; empty for what stands at the root.
        look_at: The line of code to look at, `model.py:12 in Net.forward`; empty where it is not known.
    """

    code: str
    symptom: str
    severity: Severity
    where: tuple[str, ...]
    when: tuple[int, int] = (0, 0)
    decades: float = 0.0
    message: str = ""
    evidence: tuple[Evidence, ...] = ()
    cause: str = ""
    cures: tuple[Cure, ...] = ()
    source: str = ""
    family: str = ""
    follows: tuple[str, ...] = ()
    look_at: str = ""

    @property
    def size(self) -> float | None:
        """Size of the symptom in decades: infinite where something is not finite, None where it has no size."""
        return self.sized(self.decades) or None

    def sized(self, decades: float | None) -> float | None:
        """Give what a number of decades of this symptom stands for, as that before or after a cure; as `size` else.

        Args:
            decades: None where it is not known, which it stays.

        Example:
            >>> Finding(code="EG201", symptom="non-finite forward", severity="critical", where=()).sized(38.5)
            inf
        """
        return None if decades is None else size_of(self.code, decades)

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self._lines())

    def _lines(self) -> list[str]:
        first, last = self.when
        lines = [
            f"{self.code} {self.symptom} ({self.severity})",
            f"  {self.message}",
            f"  where     {shortened(self.where)}",
            f"  when      step {first}" + (f" to {last}" if last != first else ""),
        ]
        lines += [f"  evidence  {self.evidence[0]}"] if self.evidence else []
        lines += [f"            {item}" for item in self.evidence[1:]]
        lines += [f"  follows   {', '.join(self.follows)}"] if self.follows else []
        lines += [f"  cause     {self.cause}"] if self.cause else []
        lines += [f"  look at   {self.look_at}"] if self.look_at else []
        for number, text in enumerate(_cure_lines(self.cures)):
            lines.append(("  cures     " if number == 0 else "            ") + text)
        lines += [f"  more      evengrad explain {self.code}"]
        return lines


def printable(text: str) -> str:
    r"""Replace what could steer a terminal: names come from the user's model, and a log from anywhere.

    Example:
        >>> printable("\x1b[31mred")
        '?[31mred'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def _cure_lines(cures: tuple[Cure, ...]) -> list[str]:
    """Describe each cure that was tried in a line of its own; the others together, by the reason why they were not."""
    untried: dict[str, list[str]] = {}
    for cure in cures:
        if not cure.tried and not cure.trials:
            untried.setdefault(cure.change or "not tried on one batch", []).append(cure.label)
    tried = [described(cure) for cure in cures if cure.tried or cure.trials]
    return [*tried, *(f"{', '.join(labels)}: {reason}" for reason, labels in untried.items())]


def described(cure: Cure) -> str:
    """Say what a cure did in one line.

    Example:
        >>> described(Cure(treatment="Reinitialize", tried=True, before_decades=7.0, after_decades=0.2, removes=True))
        'Reinitialize(): 7.0 -> 0.2 decades, symptom gone'
        >>> described(Cure(treatment="ClipGradients", trials="won"))
        'ClipGradients(): in trials: won'
    """
    if cure.trials:
        on_a_batch = f"{described(replace(cure, trials=''))}; " if cure.tried else f"{cure.label}: "
        return f"{on_a_batch}in trials: {cure.trials}"
    if cure.before_decades is None or cure.after_decades is None:
        return f"{cure.label}: " + (f"not tried: {cure.change}" if cure.change else "not tried on this batch")
    outcome = "symptom gone" if cure.removes else "symptom still there"
    outcome += f", but now {', '.join(cure.brings)}" if cure.brings else ""
    return f"{cure.label}: {cure.before_decades:.1f} -> {cure.after_decades:.1f} decades, {outcome}"


def shortened(names: tuple[str, ...], most: int = 6) -> str:
    """Join names, leaving out the middle of a long list.

    Example:
        >>> shortened(("a", "b", "c", "d", "e"), most=4)
        'a, b, ... (1 more) ..., d, e'
    """
    if len(names) <= most:
        return ", ".join(names) or "(model)"
    half = most // 2
    left_out = len(names) - 2 * half
    return ", ".join((*names[:half], f"... ({left_out} more) ...", *names[-half:]))
