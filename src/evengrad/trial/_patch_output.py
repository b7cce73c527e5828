"""An activation on the output of a model, taken away or exchanged where the source applies it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from evengrad.treat import RemoveOutputActivation
from evengrad.trial._patch_call import UNKNOWN, resolved
from evengrad.trial._patch_source import Edit, Source

NAMES = (
    "softmax", "log_softmax", "softmin", "sigmoid", "logsigmoid", "relu", "relu6", "leaky_relu", "elu", "selu", "celu",
    "gelu", "silu", "mish", "softsign", "tanh", "hardtanh", "hardsigmoid", "hardswish",
)  # fmt: skip
MODULES = (
    nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.Sigmoid, nn.LogSigmoid, nn.ReLU, nn.ReLU6, nn.LeakyReLU,
    nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softsign, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid,
    nn.Hardswish,
)  # fmt: skip
# They hand the numbers on as they are.
PASSING = frozenset({
    "squeeze", "unsqueeze", "flatten", "view", "reshape", "contiguous", "transpose", "permute", "movedim", "float",
    "to", "clone", "type_as",
})  # fmt: skip
HOLDERS = (torch, functional, torch.special)
ATOMS = ast.Name | ast.Attribute | ast.Call | ast.Subscript


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """A place where a source applies an activation to what becomes the output.

    Args:
        call: The whole of it.
        given: What it is applied to.
        inside: Whether something is done to its result in the same expression.
        statement: `x = relu(x)`, if it is all that a statement does, and others stand beside it; it can go then.
        depth: How many others come behind it on the way to the output.
    """

    call: ast.expr
    given: ast.expr
    inside: bool
    statement: ast.stmt | None = None
    depth: int = 0


def applied_last(definition: ast.ClassDef, module: nn.Module, namespace: Mapping[str, Any]) -> list[Applied]:
    """List the activations through which what the forward of a class returns has come last.

    Names are followed to their last assignment, calls of methods of the class into these, and what only changes the
    shape is passed through.

    Args:
        definition: Of the class.
        module: One of its instances.
        namespace: Of the file.
    """
    methods = {one.name: one for one in definition.body if isinstance(one, ast.FunctionDef)}
    forward = methods.get("forward")
    return [] if forward is None else _Followed(methods, module, namespace).returns(forward)


def in_turn(found: list[Applied]) -> Iterator[list[Applied]]:
    """Give the places to be changed together: the last on each way to the output, the last two, ..., then each alone.

    So nothing is changed that need not be: with a batch that a relu leaves as it is, nobody could tell.
    """
    depths = sorted({one.depth for one in found})
    sets = [[one for one in found if one.depth <= depth] for depth in depths]
    for some in (*sets, *([one] for one in found if [one] not in sets)):
        yield _nested_as_one(some)


def _nested_as_one(found: list[Applied]) -> list[Applied]:
    """Take an activation of another one's result, and that one, as one that is applied to what the inner one is."""
    inner = {id(one.call): one for one in found}
    whole = []
    for one in found:
        if any(other.given is one.call for other in found):
            continue
        given = one.given
        while id(given) in inner:
            given = inner[id(given)].given
        whole.append(replace(one, given=given))
    return whole


def output_edits(source: Source, applied: Applied, treatment: RemoveOutputActivation) -> list[Edit]:
    """Take an activation away, or put a sigmoid there, or apply it in evaluation mode only."""
    start, end = source.start(applied.call), source.end(applied.call)
    bare = source.segment(applied.given)
    given = bare if isinstance(applied.given, ATOMS) and _is_whole(bare) else f"({bare})"
    if treatment.to == "sigmoid":
        return [Edit(start=start, end=end, text=f"torch.sigmoid({bare})")]
    if treatment.when == "training":
        text = f"{given} if self.training else {source.segment(applied.call)}"
        return [Edit(start=start, end=end, text=f"({text})" if applied.inside or "\n" in text else text)]
    if applied.statement is not None:
        begin = source.line_start(source.start(applied.statement))
        source.indent(source.start(applied.statement))  # raises where another statement stands on the line
        rest = source.text[source.end(applied.statement) : source.line_end(source.end(applied.statement))].strip()
        if not rest or rest.startswith("#"):
            return [Edit(start=begin, end=source.line_end(source.end(applied.statement)), text="")]
    return [Edit(start=start, end=end, text=given)]


def in_sequences(source: Source, region: ast.AST, namespace: Mapping[str, Any], to: str) -> Iterator[list[Edit]]:
    """Take an activation from the end of a call of `nn.Sequential`, or put a sigmoid there; for each such call."""
    for node in ast.walk(region):
        if not isinstance(node, ast.Call) or resolved(node.func, namespace) is not nn.Sequential or len(node.args) < 2:
            continue
        before, last = node.args[-2:]
        if (
            isinstance(last, ast.Call)
            and resolved(last.func, namespace) in MODULES
            and not isinstance(before, ast.Starred)
        ):
            if to == "sigmoid":
                yield [Edit(start=source.start(last), end=source.end(last), text="nn.Sigmoid()")]
            elif "#" not in source.text[source.end(before) : source.start(last)]:
                yield [Edit(start=source.end(before), end=source.end(last), text="")]


class _Followed:
    """The way back from what a class returns."""

    def __init__(self, methods: Mapping[str, ast.FunctionDef], module: nn.Module, namespace: Mapping[str, Any]) -> None:
        self._methods, self._module, self._namespace = methods, module, namespace
        self._seen: set[int] = set()

    def returns(self, function: ast.FunctionDef) -> list[Applied]:
        if id(function) in self._seen:
            return []
        self._seen.add(id(function))
        found: dict[int, Applied] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                found |= {id(one.call): one for one in self._back(node.value, function, node, inside=False)}
        return list(found.values())

    def _back(self, node: ast.expr, function: ast.FunctionDef, at: ast.stmt, *, inside: bool) -> Iterator[Applied]:
        if isinstance(node, ast.Name):
            for statement in _assignments(function, node.id, at):
                value = statement.value
                for one in self._back(value, function, statement, inside=False):
                    alone = one.call is value and isinstance(one.given, ast.Name) and one.given.id == node.id
                    can_go = alone and _has_neighbours(function, statement)
                    yield replace(one, statement=statement) if can_go else one
        elif isinstance(node, ast.Call):
            yield from self._back_of_call(node, function, at, inside=inside)
        else:
            for child in _parts(node):
                yield from self._back(child, function, at, inside=isinstance(node, ast.Subscript))

    def _back_of_call(
        self, node: ast.Call, function: ast.FunctionDef, at: ast.stmt, *, inside: bool
    ) -> Iterator[Applied]:
        given, kind = self._kind(node)
        if kind == "activation" and given is not None:
            yield Applied(call=node, given=given, inside=inside)
            for one in self._back(given, function, at, inside=True):
                yield replace(one, depth=one.depth + 1)
        elif kind == "passing" and given is not None:
            yield from self._back(given, function, at, inside=True)
        elif kind == "method" and isinstance(node.func, ast.Attribute):
            yield from self.returns(self._methods[node.func.attr])

    def _kind(self, node: ast.Call) -> tuple[ast.expr | None, str]:
        """Say what a call does with which expression."""
        first = node.args[0] if node.args else next((one.value for one in node.keywords if one.arg == "input"), None)
        function = resolved(node.func, self._namespace)
        if function is not UNKNOWN:
            names = {name for name in (*NAMES, *PASSING) for holder in HOLDERS if getattr(holder, name, 0) is function}
            return first, "activation" if names & set(NAMES) else "passing" if names else ""
        if not isinstance(node.func, ast.Attribute):
            return None, ""
        name, owner = node.func.attr, node.func.value
        if isinstance(owner, ast.Name) and owner.id == "self":
            held = getattr(self._module, name, None)
            if isinstance(held, nn.Module):
                return first, "activation" if isinstance(held, MODULES) else ""
            return None, "method" if name in self._methods else ""
        return owner, "activation" if name in NAMES else "passing" if name in PASSING else ""


def _parts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Tuple | ast.List):
        return node.elts
    if isinstance(node, ast.Dict):
        return node.values
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    return [node.value] if isinstance(node, ast.Subscript) else []


def _assignments(function: ast.FunctionDef, name: str, at: ast.stmt) -> Iterator[ast.Assign]:
    """List what a name was assigned before a statement, the last first, up to one that was certainly made.

    What binds the name in another way (`x, _ = ...`, `x: Tensor = ...`, `x += ...`, `with ... as x`, `for x in ...`,
    `x := ...`) ends the list: what was there before is not what is returned.
    """
    plain = {
        id(one.targets[0]): one for one in ast.walk(function) if isinstance(one, ast.Assign) and len(one.targets) == 1
    }
    bound = [one for one in _bindings(function, name) if one.lineno < at.lineno]
    for one in sorted(bound, key=lambda each: (each.lineno, each.col_offset), reverse=True):
        statement = plain.get(id(one))
        if statement is None:
            return
        yield statement
        if statement in function.body:
            return


def _bindings(function: ast.FunctionDef, name: str) -> Iterator[ast.expr | ast.stmt | ast.excepthandler | ast.pattern]:
    """Find everything in a function that gives a name something else."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            if node.id == name and not isinstance(node.ctx, ast.Load):
                yield node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any((one.asname or one.name.split(".")[0]) == name for one in node.names):
                yield node
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.pattern) and getattr(node, "name", None) == name:
            yield node


def _has_neighbours(function: ast.FunctionDef, statement: ast.stmt) -> bool:
    blocks = (getattr(one, key, []) for one in ast.walk(function) for key in ("body", "orelse", "finalbody"))
    return any(isinstance(block, list) and statement in block and len(block) > 1 for block in blocks)


def _is_whole(text: str) -> bool:
    """Tell whether a text stays one expression without brackets around it."""
    try:
        return isinstance(ast.parse(text).body[0], ast.Expr) and len(ast.parse(text).body) == 1
    except SyntaxError:
        return False
