"""Short labels for axes: what all names share is said once."""

from collections.abc import Sequence

from evengrad.report import _clean


def short_labels(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Cut the dotted beginning and end that all names share, and say what was cut.

    Example:
        >>> short_labels(["net.0.fc.weight", "net.10.fc.weight"])
        (('0', '10'), 'every name begins with “net.” and ends with “.fc.weight”')
        >>> short_labels(["fc.weight", "fc.bias"])
        (('weight', 'bias'), 'every name begins with “fc.”')
    """
    parts = [name.split(".") for name in names]
    if len(names) < 2:
        return tuple(names), ""
    fewest = min(map(len, parts))
    front = _common(parts, fewest - 1)
    back = _common([part[::-1] for part in parts], fewest - 1 - front)
    said = []
    if front:
        said.append(f"begins with “{_clean.name('.'.join(parts[0][:front]))}.”")
    if back:
        said.append(f"ends with “.{_clean.name('.'.join(parts[0][-back:]))}”")
    cut = tuple(".".join(part[front : len(part) - back]) for part in parts)
    return cut, f"every name {' and '.join(said)}" if said else ""


def _common(parts: Sequence[Sequence[str]], most: int) -> int:
    for place in range(most):
        if len({part[place] for part in parts}) > 1:
            return place
    return max(0, most)
