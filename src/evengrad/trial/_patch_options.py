"""The ways to write the change of one member of a task, the plainest first."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any, final

from torch import nn

from evengrad.nouns import Task
from evengrad.treat import RemoveOutputActivation
from evengrad.trial._patch_attempt import Files, Option, call_now
from evengrad.trial._patch_block import free_name, in_factory, outside_edits, role_of, stacked, taken_apart
from evengrad.trial._patch_call import TaskCall, changes_in_loop, in_call, keyword_edits
from evengrad.trial._patch_direct import Swaps, activation_swaps, optimizer_edits, swap_edits
from evengrad.trial._patch_files import UserFiles
from evengrad.trial._patch_functions import called_kinds, function_edits
from evengrad.trial._patch_loss import loss_options
from evengrad.trial._patch_output import applied_last, in_sequences, in_turn, output_edits
from evengrad.trial._patch_parts import Part, beneath, functions_of, innermost
from evengrad.trial._patch_ran import calls_that_ran
from evengrad.trial._patch_rebuilt import Bench, cells_of, class_node
from evengrad.trial._patch_source import Draft, Edit, NoPatchError, Source
from evengrad.trial._patch_values import written
from evengrad.trial._seeded import seeded

MOST_PLACES = 6


@final
class Options:
    """What can be tried for a task whose files were read."""

    def __init__(self, task: Task, files: UserFiles, call: TaskCall | None) -> None:
        self.task = task
        self.files = files
        self.call = call
        self.reasons: list[str] = []

    def of(self, field: str, parts: Sequence[Part]) -> Iterator[Option]:
        """Give the options for a member, changed by some parts of the treatment."""
        if field == "model":
            yield from self._of_model(parts)
        elif field == "optimizer":
            yield from self._of_optimizer(parts)
        elif field in {"after_step", "schedule"}:
            yield from self._in_call(field, _code(parts), {}, ((), ()))
        elif field == "loss":
            yield from self._of_loss(parts[-1].after)
        else:
            yield from self._keyword(field, parts[-1].after)

    def _of_model(self, parts: Sequence[Part]) -> Iterator[Option]:
        yield from self._output_words(parts)
        yield from self._with_swaps(parts, {}, ((), ()))

    def _output_words(self, parts: Sequence[Part]) -> Iterator[Option]:
        """Take the activation on the output away where the source applies it."""
        part = next((one for one in parts if one.output is not None), None)
        if part is None or part.output is None:
            return
        others = [one for one in parts if one is not part]
        for words, classes in self._output_edits(part.output):
            new = [(path, edit) for path, found in words.items() for edit in found if _imports(edit)]
            more = (classes, tuple((path, edit.text.split(".")[0]) for path, edit in new))
            yield from self._with_swaps(others, words, more)

    def _with_swaps(self, parts: Sequence[Part], words: Files, more: tuple[Any, Any]) -> Iterator[Option]:
        """Swap activations by words where that is wanted too, and write the rest as code."""
        if not parts:
            yield Option(words=words, make=self._made_of(words), classes=more[0], uses=more[1])
            return
        swaps, to, rest = _swaps_and_rest(parts)
        for swapped, kinds, uses in self._swapped(swaps, to) if to else ():
            both, known = _joined(words, swapped), (tuple(dict.fromkeys((*more[0], *kinds))), (*more[1], *uses))
            if rest:
                yield from self._general("model", _code(rest), both, known)
            else:
                yield Option(words=both, make=self._made_of(both), classes=known[0], uses=known[1])
        yield from self._general("model", _code(parts), words, more)

    def _output_edits(self, treatment: RemoveOutputActivation) -> Iterator[tuple[Files, tuple[type[nn.Module], ...]]]:
        """Give the edits of a forward, and of what stands last in a sequence."""
        model = _built(self.task)
        definitions = list(self._definitions(model))
        ran = calls_that_ran(self.task, self.files.sources)
        for kind, path, definition in definitions:
            instance = next(module for module in model.modules() if type(module) is kind)
            found = applied_last(definition, instance, self.files.namespaces[path])
            tried = [one for one in found if (one.call.end_lineno, one.call.end_col_offset) in ran[path]]
            if len(tried) < len(found):
                self.reasons.append(f"the first batch does not reach all activations of {kind.__name__}.forward")
            for some in in_turn(tried[:MOST_PLACES]):
                source = self.files.sources[path]
                yield {path: [edit for one in some for edit in output_edits(source, one, treatment)]}, (kind,)
        if treatment.when == "training":
            return
        node, file = self._found(beneath(self.task.model))
        if node is not None and file is not None:
            names = innermost(beneath(self.task.model)).__globals__
            yield from (({file.path: one}, ()) for one in in_sequences(file, node, names, treatment.to))
        for kind, path, definition in definitions:
            source, names = self.files.sources[path], self.files.namespaces[path]
            yield from (({path: one}, (kind,)) for one in in_sequences(source, definition, names, treatment.to))

    def _of_optimizer(self, parts: Sequence[Part]) -> Iterator[Option]:
        factory = beneath(self.task.optimizer)
        node, source = self._found(factory)
        if node is not None and source is not None:
            with seeded(0):
                before = factory(_built(self.task))
                after = parts[-1].after.optimizer(_built(self.task))
            try:
                edits = optimizer_edits(source, node, innermost(factory).__globals__, before, after)
            except NoPatchError as err:
                self.reasons.append(str(err))
                edits = []
            if edits:
                uses = tuple((source.path, edit.text) for edit in edits if "torch.optim" in edit.text)
                yield Option(words={source.path: edits}, make=lambda bench: bench.rebuilt(factory), uses=uses)
        yield from self._general("optimizer", _code(parts), {}, ((), ()))

    def _of_loss(self, treated: Task) -> Iterator[Option]:
        call = self.call
        if call is None:
            self.reasons.append("the loss belongs into the call of Task")
        elif not _is_plain_or_none(call.value("loss")) or changes_in_loop(call, call.value("loss")):
            self.reasons.append("the loss of the call of Task cannot be tried without running more of the file")
        else:
            try:
                yield from loss_options(self.task, call, treated, functools.partial(self._cells, call))
            except NoPatchError as err:
                self.reasons.append(str(err))

    def _keyword(self, field: str, after: Task) -> Iterator[Option]:
        if self.call is None:
            self.reasons.append(f"{field} belongs into the call of Task")
            return
        call, (text, uses) = self.call, written(getattr(after, field))
        path = call.source.path
        yield Option(
            place=lambda drafts: {path: keyword_edits(call_now(drafts, call), field, text)},
            uses=((path, text),) if uses else (),
        )

    def _general(self, field: str, code: str, words: Files, more: tuple[Any, Any]) -> Iterator[Option]:
        """Put the code into the function that makes the thing, or into a new one at the call of Task."""
        factory = beneath(getattr(self.task, field))
        inner = innermost(factory)
        cells = {name for name in cells_of(inner) if name != "__class__"}
        shared = bool(cells) or any(isinstance(one, functools.partial | MethodType) for one in _layers(factory))
        ways = (self._in_call, self._in_function) if shared else (self._in_function, self._in_call)
        for way in ways:
            yield from way(field, code, words, more)

    def _in_function(self, field: str, code: str, words: Files, more: tuple[Any, Any]) -> Iterator[Option]:
        factory = beneath(getattr(self.task, field))
        node, source = self._found(factory)
        if not isinstance(node, ast.FunctionDef) or source is None:
            return
        snippet, path, function = taken_apart(code), source.path, node

        def place(drafts: Mapping[Path, Draft]) -> Files:
            draft = drafts[path]
            there = draft.now(function)
            outside = outside_edits(draft.source, there, snippet)
            return {path: [*outside, *in_factory(draft.source, there, snippet, role_of(field, snippet))]}

        classes, uses = more
        yield Option(
            words=words,
            place=place,
            make=lambda bench: bench.rebuilt(factory),
            classes=classes,
            uses=(*uses, (path, code)),
        )

    def _in_call(self, field: str, code: str, words: Files, more: tuple[Any, Any]) -> Iterator[Option]:
        if self.call is None:
            return
        call, snippet, path = self.call, taken_apart(code), self.call.source.path
        value = call.value(field)
        if not _is_plain_or_none(value):
            self.reasons.append("what the call of Task is given cannot be tried without running more of the file")
            return
        if changes_in_loop(call, value):
            self.reasons.append("the call of Task stands in a loop that gives it something else each time")
            return
        name, kept = (free_name(call.source, f"{how}_{field}") for how in ("treated", "untreated"))

        def place(drafts: Mapping[Path, Draft]) -> Files:
            now = call_now(drafts, call)
            made = in_call(now, field, snippet, (name, kept))
            return {path: stacked([*outside_edits(now.source, now.node, snippet), *made])}

        live = getattr(self.task, field)

        def make(bench: Bench) -> Callable[..., Any]:
            now = self._made_of(words)(bench) if any(words.values()) else live
            cells = {kept: CellType(now), **self._cells(call, value, now)}
            bench.names[path][kept] = now
            return bench.new_function(path, name, cells, live)

        classes, uses = more
        yield Option(words=words, place=place, make=make, classes=classes, uses=(*uses, (path, code)))

    def _cells(self, call: TaskCall, value: ast.expr | None, now: Any) -> dict[str, CellType]:
        """Find what the function around the call holds: from the task's own functions that were made in it."""
        cells: dict[str, CellType] = {}
        if call.function is None:
            return cells
        for one in functions_of(self.task):
            inside = f"{call.function.name}.<locals>." in getattr(one, "__qualname__", "")
            if inside and Path(one.__code__.co_filename).resolve() == call.source.path:
                cells |= cells_of(one)
        if isinstance(value, ast.Name):
            cells.setdefault(value.id, CellType(now))
        return cells

    def _found(self, factory: Any) -> tuple[ast.FunctionDef | ast.Lambda | None, Source | None]:
        function = innermost(factory)
        if not isinstance(function, FunctionType):
            return None, None
        source = self.files.sources.get(Path(function.__code__.co_filename).resolve())
        if source is None:
            return None, None
        try:
            return source.node_of(function.__code__), source
        except NoPatchError as err:
            self.reasons.append(str(err))
            return None, None

    def _swapped(self, swaps: Swaps, to: str) -> Iterator[tuple[Files, Any, Any]]:
        """Swap activations in the factory; in the classes of the model too; in what the call of Task hands over."""
        factory = beneath(self.task.model)
        node, source = self._found(factory)
        own: Files = {}
        if node is not None and source is not None:
            own = {source.path: swap_edits(source, [node], innermost(factory).__globals__, swaps)}
            yield from _if_any(own, ())
        definitions = list(self._definitions(_built(self.task)))
        called = {kind for _, path, one in definitions for kind in called_kinds(one, self.files.namespaces[path])}
        sets = [called, *({kind} for kind in sorted(called))] if len(called) > 1 else [called]
        for kinds in (set(), *sets) if called else [set()]:
            classes, inside = self._in_classes(definitions, swaps, kinds - {to}, to)
            if classes:
                yield from _if_any(_joined(own, inside), classes)
        value = None if self.call is None else self.call.value("model")
        if self.call is not None and isinstance(value, ast.Call) and _is_plain(value):
            path = self.call.source.path
            given = {path: swap_edits(self.call.source, [value], self.files.namespaces[path], swaps)}
            yield from _if_any(given, ())

    def _definitions(self, model: nn.Module) -> Iterator[tuple[type[nn.Module], Path, ast.ClassDef]]:
        """Find the definitions of the model's own classes in the files that were read."""
        for kind in dict.fromkeys(type(module) for module in model.modules()):
            for path, source in self.files.sources.items():
                names = self.files.namespaces[path]
                if names.get(kind.__name__) is kind and kind.__module__ == names.get("__name__"):
                    definition = class_node(source, kind)
                    if definition is not None:
                        yield kind, path, definition

    def _in_classes(
        self, definitions: list[tuple[type[nn.Module], Path, ast.ClassDef]], swaps: Swaps, kinds: set[str], to: str
    ) -> tuple[tuple[type[nn.Module], ...], Files]:
        classes: list[type[nn.Module]] = []
        edits: Files = {}
        for kind, path, definition in definitions:
            source, names = self.files.sources[path], self.files.namespaces[path]
            found = swap_edits(source, [definition], names, swaps)
            found += function_edits(source, [definition], names, kinds, to)
            if found:
                classes.append(kind)
                edits.setdefault(path, []).extend(found)
        return tuple(classes), edits

    def _made_of(self, words: Files) -> Callable[[Bench], Callable[..., Any]]:
        """Make the factory anew; what the call of Task hands over is evaluated if the words were changed there."""
        factory, call = beneath(self.task.model), self.call
        value = None if call is None else call.value("model")
        if call is not None and isinstance(value, ast.Call):
            start, end = call.source.start(value), call.source.end(value)
            if all(start <= edit.start < end for edit in words.get(call.source.path, [])) and words.get(
                call.source.path
            ):
                place, node = call.source.path, value
                return lambda bench: bench.value(place, node)
        return lambda bench: bench.rebuilt(factory)


def _imports(edit: Edit) -> bool:
    return edit.text.startswith(("torch.", "nn."))


def _swaps_and_rest(parts: Sequence[Part]) -> tuple[Swaps, str, list[Part]]:
    """Separate the one part that swaps activations, if it can be done by words, from the others."""
    for index, part in enumerate(parts):
        if part.to:
            try:
                swaps = activation_swaps(_built(part.before), _built(part.after))
            except NoPatchError:
                continue
            return swaps, part.to, [*parts[:index], *parts[index + 1 :]]
    return {}, "", list(parts)


def _built(task: Task) -> nn.Module:
    with seeded(0):
        return task.model()


def _code(parts: Sequence[Part]) -> str:
    return "\n".join(part.code for part in parts)


def _if_any(edits: Files, classes: tuple[type[nn.Module], ...]) -> Iterator[tuple[Files, Any, Any]]:
    if any(edits.values()):
        names = ("torch.", "nn.")
        uses = tuple(
            (path, edit.text.split(".")[0])
            for path, found in edits.items()
            for edit in found
            if edit.text.startswith(names)
        )
        yield edits, classes, uses


def _joined(one: Files, other: Files) -> Files:
    return {path: [*one.get(path, []), *other.get(path, [])] for path in {**one, **other}}


def _layers(factory: Any) -> Iterator[Any]:
    while True:
        yield factory
        if isinstance(factory, functools.partial):
            factory = factory.func
        elif isinstance(factory, MethodType):
            factory = factory.__func__
        elif hasattr(factory, "__wrapped__"):
            factory = factory.__wrapped__
        else:
            return


def _is_plain_or_none(value: ast.expr | None) -> bool:
    return value is None or _is_plain(value)


def _is_plain(value: ast.expr) -> bool:
    """Tell whether an expression can be run to try it: a name, or a call with names and constants only."""
    if isinstance(value, ast.Name | ast.Lambda | ast.Constant):
        return True
    if isinstance(value, ast.Attribute):
        return _is_plain(value.value)
    if not isinstance(value, ast.Call) or isinstance(value.func, ast.Call | ast.Lambda):
        return False
    parts = [value.func, *value.args, *(word.value for word in value.keywords)]
    return all(_is_plain(part) and not isinstance(part, ast.Call) for part in parts)
