"""Which rules are asked and which are told: `--select` and `--ignore`."""

from collections.abc import Iterable

from evengrad.diagnose import rules
from evengrad.nouns import UnknownRuleError


def codes_of(beginnings: Iterable[str], *, what: str) -> frozenset[str]:
    """List the codes that begin with one of these, in any case.

    Args:
        beginnings: Whole codes or their beginnings: `EG101`, `EG1`.
        what: What they were given for, for the error.

    Raises:
        UnknownRuleError: No code begins so.

    Example:
        >>> sorted(codes_of(["eg30"], what="select"))[:2]
        ['EG301', 'EG302']
    """
    known = [rule.code for rule in rules.ALL]
    found: set[str] = set()
    for beginning in beginnings:
        wanted = beginning.strip().upper()
        matching = {code for code in known if wanted and code.startswith(wanted)}
        if not matching:
            raise UnknownRuleError(
                what, came=repr(beginning[:40]), wanted=f"the beginning of one of {', '.join(known)}"
            )
        found |= matching
    return frozenset(found)
