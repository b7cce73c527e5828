"""The public surface as text: every public name with its signature.

After a change that is meant: `python tests/structure/house_api.py`, and say in CHANGELOG.md what changed.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

SNAPSHOT = Path(__file__).with_name("public_api.txt")


class _Plain(str):
    """An annotation that is written without quotes, whether or not its file postpones annotations."""

    def __repr__(self) -> str:
        return str(self)


def public_api(module: ModuleType) -> str:
    """Write the names of `__all__`, and the public members of classes, one per line."""
    lines: list[str] = []
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        lines += _class_lines(name, thing) if isinstance(thing, type) else [name + _signature(thing)]
    return "\n".join(lines) + "\n"


def _class_lines(name: str, kind: type) -> list[str]:
    parents = ", ".join(base.__name__ for base in kind.__bases__ if base is not object)
    own_init = "__init__" in vars(kind)  # what Python itself gives differs between its versions
    head = _signature(kind).removesuffix(" -> None") if own_init else ""
    lines = [f"class {name}{head}{parents and ' < '}{parents}"]
    for member, value in sorted(vars(kind).items()):
        if member.startswith("_"):
            continue
        if isinstance(value, property) and value.fget:
            lines.append(f"    {name}.{member}{_signature(value.fget).removeprefix('(self)')}")
        elif inspect.isfunction(value):
            lines.append(f"    {name}.{member}{_signature(value)}")
    return lines


def _signature(thing: Callable[..., object]) -> str:
    signature = inspect.signature(thing)
    parameters = [one.replace(annotation=_plain(one.annotation)) for one in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=_plain(signature.return_annotation)))


def _plain(annotation: object) -> object:
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _Plain(re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", text))  # where a class lives is not part of the surface


if __name__ == "__main__":
    import evengrad

    SNAPSHOT.write_text(public_api(evengrad), encoding="utf-8")
