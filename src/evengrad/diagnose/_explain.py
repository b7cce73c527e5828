"""The page of a rule."""

import inspect

from evengrad.diagnose import rules
from evengrad.nouns import UnknownRuleError


def explain(code: str) -> str:
    """Return the page of a rule: what it sees, why that hurts, what cures it, when it is wrong, and its source.

    Args:
        code: `EG101`, in any case.

    Raises:
        UnknownRuleError: No rule has this code.

    Example:
        >>> explain("eg101").splitlines()[0]
        'EG101 Vanishing with depth: the first layers get almost no gradient.'
    """
    wanted = code.strip().upper()
    for rule in rules.ALL:
        if rule.code == wanted:
            return f"{rule.code} {inspect.getdoc(type(rule))}"
    known = ", ".join(rule.code for rule in rules.ALL)
    raise UnknownRuleError("rule code", came=repr(code[:40]), wanted=f"one of {known}")
