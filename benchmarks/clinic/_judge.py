"""Whether a diagnosis is right: the family of what it names first, and the place that it points to."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from evengrad.nouns import Finding

DATA = frozenset({"input", "target"})
HEALTHY = "(nothing)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One training with what was to be said of it and what was.

    Args:
        what: `faulty`, `fixed`, `healthy` or `architecture`.
        number: The program's number, 0 where it has none.
        name: What it is.
        seed: Of weights and loop.
        families: The right answers; empty where nothing is to be found.
        told: Family of each root, in the order in which they were told.
        codes: Of all findings.
        family_right: Whether the first root is of a right family.
        among_roots: Whether one of the roots is.
        place_right: Whether the first finding of a right family points to the right place.
        metric: What the training reached.
        seconds: Training, watching and judging.
        judging_s: Judging alone.
        steps: Optimizer steps.
        said: The findings as text, for the reader.
    """

    what: str
    number: int
    name: str
    seed: int
    families: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    family_right: bool = False
    among_roots: bool = False
    place_right: bool = False
    metric: float | None = None
    seconds: float = 0.0
    judging_s: float = 0.0
    steps: int = 0
    said: str = ""

    @property
    def flagged(self) -> bool:
        """Whether anything was found."""
        return bool(self.codes)


def right_family(findings: Sequence[Finding], families: Sequence[str]) -> tuple[bool, bool]:
    """Tell whether the first root is of one of the families, and whether any root is."""
    roots = [finding for finding in findings if not finding.follows]
    return bool(roots) and roots[0].family in families, any(root.family in families for root in roots)


def right_place(findings: Sequence[Finding], families: Sequence[str], place: Sequence[str]) -> bool:
    """Tell whether the first finding of a right family points to the right place."""
    right = next((finding for finding in findings if finding.family in families), None)
    return right is not None and any(_matches(name, pattern) for name in right.where for pattern in place)


def _matches(name: str, pattern: str) -> bool:
    if pattern == "data":
        return name.split(".", maxsplit=1)[0] in DATA
    module = name.partition("#")[0].removesuffix("()")
    owners = (module, module.rpartition(".")[0])  # a parameter or a function counts as its module
    return pattern == name or any(fnmatchcase(owner, pattern) for owner in owners if owner)


def confusion(cases: Sequence[Case]) -> list[tuple[str, str, int]]:
    """Count what was told first for each family that was to be told: rows (wanted, told, how often)."""
    counted: Counter[tuple[str, str]] = Counter()
    for case in cases:
        wanted = HEALTHY if not case.families else case.families[0]
        told = case.told[0] if case.told else HEALTHY
        counted[wanted, wanted if case.family_right else told] += 1
    return [(wanted, told, count) for (wanted, told), count in sorted(counted.items())]


def programs_right(cases: Sequence[Case]) -> tuple[int, int, int]:
    """Count the programs whose family, and whose place, is right on most seeds, and all programs."""
    by_number: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_number[case.number].append(case)
    most = [
        (
            2 * sum(case.family_right for case in same) > len(same),
            2 * sum(case.place_right for case in same) > len(same),
        )
        for same in by_number.values()
    ]
    return sum(family for family, _ in most), sum(place for _, place in most), len(most)
