"""Who may import whom: rows, parts that never need torch, libraries that one place knows."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from house_source import Module, dotted, modules

ROWS = {
    "nouns": 1,
    "reference": 1,
    "measure": 2,
    "runlog": 2,
    "clip": 3,
    "probe": 3,
    "treat": 3,
    "diagnose": 3,
    "report": 3,  # docs/decisions/0004: it imports nouns and runlog only, and trial writes reports
    "guard": 4,
    "checkup": 4,
    "trial": 4,
    "cli": 5,
    "integrations": 5,
}
NEIGHBOURS = {("trial", "checkup")}  # the only part that may import another of its row
TORCH_FREE = frozenset({"nouns", "reference", "runlog", "diagnose", "report"})
LIBRARIES = {"nouns": (), "reference": ("numpy",)}  # parts that need these and the standard library, nothing else

# What may be imported from outside, by the name to import and the name to install.
DEPENDENCIES = {
    "torch": "torch",
    "numpy": "numpy",
    "array_api_compat": "array-api-compat",
    "nanoarrow": "nanoarrow",
    "rich": "rich",
    "tyro": "tyro",
    "jinja2": "jinja2",
    "plotly": "plotly",
    "optuna": "optuna",
    "cloudpickle": "cloudpickle",
}
PLACES = {
    "nanoarrow": ("runlog/_arrow.py",),  # so that another Arrow library can take its place
    "tyro": ("cli/",),
    "jinja2": ("report/",),
    "plotly": ("report/",),
    "optuna": ("trial/_sweep.py",),
    "cloudpickle": ("trial/_shipped.py",),
    "ray": ("trial/_ray.py",),  # the extra `ray`
    "sklearn": ("cli/",),  # the extra `demo`
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One name that a module imports.

    Args:
        line: Where.
        target: Module and name, as one dotted name; `?` when it is made at run time.
        typing_only: Whether it stands under `if TYPE_CHECKING:`.
    """

    line: int
    target: str
    typing_only: bool

    @property
    def library(self) -> str:
        """The first name."""
        return self.target.split(".")[0]

    @property
    def part(self) -> str:
        """The part of evengrad that it comes from; empty for the package itself."""
        names = self.target.split(".")
        return names[1] if len(names) > 1 and names[1] in ROWS else ""


def imports(module: Module) -> Iterator[Import]:
    """Find every import of a module, those inside functions too."""
    yield from _imports(module, module.tree, typing_only=False)


def layer_problems(root: Path) -> list[str]:
    """Report imports that do not go to a lower row."""
    problems = []
    for module in modules(root):
        if module.part == "":
            if module.stem not in {"__init__", "__main__"}:
                problems.append(module.problem(1, "a module outside of every part"))
            continue
        row = ROWS.get(module.part)
        if row is None:
            problems.append(module.problem(1, f"`{module.part}` stands on no row: give it one"))
            continue
        for one in imports(module):
            words = _against_the_rows(module.part, row, one)
            if words:
                problems.append(module.problem(one.line, words))
    return problems


def torch_problems(root: Path) -> list[str]:
    """Report what would bring torch into the parts that never need it."""
    problems = []
    for module in modules(root):
        if module.part not in TORCH_FREE:
            continue
        for one in imports(module):
            if one.typing_only:
                continue
            if one.library == "torch" or (one.part and one.part not in TORCH_FREE):
                problems.append(module.problem(one.line, f"`{module.part}` needs {one.target} at run time"))
            elif one.library not in {*sys.stdlib_module_names, "evengrad", *LIBRARIES.get(module.part, (one.library,))}:
                wanted = " and ".join([*LIBRARIES[module.part], "the standard library"])
                problems.append(module.problem(one.line, f"`{module.part}` needs {one.target}: want {wanted} only"))
    return problems


def library_problems(root: Path) -> list[str]:
    """Report libraries that are not declared, or are imported where only another file may know them."""
    problems = []
    for module in modules(root):
        for one in imports(module):
            places = PLACES.get(one.library)
            if one.library in sys.stdlib_module_names or one.library in {"evengrad", "?"}:
                continue
            if places is not None:
                if not module.name.startswith(places):
                    problems.append(module.problem(one.line, f"{one.library} is known in {' and '.join(places)} only"))
            elif one.library not in DEPENDENCIES and module.part != "integrations":
                problems.append(module.problem(one.line, f"{one.library} is not a dependency"))
    return problems


def _against_the_rows(part: str, row: int, one: Import) -> str:
    if one.target == "?":
        return "" if row == 5 else "imports by a name that is made at run time"
    if one.library != "evengrad" or one.part == part:
        return ""
    if not one.part:
        return "" if row == 5 else f"imports {one.target}: name a part"
    if ROWS[one.part] < row or (part, one.part) in NEIGHBOURS:
        return ""
    return f"`{part}` on row {row} imports {one.target} on row {ROWS[one.part]}"


def _imports(module: Module, node: ast.AST, *, typing_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(line=node.lineno, target=alias.name, typing_only=typing_only)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            target = f"{_absolute(module, node)}.{alias.name}"
            yield Import(line=node.lineno, target=target, typing_only=typing_only)
    elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {"import_module", "__import__"}:
        first = node.args[0] if node.args else None
        target = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"
        yield Import(line=node.lineno, target=target, typing_only=typing_only)
    body_only = isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING"
    for child in ast.iter_child_nodes(node):
        inside = body_only and isinstance(node, ast.If) and child in node.body
        yield from _imports(module, child, typing_only=typing_only or inside)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ["evengrad", *module.name.split("/")[:-1]]
    front = package[: len(package) - node.level + 1]
    return ".".join([*front, *([node.module] if node.module else [])])
