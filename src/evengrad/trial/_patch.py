"""A cure as a unified diff of the user's source where that is known to be right, otherwise as a snippet."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Literal, final

from evengrad.nouns import Task
from evengrad.treat import AbstractTreatment, Treated
from evengrad.trial._patch_attempt import Option, attempted
from evengrad.trial._patch_call import TaskCall, task_call
from evengrad.trial._patch_files import UserFiles, files_of
from evengrad.trial._patch_options import Options
from evengrad.trial._patch_parts import Part, parts_of
from evengrad.trial._patch_source import Draft, NoPatchError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """A treatment as something to put into one's own source.

    Args:
        text: A unified diff, for `git apply` or `patch -p1` in the directory in which it was made; or a snippet.
        kind: Which of the two.
        files: The files that a diff changes, as they are named in it.
        why: Why it is a snippet, in words; empty for a diff.
    """

    text: str
    kind: Literal["diff", "snippet"]
    files: tuple[str, ...] = ()
    why: str = ""


def patch_of(task: Task, treatment: AbstractTreatment, treated: Treated[Task]) -> Patch:
    """Write a treatment as a diff of the source that the task comes from.

    The words themselves are changed where that says it all: another activation where all modules of a class are
    replaced, another learning rate or optimizer where one call makes it, `clip` and other numbers in the call of
    `Task`. Otherwise the treatment's code goes into the function that makes the model or the optimizer, before it
    returns, or into a new function that stands in its place in the call of `Task`.

    Every diff has been tried before it is handed out: the edited factory, and nothing else of the file, was run in a
    copy of its module's names, and made the same modules, parameters, outputs and optimizer settings as the treated
    task. The user's files are read, never written.

    Args:
        task: The untreated task.
        treatment: What was confirmed.
        treated: What `treatment.treat_task(task)` gave.

    Returns:
        A diff; a snippet with the reason, where there is no file (notebooks), the file was changed since it was
        imported, or what an edit makes is not what the treated task makes.

    Cost:
        Up to about ten models are built for each way that is tried, and six forward passes.
    """
    try:
        drafts = _drafts(task, treatment, treated)
        text = "".join(draft.diff() for draft in drafts)
        if not text:
            raise NoPatchError("the edits change nothing")
        return Patch(text=text, kind="diff", files=tuple(draft.label for draft in drafts))
    except NoPatchError as err:
        return Patch(text=in_words(treated.code), kind="snippet", why=str(err))
    except Exception as err:  # the code of a user in ways that nobody foresaw: a repair that was proved is not lost
        return Patch(
            text=in_words(treated.code),
            kind="snippet",
            why=f"{type(err).__name__} while the source was read: {err}"[:300],
        )


def _drafts(task: Task, treatment: AbstractTreatment, treated: Treated[Task]) -> list[Draft]:
    parts = parts_of(task, treatment, treated)
    files = files_of(task)
    call, no_call = _call(task, files)
    options = Options(task, files, call)
    chosen: dict[str, Option] = {}
    for field in dict.fromkeys(name for part in parts for name in part.fields):
        own = [part for part in parts if field in part.fields]
        chosen[field] = _first_that_works(options, field, own, (files, treated.subject), no_call)
    return attempted(chosen, files, treated.subject)


def _first_that_works(
    options: Options, field: str, parts: list[Part], trying: tuple[UserFiles, Task], otherwise: str
) -> Option:
    files, treated = trying
    for option in options.of(field, parts):
        try:
            attempted({field: option}, files, treated)
        except NoPatchError as err:
            options.reasons.append(str(err))
        else:
            return option
    reasons = [*options.reasons, otherwise] if otherwise else options.reasons
    if any("was changed on disk" in one for one in files.refused) or not files.sources:
        reasons = [*files.refused, *reasons]
    raise NoPatchError("; ".join(dict.fromkeys(reasons)) or f"there is no place for the change of {field}")


def in_words(code: str) -> str:
    """Leave the rewriting of traced forwards out of a snippet: beside it stands in words what to write into them."""
    if "class Rewritten" not in code:
        return code
    lines: list[str | None] = [*code.split("\n")]
    for node in ast.parse(code).body:
        import_ = isinstance(node, ast.Import) and node.names[0].name in {"inspect", "torch.fx"}
        class_ = isinstance(node, ast.ClassDef) and node.name in {"OwnForward", "Rewritten"}
        loop = isinstance(node, ast.For) and "Rewritten(" in ast.unparse(node)
        if import_ or class_ or loop:
            lines[node.lineno - 1 : node.end_lineno] = [None] * ((node.end_lineno or 0) - node.lineno + 1)
    text = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


def _call(task: Task, files: UserFiles) -> tuple[TaskCall | None, str]:
    found, without, reasons = [], [], []
    for path, source in files.sources.items():
        try:
            call = task_call(source, task, files.namespaces[path])
        except NoPatchError as err:
            reasons.append(str(err))
            continue
        if call is None:
            without.append(path.name)
        else:
            found.append(call)
    if len(found) > 1:
        reasons = [f"several calls of Task can be it, in {', '.join(one.source.path.name for one in found)}"]
    elif without and not reasons:
        reasons = [f"no call of Task in {', '.join(without)} can be it"]
    return (found[0], "") if len(found) == 1 else (None, "; ".join(reasons))
