"""What stands in an `ALL`: rules, treatments, policies."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from house_source import Module, bases, modules

RULES = frozenset({"AbstractRule", "AbstractRunRule"})
HEADINGS = ("Sees:", "Hurts:", "Cure:", "False alarms:", "Source:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Registry:
    """Where the members of a kind are listed.

    Args:
        base: What they derive from.
        folder: Where they live, below the package.
        file: Which file there has the tuple `ALL`.
        left_out: Concrete classes that are not listed, and why.
    """

    base: str | tuple[str, ...]
    folder: str
    file: str
    left_out: tuple[str, ...] = ()

    @property
    def bases(self) -> tuple[str, ...]:
        """What the members may derive from."""
        return (self.base,) if isinstance(self.base, str) else self.base


REGISTRIES = (
    Registry(base=("AbstractRule", "AbstractRunRule"), folder="diagnose/rules", file="__init__.py"),
    # Combined is made of members: `make` builds a treatment from a name and plain settings, and treatments are none.
    Registry(base="AbstractTreatment", folder="treat", file="_make.py", left_out=("Combined",)),
    Registry(base="AbstractPolicy", folder="clip", file="_choice.py"),
    Registry(base="AbstractTransform", folder="clip/transforms", file="_all.py"),
)


def registry_problems(root: Path, registry: Registry) -> list[str]:
    """Report classes that are not listed, are listed twice, or are listed without being one."""
    listed: list[str] | None = None
    found: dict[str, str] = {}
    for module in modules(root):
        if module.name == f"{registry.folder}/{registry.file}":
            listed = _listed(module)
        for kind in ast.walk(module.tree):
            if isinstance(kind, ast.ClassDef) and set(registry.bases) & set(bases(kind)):
                found[kind.name] = module.problem(kind.lineno, kind.name)
    if listed is None:
        return [f"{registry.folder}/{registry.file}:1: no tuple called ALL"]
    wanted = {name: where for name, where in found.items() if name not in registry.left_out}
    problems = [f"{where} is not in ALL" for name, where in wanted.items() if name not in listed]
    problems += [
        f"{where} is not in its folder {registry.folder}"
        for where in found.values()
        if not where.startswith(registry.folder)
    ]
    problems += [
        f"ALL of {registry.folder} has {name}, which is no {' or '.join(registry.bases)}"
        for name in listed
        if name not in wanted
    ]
    problems += [f"ALL of {registry.folder} has {name} twice" for name, count in Counter(listed).items() if count > 1]
    return problems


def rule_problems(root: Path) -> list[str]:
    """Report rules without a page, without a code, or with the code of another."""
    problems = []
    codes: dict[str, str] = {}
    for module in modules(root):
        for kind in ast.walk(module.tree):
            if not isinstance(kind, ast.ClassDef) or not RULES & set(bases(kind)):
                continue
            page = (ast.get_docstring(kind) or "").splitlines()
            missing = [heading for heading in HEADINGS if heading not in page]
            if missing:
                problems.append(module.problem(kind.lineno, f"the page of {kind.name} lacks {' '.join(missing)}"))
            code = _text(kind, "code")
            if not re.fullmatch(r"EG\d{3}", code):
                problems.append(
                    module.problem(kind.lineno, f"{kind.name} has the code {code!r}, not of the form EG101")
                )
            elif code in codes:
                problems.append(module.problem(kind.lineno, f"{kind.name} has the code {code} of {codes[code]}"))
            elif not (ast.get_docstring(module.tree) or "").startswith(f"{code}: "):
                problems.append(module.problem(1, f"the file of {code} does not begin with its code"))
            codes.setdefault(code, kind.name)
    return problems


def _listed(module: Module) -> list[str] | None:
    for node in module.tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if [ast.unparse(target) for target in targets] == ["ALL"] and isinstance(value, ast.Tuple):
            return [ast.unparse(one.func if isinstance(one, ast.Call) else one) for one in value.elts]
    return None


def _text(kind: ast.ClassDef, name: str) -> str:
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return str(ast.literal_eval(node.value)) if isinstance(node.value, ast.Constant) else ""
    return ""
