"""A file of the user's: its text, where a live function stands in it, and what becomes of it through edits."""

from __future__ import annotations

import ast
import difflib
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import TypeVar, final

from evengrad.nouns import installed_folders

LARGEST_FILE_BYTES = 1_000_000
MARK = "\ufeff"  # the byte-order mark that some editors write

Function = ast.FunctionDef | ast.Lambda
Node = TypeVar("Node", bound=ast.AST)
Placed = ast.expr | ast.stmt


class NoPatchError(Exception):
    """The source cannot be edited so that the result is known to be right; the message says why, for the user."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """Characters `start` to `end` of a text give way to another text; an insertion when both are equal."""

    start: int
    end: int
    text: str


@final
class Source:
    """A Python file that was read and parsed; positions are in characters of `text`, which has no byte-order mark."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text.removeprefix(MARK)
        self.mark = MARK if text.startswith(MARK) else ""
        self.newline = "\r\n" if "\r\n" in text else "\n"
        try:
            self.tree = ast.parse(self.text)
            self.code: CodeType = compile(self.text, str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
            raise NoPatchError(f"{path.name} cannot be parsed: {err}") from err
        self._lines = self.text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def offset(self, line: int, column_bytes: int) -> int:
        """Turn a position as `ast` gives it into characters from the beginning of the text."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column_bytes].decode())

    def start(self, node: Placed) -> int:
        """Where a node begins; decorators come before that."""
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: Placed) -> int:
        """Where a node ends."""
        return self.offset(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def segment(self, node: Placed) -> str:
        """The text of a node."""
        return self.text[self.start(node) : self.end(node)]

    def line_start(self, offset: int) -> int:
        """Where the line of a position begins."""
        return self.text.rfind("\n", 0, offset) + 1

    def line_end(self, offset: int) -> int:
        """Where the next line begins, or the text ends."""
        found = self.text.find("\n", offset)
        return len(self.text) if found < 0 else found + 1

    def indent(self, offset: int) -> str:
        """The white space before a position that is the first of its line.

        Raises:
            NoPatchError: Something else stands before it on the line.
        """
        before = self.text[self.line_start(offset) : offset]
        if before.strip():
            raise NoPatchError(f"{self.path.name} has several statements on one line where the change would go")
        return before

    def has(self, live: CodeType) -> bool:
        """Tell whether the file holds the code of a live function as it was imported."""
        return any(_same(code, live) for code in codes(self.code))

    def node_of(self, live: CodeType) -> Function:
        """Find the function that a live code object was compiled from.

        Raises:
            NoPatchError: The file has nothing like it, or several of which none is where the live one was.
        """
        alike = [code for code in codes(self.code) if _same(code, live)]
        there = [code for code in alike if _place(code) == _place(live)] or alike
        if len(there) != 1:
            raise NoPatchError(f"{self.path.name} has {len(there)} functions that can be {live.co_qualname}")
        return self._node(there[0])

    def code_of(self, node: Function) -> CodeType:
        """Give the compiled code of a function of this text."""
        return next(code for code in codes(self.code) if _may_be(code, node) and self._node(code) is node)

    def _node(self, code: CodeType) -> Function:
        fitting: list[Function] = [
            node for node in ast.walk(self.tree) if isinstance(node, Function) and _may_be(code, node)
        ]
        if len(fitting) > 1 and isinstance(fitting[0], ast.Lambda):
            fitting = sorted((node for node in fitting if _holds(node, code)), key=lambda node: len(self.segment(node)))
        if not fitting:
            raise NoPatchError(f"{code.co_qualname} cannot be found in {self.path.name}")
        return fitting[0]


@final
class Draft:
    """A source and what edits have made of it so far."""

    def __init__(self, source: Source) -> None:
        self.original = source
        self.source = source
        self._history: list[tuple[Edit, ...]] = []

    def apply_(self, edits: Sequence[Edit]) -> None:
        """Make all edits at once; the same edit twice is one.

        Raises:
            NoPatchError: Two edits overlap, or the result is not Python.
        """
        if not edits:
            return
        ordered = sorted(dict.fromkeys(edits), key=lambda edit: (edit.start, edit.end))
        if any(one.end > other.start for one, other in pairwise(ordered)):
            raise NoPatchError("two of the changes fall on the same place")
        text = self.source.text
        for edit in reversed(ordered):
            text = text[: edit.start] + edit.text + text[edit.end :]
        self._history.append(tuple(ordered))
        self.source = Source(self.source.path, self.source.mark + text)

    def now(self, node: Node) -> Node:
        """Find, in the text as it is now, a node of the original.

        Raises:
            NoPatchError: It is no longer there.
        """
        if not isinstance(node, Placed):
            raise AssertionError(node)
        offset = self.original.start(node)
        for edits in self._history:
            offset += sum(len(edit.text) - (edit.end - edit.start) for edit in edits if edit.end <= offset)
        for found in ast.walk(self.source.tree):
            if type(found) is type(node) and isinstance(found, Placed) and self.source.start(found) == offset:
                return found
        raise NoPatchError("the change removes what it was to change")

    @property
    def label(self) -> str:
        """The path of the file from the working directory, or the whole path when it is not below that."""
        path, here = self.original.path, Path.cwd().resolve()
        return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()

    def diff(self) -> str:
        """Write the unified diff against the original; empty when nothing was changed."""
        old, new = (source.mark + source.text for source in (self.original, self.source))
        label = self.label
        names = (f"a/{label}", f"b/{label}") if not Path(label).is_absolute() else (label, label)
        tab = "\t" if any(character.isspace() for character in label) else ""
        lines = list(difflib.unified_diff(_lines(old), _lines(new), *names))
        if not lines:
            return ""
        lines[:2] = [f"--- {names[0]}{tab}\n", f"+++ {names[1]}{tab}\n"]
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def read_source(filename: str) -> Source:
    """Read a file that a code object names.

    Raises:
        NoPatchError: It is no file of the user's, not UTF-8, too large, or no Python any more.
    """
    if filename.startswith("<"):
        raise NoPatchError(f"the code comes from {filename}, not from a file")
    path = Path(filename).resolve()
    if not path.is_file():
        raise NoPatchError(f"there is no file {filename}, as in a notebook")
    if is_installed(str(path)):
        raise NoPatchError(f"{path.name} belongs to an installed package")
    raw = path.read_bytes()
    if len(raw) > LARGEST_FILE_BYTES:
        raise NoPatchError(f"{path.name} has {len(raw)} bytes, more than {LARGEST_FILE_BYTES}")
    text = _decoded(path, raw)
    if "\r" in text.replace("\r\n", ""):
        raise NoPatchError(f"{path.name} has carriage returns that do not end a line")
    if any(character in str(path) for character in '\n\r"'):
        raise NoPatchError("the name of the file cannot stand in a diff")
    return Source(path, text)


def codes(code: CodeType) -> Iterator[CodeType]:
    """Walk over a code object and all that are in it, in the order of the source."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def first_line(node: ast.stmt | ast.expr) -> int:
    """The line of a node's first decorator, or of the node."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(one.lineno for one in (node, *decorators))


def _decoded(path: Path, raw: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        if encoding in {"utf-8", "utf-8-sig"}:
            return raw.decode("utf-8")
    except (SyntaxError, UnicodeDecodeError) as err:
        raise NoPatchError(f"{path.name} is not UTF-8") from err
    raise NoPatchError(f"{path.name} is not UTF-8 but {encoding}")


def is_installed(filename: str | None) -> bool:
    """Tell whether a file belongs to Python, to this library, or to an installed package; no file counts as that."""
    if not filename:
        return True
    path = Path(filename)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return filename.startswith(installed_folders()) or path.is_relative_to(Path(__file__).parents[1])


def _lines(text: str) -> list[str]:
    """Split at line feeds only: `str.splitlines` also splits at form feeds and other separators."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _same(one: CodeType, other: CodeType) -> bool:
    """Tell whether two code objects do the same, wherever they stand."""
    keys = (
        "co_qualname", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags",
        "co_argcount", "co_posonlyargcount", "co_kwonlyargcount",
    )  # fmt: skip
    if any(getattr(one, key) != getattr(other, key) for key in keys) or len(one.co_consts) != len(other.co_consts):
        return False
    return all(_same_constant(a, b) for a, b in zip(one.co_consts, other.co_consts, strict=True))


def _same_constant(one: object, other: object) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same(one, other)
    if isinstance(one, frozenset):  # its order may differ
        return one == other
    return type(one) is type(other) and repr(one) == repr(other)


def _place(code: CodeType) -> tuple[object, ...]:
    return code.co_firstlineno, tuple(code.co_positions())


def _may_be(code: CodeType, node: Function) -> bool:
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    return code.co_name == name and code.co_firstlineno == first_line(node)


def _holds(node: Function, code: CodeType) -> bool:
    """Tell whether all instructions of a lambda lie within its body."""
    if not isinstance(node, ast.Lambda):
        return True
    body = node.body
    first, last = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    for line, end_line, column, end_column in code.co_positions():
        if line is None or end_line is None or column is None or end_column is None or column == end_column:
            continue  # the instruction that begins every function
        if (line, column) < first or (end_line, end_column) > last:
            return False
    return True
