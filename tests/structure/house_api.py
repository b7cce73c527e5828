"""The public surface as text: every public name with its signature.

After a change that is meant: `python tests/structure/house_api.py`, and say in CHANGELOG.md what changed.
"""

import inspect
from pathlib import Path
from types import ModuleType

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def public_api(module: ModuleType) -> str:
    """Write the names of `__all__`, and the public members of classes, one per line."""
    lines: list[str] = []
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        lines += _class_lines(name, thing) if isinstance(thing, type) else [f"{name}{inspect.signature(thing)}"]
    return "\n".join(lines) + "\n"


def _class_lines(name: str, kind: type) -> list[str]:
    parents = ", ".join(base.__name__ for base in kind.__bases__ if base is not object)
    own_init = "__init__" in vars(kind)  # what Python itself gives differs between its versions
    lines = [f"class {name}{inspect.signature(kind) if own_init else ''}" + (f" is a {parents}" if parents else "")]
    for member, value in sorted(vars(kind).items()):
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            lines.append(f"    {name}.{member}: {inspect.signature(value.fget).return_annotation!r}")  # type: ignore[arg-type]
        elif inspect.isfunction(value):
            lines.append(f"    {name}.{member}{inspect.signature(value)}")
    return lines


if __name__ == "__main__":
    import evengrad

    SNAPSHOT.write_text(public_api(evengrad), encoding="utf-8")
