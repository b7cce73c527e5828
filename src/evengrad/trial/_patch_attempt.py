"""Making all edits of a patch on drafts, and trying what comes out before anybody sees it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from evengrad.nouns import Task
from evengrad.trial._patch_block import IMPORTS, import_edits
from evengrad.trial._patch_call import TaskCall
from evengrad.trial._patch_check import check_model, check_optimizer, check_schedule, check_step
from evengrad.trial._patch_check_loss import check_loss
from evengrad.trial._patch_check_starts import check_starts
from evengrad.trial._patch_files import UserFiles
from evengrad.trial._patch_rebuilt import Bench
from evengrad.trial._patch_source import Draft, Edit, NoPatchError

Files = dict[Path, list[Edit]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to write the change of one member of a task.

    Args:
        words: Edits of words of the original texts.
        place: Further edits, on the texts in which the words have been changed.
        make: How the changed member is made anew to be tried; None for a number, which is read.
        classes: Classes whose definitions the words change.
        uses: Code that must find `torch` and `nn` in a file.
    """

    words: Files = field(default_factory=dict)
    place: Callable[[Mapping[Path, Draft]], Files] | None = None
    make: Callable[[Bench], Callable[..., Any]] | None = None
    classes: tuple[type[nn.Module], ...] = ()
    uses: tuple[tuple[Path, str], ...] = ()


def attempted(options: Mapping[str, Option], files: UserFiles, treated: Task) -> list[Draft]:
    """Make the edits of an option for each member of a task and try the result.

    Raises:
        NoPatchError: The result is not what the treated task is.
    """
    drafts = {path: Draft(source) for path, source in files.sources.items()}
    _apply_(drafts, [option.words for option in options.values()])
    for option in options.values():  # one by one: what one defines another need not
        if option.place is not None:
            _apply_(drafts, [option.place(drafts)])
    for path, draft in drafts.items():
        codes = [code for option in options.values() for where, code in option.uses if where == path]
        _import_(draft, codes, files.namespaces[path])
    bench = Bench(drafts.values(), files.namespaces)
    for option in options.values():
        bench.redefine_(option.classes)
    for name, option in options.items():
        _check(name, option, bench, treated)
    return [draft for draft in drafts.values() if draft.diff()]


def call_now(drafts: Mapping[Path, Draft], call: TaskCall) -> TaskCall:
    """Find a call of Task in the text as it is now."""
    draft = drafts[call.source.path]
    return TaskCall(
        source=draft.source,
        node=draft.now(call.node),
        statement=draft.now(call.statement),
        function=None if call.function is None else draft.now(call.function),
    )


def _apply_(drafts: Mapping[Path, Draft], edits: list[Files]) -> None:
    for path, draft in drafts.items():
        draft.apply_([edit for one in edits for edit in one.get(path, [])])


def _check(name: str, option: Option, bench: Bench, treated: Task) -> None:
    if option.make is None:
        return
    made = option.make(bench)
    if name == "model":
        check_model(made, treated, words=option.place is None)
        if option.place is not None:  # else all weights were compared
            check_starts(made, treated)
    elif name == "optimizer":
        check_optimizer(made, treated)
    elif name == "after_step":
        check_step(made, treated)
    elif name == "loss":
        check_loss(made, treated)
    elif name == "schedule":
        check_schedule(made, treated)
    else:
        raise AssertionError(name)


def _import_(draft: Draft, codes: list[str], namespace: Mapping[str, Any]) -> None:
    """Import what some code needs and a file lacks."""
    wanted: list[str] = []
    for code in codes:
        tree = ast.parse(code)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        wanted += [line for name, line in IMPORTS.items() if name in used]
        wanted += [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = [line for line in dict.fromkeys(wanted) if not _is_bound(line, namespace)]
    draft.apply_(import_edits(draft.source, lines))


def _is_bound(line: str, namespace: Mapping[str, Any]) -> bool:
    """Tell whether a module has what an import line would give it.

    Raises:
        NoPatchError: It has something else of that name.
    """
    node = ast.parse(line).body[0]
    if not isinstance(node, ast.Import | ast.ImportFrom):
        raise AssertionError(line)
    alias = node.names[0]
    name = alias.asname or alias.name.split(".")[0]
    path = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
    meant = sys.modules.get(name if isinstance(node, ast.Import) and not alias.asname else path)
    if name in namespace and meant is not None and namespace[name] is not meant:
        raise NoPatchError(f"{name} is the name of something else in the file")
    return name in namespace and path in sys.modules
