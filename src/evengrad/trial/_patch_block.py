"""Putting a snippet into a factory, or into a new function that stands in its place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from evengrad.trial._patch_source import Edit, Function, NoPatchError, Source, first_line

CELL_OR_HEAD = re.compile(r"#\s*%%|#!|#.*coding[:=]")
DEFINITIONS = ast.ClassDef | ast.FunctionDef
MADE = frozenset({"model", "optimizer"})
IMPORTS = {"torch": "import torch", "nn": "from torch import nn", "evengrad": "import evengrad"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Snippet:
    """A treatment's code, taken apart.

    Args:
        imports: Lines that import something.
        outside: Source of the classes and functions that it defines, by name: they go to the top of the module, unless
            they use what the rest of the snippet makes or changes.
        body: What is done to the model or the optimizer, without comments before and after it: they say where it goes.
        makes: The names that the body assigns.
    """

    imports: tuple[str, ...]
    outside: tuple[tuple[str, str], ...]
    body: str
    makes: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What a member of a task makes from what, in the words of a snippet.

    Args:
        variable: What the snippet calls the thing that the member makes; None when it makes nothing.
        argument: What the snippet calls the thing that the member is given; None when it takes nothing.
    """

    variable: str | None
    argument: str | None


ROLES = {
    "model": Role(variable="model", argument=None),
    "optimizer": Role(variable="optimizer", argument="model"),
    "after_step": Role(variable=None, argument="model"),
    "schedule": Role(variable="scheduler", argument="optimizer"),
}


def role_of(field: str, snippet: Snippet) -> Role:
    """Say what a member of a task makes, as this snippet calls it."""
    return Role(variable="warm_up", argument="optimizer") if "warm_up" in snippet.makes else ROLES[field]


def taken_apart(code: str) -> Snippet:
    """Separate the imports and definitions of a snippet from what it does.

    Raises:
        NoPatchError: It is not Python, or does nothing.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError as err:
        raise NoPatchError("the snippet is not Python by itself") from err
    lines = code.split("\n")
    doing = [one for one in tree.body if not isinstance(one, DEFINITIONS | ast.Import | ast.ImportFrom)]
    makes = frozenset(
        name.id for one in doing for name in ast.walk(one) if isinstance(name, ast.Name) and not _is_load(name)
    )
    imports = [one for one in tree.body if isinstance(one, ast.Import | ast.ImportFrom)]
    definitions = [one for one in tree.body if isinstance(one, DEFINITIONS) and not _uses(one, makes | MADE)]
    inside = [one for one in tree.body if one not in imports and one not in definitions]
    if not inside:
        raise NoPatchError("the snippet defines something that the loop is to use")
    last = inside[-1].end_lineno or inside[-1].lineno
    kept = [True] * last
    for one in (*imports, *definitions):
        kept[first_line(one) - 1 : one.end_lineno] = [False] * ((one.end_lineno or one.lineno) - first_line(one) + 1)
    body = [
        line
        for number, line in enumerate(lines[:last], start=1)
        if kept[number - 1] and number >= first_line(inside[0])
    ]
    return Snippet(
        imports=tuple(dict.fromkeys(ast.unparse(one) for one in imports)),
        outside=tuple(dict.fromkeys((one.name, _lines_of(lines, one)) for one in definitions)),
        body="\n".join(body).strip("\n"),
        makes=makes,
    )


def in_factory(source: Source, node: ast.FunctionDef, snippet: Snippet, role: Role) -> list[Edit]:
    """Put a snippet into a function before it returns what it made.

    A single `return` on a line of its own becomes an assignment, the snippet, and the return. Several of them return
    what a new function makes of their values; so does one where the snippet assigns names that the function reads
    from outside of it.

    Raises:
        NoPatchError: The function returns nothing, yields, or its form does not allow it.
    """
    if role.variable is None:
        raise NoPatchError("the function makes nothing that could be changed")
    inner = list(_own(node))
    if any(isinstance(one, ast.Yield | ast.YieldFrom) for one in inner):
        raise NoPatchError(f"{node.name} yields")
    returns = [one for one in inner if isinstance(one, ast.Return) and one.value is not None]
    if not returns:
        raise NoPatchError(f"{node.name} returns nothing")
    argument = _argument(node, snippet, role)
    begun = source.text[source.line_start(source.start(returns[0])) : source.start(returns[0])].strip()
    if len(returns) > 1 or begun or _read_from_outside(node) & {*snippet.makes, role.variable}:
        return _around_returns(source, node, returns, snippet, (role.variable, argument))
    if argument and argument[1] != argument[0]:
        snippet = replace(snippet, body=f"{argument[0]} = {argument[1]}\n{snippet.body}")
    return _at_return(source, returns[0], snippet, role.variable)


def _argument(node: ast.FunctionDef, snippet: Snippet, role: Role) -> tuple[str, str] | None:
    """Say what the snippet calls what the function is given, and what the function calls it; None if it is not used."""
    if role.argument is None or not re.search(rf"\b{role.argument}\b", snippet.body):
        return None
    given = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    if role.argument in {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}:
        return role.argument, role.argument
    return (role.argument, given[0]) if given else None


def _read_from_outside(node: ast.FunctionDef) -> set[str]:
    """List the names that a function, or one inside of it, has from what is around it."""
    own = list(_own(node))
    bound = {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}
    bound |= {one.id for one in own if isinstance(one, ast.Name) and not _is_load(one)}
    bound |= {one.name for one in own if isinstance(one, DEFINITIONS)}
    declared = {name for one in own if isinstance(one, ast.Global | ast.Nonlocal) for name in one.names}
    read = {one.id for one in own if isinstance(one, ast.Name) and _is_load(one)}
    nested = [one for one in own if isinstance(one, Function | ast.AsyncFunctionDef | ast.ClassDef)]
    inside = {one.id for each in nested for one in ast.walk(each) if isinstance(one, ast.Name)}
    return (read - bound) | inside | declared


def before_statement(source: Source, statement: ast.stmt, text: str, *, blank: int) -> Edit:
    """Insert lines before a statement and the comments that belong to it, at its indentation."""
    start = source.offset(first_line(statement), 0)
    indent = source.indent(source.start(statement))
    while start > 0:
        above = source.text[source.line_start(start - 1) : start].strip()
        if not above.startswith("#") or CELL_OR_HEAD.match(above):
            break
        start = source.line_start(start - 1)
    lines = source.newline * _missing(source, start, indent, blank)
    lines += indented(text, indent, source) + source.newline * (1 + blank)
    return Edit(start=start, end=start, text=lines)


def _missing(source: Source, start: int, indent: str, blank: int) -> int:
    """Count the empty lines that lack above a definition; none where a block begins."""
    lines = source.text[:start].replace("\r\n", "\n").split("\n")[:-1]
    above = next((number for number, line in enumerate(reversed(lines)) if line.strip()), None)
    if above is None:
        return 0
    line = lines[-1 - above]
    begins = not line.startswith(indent) or line.rstrip().endswith(":")
    return 0 if begins else max(0, blank - above)


def stacked(edits: list[Edit]) -> list[Edit]:
    """Let texts that go to one place stand below each other without the empty lines that each would want above."""
    seen: set[int] = set()
    done = []
    for edit in edits:
        again = edit.start == edit.end and edit.start in seen
        done.append(replace(edit, text=edit.text.lstrip("\r\n")) if again else edit)
        seen.add(edit.start)
    return done


def outside_edits(source: Source, within: ast.AST, snippet: Snippet) -> list[Edit]:
    """Define what a snippet needs before the statement of the module that holds a node.

    Raises:
        NoPatchError: The module uses such a name for something else.
    """
    text: list[str] = []
    for name, definition in snippet.outside:
        known = [
            one for one in source.tree.body if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == name
        ]
        if any(ast.dump(one) == ast.dump(ast.parse(definition).body[0]) for one in known):
            continue  # a patch before this one has put it there
        if name in names_in(source.tree):
            raise NoPatchError(f"{source.path.name} has something else with the name {name}")
        text.append(definition)
    if not text:
        return []
    return [before_statement(source, top_level(source, within), "\n\n\n".join(text), blank=2)]


def import_edits(source: Source, lines: list[str]) -> list[Edit]:
    """Import something at the top, behind the imports that are there."""
    if not lines:
        return []
    head = 0
    for index, node in enumerate(source.tree.body):
        docstring = index == 0 and isinstance(node, ast.Expr) and ast.get_docstring(source.tree) is not None
        if not isinstance(node, ast.Import | ast.ImportFrom) and not docstring:
            break
        head = index + 1
    text = source.newline.join(lines) + source.newline
    if head == 0:
        at = source.line_start(source.offset(first_line(source.tree.body[0]), 0))
        return [Edit(start=at, end=at, text=text + source.newline)]
    last = source.tree.body[head - 1]
    at = source.line_end(source.end(last))
    return [Edit(start=at, end=at, text=(source.newline if isinstance(last, ast.Expr) else "") + text)]


def indented(text: str, indent: str, source: Source) -> str:
    """Indent a snippet, in the manner of the file.

    Raises:
        NoPatchError: A string over several lines would become another.
    """
    unit = "\t" if "\t" in indent or (not indent and source.text.count("\n\t") > source.text.count("\n ")) else "    "
    lines = []
    for line in text.split("\n"):
        depth = (len(line) - len(line.lstrip(" "))) // 4
        lines.append(indent + unit * depth + line[4 * depth :] if line.strip() else "")
    wrapped = ast.parse(
        "\n".join(["if 1:", *(f" {line}" if line else "" for line in lines)]) if indent else "\n".join(lines)
    )
    body = wrapped.body[0].body if indent and isinstance(wrapped.body[0], ast.If) else wrapped.body
    if [ast.dump(one) for one in body] != [ast.dump(one) for one in _parsed(text)]:
        raise NoPatchError("the snippet holds a string over several lines")
    return source.newline.join(lines)


def top_level(source: Source, within: ast.AST) -> ast.stmt:
    """Find the statement of the module that holds a node."""
    return next(statement for statement in source.tree.body if any(one is within for one in ast.walk(statement)))


def names_in(tree: ast.AST) -> set[str]:
    """List every name that a tree mentions, of whatever kind."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for key in ("id", "name", "asname", "arg", "attr"):
            value = getattr(node, key, None)
            if isinstance(value, str):
                found.add(value)
    return found


def free_name(source: Source, wanted: str) -> str:
    """Choose a name that the file does not mention."""
    taken = names_in(source.tree)
    return next(
        name for number in range(1, 1000) if (name := wanted + (f"_{number}" if number > 1 else "")) not in taken
    )


def _is_load(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _uses(definition: ast.stmt, names: frozenset[str]) -> bool:
    """Tell whether a definition uses names that are not its own."""
    known = {one.arg for one in ast.walk(definition) if isinstance(one, ast.arg)}
    known |= {one.id for one in ast.walk(definition) if isinstance(one, ast.Name) and not _is_load(one)}
    used = {one.id for one in ast.walk(definition) if isinstance(one, ast.Name) and _is_load(one)}
    return bool((used - known) & names)


def _lines_of(lines: list[str], node: ast.stmt) -> str:
    return "\n".join(lines[first_line(node) - 1 : node.end_lineno])


def _at_return(source: Source, node: ast.Return, snippet: Snippet, variable: str) -> list[Edit]:
    start, end = source.start(node), source.end(node)
    rest = source.text[end : source.line_end(end)].strip()
    if rest and not rest.startswith("#"):
        raise NoPatchError(f"{source.path.name} has several statements on one line where the change would go")
    indent, newline = source.indent(start), source.newline
    body = indented(snippet.body, indent, source)
    if isinstance(node.value, ast.Name) and node.value.id == variable:
        at = source.line_start(start)
        return [Edit(start=at, end=at, text=body + newline)]
    after = source.line_end(end)
    ended = source.text[:after].endswith("\n")
    lines = f"{body}{newline}{indent}return {variable}"
    return [
        Edit(start=start, end=start + len("return"), text=f"{variable} ="),
        Edit(start=after, end=after, text=lines + newline if ended else newline + lines),
    ]


def _around_returns(
    source: Source,
    node: ast.FunctionDef,
    returns: list[ast.Return],
    snippet: Snippet,
    names: tuple[str, tuple[str, str] | None],
) -> list[Edit]:
    variable, argument = names
    name = free_name(source, f"treated_{variable}")
    takes, gives = (f", {one}" for one in argument) if argument else ("", "")
    function = f"def {name}({variable}{takes}):\n" + _deeper(snippet.body) + f"\n    return {variable}"
    edits = [before_statement(source, top_level(source, node), function, blank=2)]
    for one in returns:
        if one.value is None:
            raise AssertionError(one)
        begin, end = source.start(one), source.end(one)
        value = source.text[begin + len("return") : end].strip()
        edits.append(Edit(start=begin, end=end, text=f"return {name}({value}{gives})"))
    return edits


def _deeper(body: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else "" for line in body.split("\n"))


def _parsed(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def _own(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """Walk over a function without the functions and classes in it."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        one = waiting.pop()
        yield one
        if not isinstance(one, Function | ast.AsyncFunctionDef | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(one))
