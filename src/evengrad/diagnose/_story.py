"""One story per run: what stands at the root comes first, what follows from it below."""

from collections.abc import Sequence, Set
from dataclasses import replace

from evengrad.diagnose._families import BRINGS, FAMILIES, GIVEN, LAST_OF_THEIR_FAMILY
from evengrad.nouns import Finding

UNEXPLAINED = frozenset({"plateau", "not-learning"})
WHERE_TO_LOOK = "nothing in the gradients explains it: look at the data, the labels and the capacity of the model"


def told_as_a_story(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Order findings, and write into each the codes of those at the root that it follows from.

    One finding follows from another if the other's family brings its own about and it was not there before the other
    was: what is given with data, code and initial weights precedes everything that steps do, whenever it was seen.
    Roots come first, the critical ones before the others and the earlier before the later; what follows from a root
    stands right below the first root that it follows from, in the order in which it was seen.

    Example:
        >>> one = Finding(code="EG801", symptom="", severity="critical", where=(), family="plateau")
        >>> two = Finding(code="EG101", symptom="", severity="critical", where=(), family="vanishing-depth")
        >>> [(finding.code, finding.follows) for finding in told_as_a_story((one, two))]
        [('EG101', ()), ('EG801', ('EG101',))]
    """
    ordered = sorted(findings, key=_key)
    roots: dict[str, tuple[str, ...]] = {}  # of each finding by its code; empty for a root
    for finding in ordered:
        before = [other for other in ordered if other.code in roots and _brings(other, finding)]
        found = [code for other in before for code in (roots[other.code] or (other.code,))]
        roots[finding.code] = tuple(dict.fromkeys(found))
    story: list[Finding] = []
    tops = [finding for finding in ordered if not roots[finding.code]]
    for top in sorted(tops, key=lambda one: (one.severity != "critical", _key(one))):
        story.append(_as_root(top))
        story += [
            replace(finding, follows=roots[finding.code])
            for finding in ordered
            if roots[finding.code] and _first(roots[finding.code], tops) == top.code
        ]
    return tuple(story)


def without_idle_causes(story: Sequence[Finding], causes: Set[str]) -> tuple[Finding, ...]:
    """Leave out what would only matter as a cause, and explains nothing that does harm.

    Args:
        story: As `told_as_a_story` gives it.
        causes: Codes of the rules that are harmless by themselves.
    """
    explaining = {code for finding in story if finding.code not in causes for code in finding.follows}
    idle = {one.code for one in story if not one.follows and one.code in causes and one.code not in explaining}
    kept = [(one, tuple(code for code in one.follows if code not in idle)) for one in story if one.code not in idle]
    return tuple(replace(one, follows=follows) for one, follows in kept if follows or not one.follows)


def _as_root(finding: Finding) -> Finding:
    """Say of a loss that stands still and of nothing else where to look: no other rule explains it."""
    if finding.family not in UNEXPLAINED or finding.cause or finding.message.endswith(WHERE_TO_LOOK):
        return finding
    return replace(finding, message=f"{finding.message}; {WHERE_TO_LOOK}")


def _first(codes: tuple[str, ...], tops: Sequence[Finding]) -> str:
    """Choose the root below which a finding stands: the first one that is critical, or the first one."""
    severe = [top.code for top in tops if top.code in codes and top.severity == "critical"]
    return severe[0] if severe else codes[0]


def _key(finding: Finding) -> tuple[int, int, bool, str]:
    family = finding.family
    # units that are alike before the first step were drawn alike
    drawn = family in GIVEN or (family == "collapsed" and finding.when[0] == 0)
    onset = -1 if drawn else finding.when[0]
    rank = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return onset, rank, finding.code in LAST_OF_THEIR_FAMILY, finding.code


def _brings(cause: Finding, effect: Finding) -> bool:
    """Tell whether one may have brought the other about; both are in the order of `_key`, the cause first."""
    return effect.family in BRINGS.get(cause.family, ())
