"""Read Python files as syntax trees, for the rules of the house."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "src" / "evengrad"
FOLDERS = tuple(PROJECT / name for name in ("src", "tests", "benchmarks", "examples"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """A Python file.

    Args:
        name: Its path below the root, with slashes: `guard/_guard.py`.
        text: Its source.
        tree: The same, parsed. Not to be changed: it is shared.
    """

    name: str
    text: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The folder below the root that it is in; empty for the root itself."""
        return self.name.split("/")[0] if "/" in self.name else ""

    @property
    def stem(self) -> str:
        """The file's name without `.py`."""
        return self.name.split("/")[-1].removesuffix(".py")

    def problem(self, line: int, words: str) -> str:
        """Say where the problem is, so that an editor can jump there."""
        return f"{self.name}:{line}: {words}"


def modules(root: Path) -> Iterator[Module]:
    """Parse all Python files below a folder, in the order of their names."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not any(part.startswith(".") for part in name.split("/")):
            text = path.read_text(encoding="utf-8")
            yield Module(name=name, text=text, tree=_parsed(text))


def dotted(node: ast.AST) -> str:
    """Write names and attributes as in the source: `torch.nn.Module`; empty for anything else.

    Example:
        >>> dotted(ast.parse("torch.nn.Module", mode="eval").body)
        'torch.nn.Module'
        >>> dotted(ast.parse("layers[0].weight", mode="eval").body)
        ''
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return f"{front}.{node.attr}" if front else ""
    return ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Find all calls of something that has a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def bases(kind: ast.ClassDef) -> list[str]:
    """Name what a class is derived from, without modules and type arguments."""
    plain = (base.value if isinstance(base, ast.Subscript) else base for base in kind.bases)
    return [dotted(base).split(".")[-1] for base in plain]


def decorators(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Name the decorators, without modules and arguments."""
    plain = (one.func if isinstance(one, ast.Call) else one for one in node.decorator_list)
    return [dotted(one).split(".")[-1] for one in plain]


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)
