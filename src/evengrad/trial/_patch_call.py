"""The call `Task(...)` in the user's source that made a task, and changing its keywords."""

from __future__ import annotations

import ast
import builtins
import inspect
import io
import tokenize
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

from evengrad.nouns import Task
from evengrad.trial._patch_block import (
    Role,
    Snippet,
    before_statement,
    role_of,
)
from evengrad.trial._patch_source import Edit, NoPatchError, Source

Likeness = Literal["same", "equal", "unknown", "different"]
UNKNOWN = object()
CLOSED = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCall:
    """A call in a source, the statement that holds it, the function around that, if any, and the loops in that."""

    source: Source
    node: ast.Call
    statement: ast.stmt
    function: ast.FunctionDef | None
    loops: tuple[ast.stmt, ...] = ()

    def value(self, field: str) -> ast.expr | None:
        """What the call gives for a member of the task, if it names it."""
        return next((word.value for word in self.node.keywords if word.arg == field), None)


def task_call(source: Source, task: Task, namespace: Mapping[str, Any]) -> TaskCall | None:
    """Find the one call in a source that can have made the task; None when there is none.

    A call is taken if nothing in it contradicts the task, and one of its functions is the task's own; where it is
    assigned to a name of the module, what the name stands for tells, and one with a lambda of the task is it.

    Raises:
        NoPatchError: There are several, or it stands where no statement can be put before it.
    """
    found: list[tuple[list[ast.AST], ast.Call, ast.FunctionDef | None]] = []
    certain: list[tuple[list[ast.AST], ast.Call, ast.FunctionDef | None]] = []
    for chain in _calls(source.tree):
        call = chain[-1]
        if not isinstance(call, ast.Call) or not _makes_task(call, namespace):
            continue
        around = next((one for one in reversed(chain) if isinstance(one, ast.FunctionDef)), None)
        named = _named(chain[-2], namespace)
        fits = _fits(source, call, task, namespace, _locals(around)) if named is None else _is_that(named, task)
        if fits:
            made_here = named is not None or any(isinstance(word.value, ast.Lambda) for word in call.keywords)
            (certain if made_here else found).append((chain, call, around))
    found = certain or found
    if not found:
        return None
    if len(found) > 1:
        raise NoPatchError(f"several calls of Task in {source.path.name} can be it")
    chain, call, around = found[0]
    place = max(index for index, one in enumerate(chain) if isinstance(one, ast.stmt))
    if any(isinstance(one, CLOSED) for one in chain[place:]):
        raise NoPatchError("the call of Task stands in a lambda or a comprehension")
    statement = chain[place]
    if not isinstance(statement, ast.stmt):
        raise AssertionError(statement)
    inside = chain[chain.index(around) :] if around is not None else chain
    loops = tuple(one for one in inside if isinstance(one, ast.For | ast.While))
    return TaskCall(source=source, node=call, statement=statement, function=around, loops=loops)


def in_call(call: TaskCall, field: str, snippet: Snippet, names: tuple[str, str]) -> list[Edit]:
    """Let a new function before the statement make a member of the task, with the snippet.

    Args:
        call: The call.
        field: The member.
        snippet: What is done.
        names: Of the new function, and of what the call is given now, if that needs a name: see `hidden_by`.
    """
    role, source = role_of(field, snippet), call.source
    value, (name, kept) = call.value(field), names
    above = "" if value is None or not hidden_by(value, snippet, role) else f"{kept} = {source.segment(value)}\n"
    head, first = _first_lines(source, value, role) if not above else _calling(kept, role)
    if first is None and role.variable is not None and role.variable not in snippet.makes:
        raise NoPatchError(f"the call of Task does not say what {field} is")
    if first is not None and role.variable == "warm_up":
        raise NoPatchError("there is a schedule already")
    lines = [f"def {name}({head}):", *([] if first is None else first.split("\n")), *_deeper(snippet.body)]
    if role.variable is not None:
        lines.append(f"    return {role.variable}")
    top = call.function is None and call.statement in source.tree.body
    gap = "\n\n" if above and top else "\n" if above else ""
    edits = [before_statement(source, call.statement, above + gap + "\n".join(lines), blank=2 if top else 1)]
    return [*edits, *keyword_edits(call, field, name)]


def hidden_by(value: ast.expr, snippet: Snippet, role: Role) -> bool:
    """Tell whether an expression reads a name that a new function would assign: it has to stand before the function.

    In `Task(model=model)` the name is that of the factory; inside of a function with `model = ...` it would be the
    function's own.
    """
    return bool(_read(value) & {*snippet.makes, role.variable, role.argument})


def changes_in_loop(call: TaskCall, value: ast.expr | None) -> bool:
    """Tell whether a loop around the call gives its names other values each time, which a function sees too late."""
    stored = {
        one.id
        for loop in call.loops
        for one in ast.walk(loop)
        if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load)
    }
    return value is not None and bool(_read(value) & stored)


def keyword_edits(call: TaskCall, field: str, text: str) -> list[Edit]:
    """Give a keyword of the call another value, or add it.

    Raises:
        NoPatchError: The call spreads a mapping that may hold the keyword.
    """
    source, value = call.source, call.value(field)
    if value is not None:
        return [Edit(start=source.start(value), end=source.end(value), text=text)]
    if any(word.arg is None for word in call.node.keywords):
        raise NoPatchError(f"the call of Task spreads a mapping that may hold {field}")
    at, comma, own_line = _end_of_arguments(call)
    if not comma:
        return [Edit(start=at, end=at, text=f", {field}={text}")]
    if not own_line:
        return [Edit(start=at, end=at, text=f" {field}={text},")]
    last = call.node.keywords[-1].value
    line = source.text[source.line_start(source.offset(call.node.keywords[-1].lineno, 0)) :]
    indent = line[: len(line) - len(line.lstrip(" \t"))]
    if last.lineno == call.node.lineno:
        indent += "    "
    at = source.line_end(at)
    return [Edit(start=at, end=at, text=f"{indent}{field}={text},{source.newline}")]


def resolved(node: ast.AST, namespace: Mapping[str, Any]) -> Any:
    """Look up what a dotted name stands for, without running anything; `UNKNOWN` where that cannot be said."""
    if isinstance(node, ast.Name):
        return namespace.get(node.id, getattr(builtins, node.id, UNKNOWN))
    if isinstance(node, ast.Attribute):
        owner = resolved(node.value, namespace)
        if isinstance(owner, ModuleType | type):
            return vars(owner).get(node.attr, UNKNOWN)
    return UNKNOWN


def _first_lines(source: Source, value: ast.expr | None, role: Role) -> tuple[str, str | None]:
    """Write the parameters of the new function and the lines before the snippet."""
    argument = role.argument or ""
    if value is None:
        return argument, None
    assigned = f"{role.variable} = " if role.variable else ""
    if not isinstance(value, ast.Lambda):
        text = source.segment(value)
        if not isinstance(value, ast.Name | ast.Attribute | ast.Call):
            text = f"({text})"
        if isinstance(value, ast.Constant) and value.value is None:
            return argument, None
        return argument, _kept(f"{assigned}{text}({argument})")
    line = lambda_line(source, value.body, assigned)
    names = [one.arg for one in (*value.args.posonlyargs, *value.args.args)]
    renamed = f"    {argument} = {names[0]}\n" if argument and names and names[0] != argument else ""
    return ast.unparse(value.args), renamed + _kept(line)


def _read(value: ast.expr) -> set[str]:
    """List the names that an expression reads and does not bind itself."""
    own = {one.arg for one in ast.walk(value) if isinstance(one, ast.arg)}
    return {one.id for one in ast.walk(value) if isinstance(one, ast.Name)} - own


def _calling(kept: str, role: Role) -> tuple[str, str]:
    argument = role.argument or ""
    assigned = f"{role.variable} = " if role.variable else ""
    return argument, _kept(f"{assigned}{kept}({argument})")


def lambda_line(source: Source, body: ast.expr, assigned: str) -> str:
    """Write the body of a lambda as a statement that begins with `assigned` or `return`, in brackets if it needs them.

    Raises:
        NoPatchError: It would become another expression.
    """
    lead = source.text[source.line_start(source.start(body)) :]
    lead = lead[: len(lead) - len(lead.lstrip(" \t"))]
    text = source.segment(body).replace("\r\n", "\n").replace(f"\n{lead}", "\n")
    for line in (f"{assigned}{text}", f"{assigned}(\n{text}\n)"):
        try:
            statement = ast.parse(_kept(line).replace("    ", "", 1)).body[0]
        except SyntaxError:
            continue
        made = statement.value if isinstance(statement, ast.Assign | ast.Expr | ast.Return) else None
        if made is not None and ast.dump(made) == ast.dump(body):
            return line
    raise NoPatchError("the lambda cannot be written as a function")


def _kept(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.replace("\r\n", "\n").split("\n"))


def _deeper(body: str) -> list[str]:
    return [f"    {line}" if line.strip() else "" for line in body.split("\n")]


def _end_of_arguments(call: TaskCall) -> tuple[int, bool, bool]:
    """Find the end of the last argument, whether a comma is there, and whether the bracket has a line of its own."""
    source, node = call.source, call.node
    start, end = source.start(node), source.end(node)
    text = source.text[start:end]
    lines = text.split("\n")
    before: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text.replace("\r\n", "\n")).readline):
        if token.type not in {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER, tokenize.DEDENT}:
            before.append(token)
    bracket, last = before[-1], before[-2]
    row, column = last.end
    at = start + sum(len(line) + 1 for line in lines[: row - 1]) + column
    return at, last.string == ",", bracket.start[0] > row


def _calls(tree: ast.Module) -> list[list[ast.AST]]:
    """List all calls, each with the nodes around it, the outermost first."""
    found: list[list[ast.AST]] = []
    waiting: list[list[ast.AST]] = [[tree]]
    while waiting:
        chain = waiting.pop()
        if isinstance(chain[-1], ast.Call):
            found.append(chain)
        waiting.extend([*chain, child] for child in ast.iter_child_nodes(chain[-1]))
    return found


def _makes_task(call: ast.Call, namespace: Mapping[str, Any]) -> bool:
    kind = resolved(call.func, namespace)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return kind is Task or (kind is UNKNOWN and name == "Task")


def _named(around: ast.AST, namespace: Mapping[str, Any]) -> Task | None:
    """Give the task that a statement of a call and nothing else assigns to a name; None where that cannot be said."""
    targets = around.targets if isinstance(around, ast.Assign) else []
    names = [one.id for one in targets if isinstance(one, ast.Name) and one.col_offset == 0]
    live = namespace.get(names[0]) if len(names) == 1 else None
    return live if isinstance(live, Task) else None


def _is_that(named: Task, task: Task) -> bool:
    """Tell whether two tasks are made of the same; the command line gives one another name."""
    pairs = ((getattr(named, field.name), getattr(task, field.name)) for field in fields(Task) if field.name != "name")
    return all(one is other or _equal(one, other) for one, other in pairs)


def _fits(source: Source, call: ast.Call, task: Task, namespace: Mapping[str, Any], local: set[str]) -> bool:
    spread = any(word.arg is None for word in call.keywords)
    words = {word.arg: word.value for word in call.keywords if word.arg is not None}
    likeness: list[Likeness] = []
    for field in fields(Task):
        live = getattr(task, field.name)
        if field.name in words:
            likeness.append(_likeness(source, words[field.name], live, namespace, local))
        elif field.name != "name" and not spread and (field.default is MISSING or not _equal(live, field.default)):
            return False  # a name may be given later, as the command line does
    return "different" not in likeness and "same" in likeness


def _likeness(source: Source, node: ast.expr, live: Any, namespace: Mapping[str, Any], local: set[str]) -> Likeness:
    if isinstance(node, ast.Constant):
        return "equal" if _equal(node.value, live) else "different"
    if isinstance(node, ast.Lambda):
        return "same" if _node_of(source, live) is node else "different"
    if isinstance(node, ast.Name) and node.id in local:
        definition = _node_of(source, live)
        return "same" if isinstance(definition, ast.FunctionDef) and definition.name == node.id else "unknown"
    known = resolved(node, namespace)
    if known is UNKNOWN:
        return "unknown"
    if known is live:
        return "same" if callable(live) else "equal"
    return "equal" if _equal(known, live) else "different"


def _node_of(source: Source, live: Any) -> ast.AST | None:
    function = inspect.unwrap(live) if callable(live) else live
    if isinstance(function, MethodType):
        function = function.__func__
    if not isinstance(function, FunctionType):
        return None
    try:
        return source.node_of(function.__code__)
    except NoPatchError:
        return None


def _equal(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str | int | float | tuple) and type(one) is type(other) and one == other)


def _locals(function: ast.FunctionDef | None) -> set[str]:
    """List the names that a function binds, at whatever depth."""
    if function is None:
        return set()
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node is not function:
            found.add(node.name)
    return found
