"""A loss that is given something else, or computed in another precision, as a new function at the call of Task."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CellType
from typing import Any

from evengrad.nouns import Task
from evengrad.trial._patch_attempt import Files, Option, call_now
from evengrad.trial._patch_block import Snippet, before_statement, free_name, outside_edits, stacked, taken_apart
from evengrad.trial._patch_call import TaskCall, keyword_edits, lambda_line
from evengrad.trial._patch_rebuilt import Bench
from evengrad.trial._patch_source import Draft, Edit, NoPatchError

Cells = Callable[[ast.expr, Any], dict[str, CellType]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a treated loss does, as its treatment writes it.

    Args:
        definitions: Functions that it uses.
        output: What becomes of the output, which stands where the braces are.
        target: The same of the target.
        around: A `with` line around the loss; empty for none.
    """

    definitions: str
    output: str
    target: str
    around: str


def loss_options(task: Task, call: TaskCall, treated: Task, cells: Cells) -> Iterator[Option]:
    """Give the ways to write a treated loss.

    Args:
        task: The untreated task.
        call: Of `Task`, that made it.
        treated: The treated task; its loss must be able to say what it does.
        cells: Finds what the function around the call holds, for an expression and the thing that it stands for.

    Raises:
        NoPatchError: The loss was changed twice, or cannot say what is done, or the call does not name a loss.
    """
    loss, value, path = treated.loss, call.value("loss"), call.source.path
    if getattr(loss, "loss", None) is not task.loss or not hasattr(loss, "code"):
        raise NoPatchError("the loss was changed more than once")
    if value is None:
        raise NoPatchError("the call of Task does not say what loss is")
    name, kept = (free_name(call.source, f"{how}_loss") for how in ("treated", "untreated"))
    for given in (Given(**dict(zip(Given.__slots__, one, strict=True))) for one in loss.code()):
        snippet = _snippet(given)

        def place(drafts: Mapping[Path, Draft], given: Given = given, snippet: Snippet = snippet) -> Files:
            now = call_now(drafts, call)
            made = _edits(now, given, (name, kept))
            return {path: stacked([*outside_edits(now.source, now.node, snippet), *made])}

        def make(bench: Bench) -> Callable[..., Any]:
            known = {kept: CellType(task.loss), **cells(value, task.loss)}
            bench.names[path][kept] = task.loss
            return bench.new_function(path, name, known)

        uses = tuple((path, code) for code in (given.definitions, _as_code(given.around)) if code)
        yield Option(place=place, make=make, uses=uses)


def _snippet(given: Given) -> Snippet:
    if not given.definitions:
        return Snippet(imports=(), outside=(), body="", makes=frozenset())
    return taken_apart(f"{given.definitions}\nloss\n")


def _as_code(around: str) -> str:
    return f"{around.format('output')}\n    pass" if around else ""


def _edits(call: TaskCall, given: Given, names: tuple[str, str]) -> list[Edit]:
    """Write the new function before the statement, and its name into the call."""
    value, source, (name, kept) = call.value("loss"), call.source, names
    if value is None:
        raise AssertionError(call)
    head, lines, above = ["output", "target"], [], ""
    own = _plain_arguments(value)
    if isinstance(value, ast.Lambda) and own is not None:
        head = own
        said = [(one, text.format(one)) for one, text in zip(own, (given.output, given.target), strict=True)]
        changed = [(one, text) for one, text in said if one != text]
        lines = [f"{', '.join(one for one, _ in changed)} = {', '.join(text for _, text in changed)}"]
        returned = lambda_line(source, value.body, "return ")
    else:
        text = source.segment(value)
        if isinstance(value, ast.Lambda) or {"output", "target"} & _names(value):
            above, text = f"{kept} = {text}\n", kept
        returned = f"return {text}({given.output.format('output')}, {given.target.format('target')})"
    if given.around:
        lines += [given.around.format(head[0]), *(f"    {line}" for line in returned.split("\n"))]
    else:
        lines += returned.split("\n")
    top = call.function is None and call.statement in source.tree.body
    gap = "\n" * (1 + top) if above else ""
    function = "\n".join([f"def {name}({', '.join(head)}):", *(f"    {line}" for line in lines)])
    edit = before_statement(source, call.statement, above + gap + function, blank=1 + top)
    return [edit, *keyword_edits(call, "loss", name)]


def _plain_arguments(value: ast.expr) -> list[str] | None:
    """Name the two arguments of a lambda; None when it has others, or is none."""
    if not isinstance(value, ast.Lambda):
        return None
    every = [one.arg for one in ast.walk(value.args) if isinstance(one, ast.arg)]
    plain = [one.arg for one in value.args.args]
    return plain if plain == every and len(plain) == 2 and not value.args.defaults else None


def _names(value: ast.expr) -> set[str]:
    return {one.id for one in ast.walk(value) if isinstance(one, ast.Name)}
