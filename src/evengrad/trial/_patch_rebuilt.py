"""A factory of the user's made anew from the edited text, without importing the user's module again."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, final

from torch import nn

from evengrad.trial._patch_source import Draft, Function, NoPatchError, Source

# Decorators that do nothing but make a method of another kind.
HARMLESS = {"staticmethod", "classmethod", "property", "override", "final"}


@final
class Bench:
    """The drafts of some files with copies of their modules' names, and what is made from them.

    What runs here is the user's own code, which has run in this process already, with the edits in it: the factories
    that are asked for, and the definitions that the edits brought or changed.
    """

    def __init__(self, drafts: Iterable[Draft], namespaces: Mapping[Path, Mapping[str, Any]]) -> None:
        self.drafts = {draft.source.path: draft for draft in drafts}
        self.names = {path: dict(namespaces[path]) for path in self.drafts}
        for path, draft in self.drafts.items():
            _import_(draft, self.names[path])
            _define_new_(draft, self.names[path])

    def redefine_(self, kinds: Iterable[type[nn.Module]]) -> None:
        """Make classes anew from the edited text, and put them where the old ones are known by name.

        Raises:
            NoPatchError: A definition does more than to define.
        """
        for kind in kinds:
            draft = self.drafts.get(Path(_file(kind)))
            if draft is None:
                raise NoPatchError(f"{kind.__name__} stands in another file")
            names, node = self.names[draft.source.path], class_node(draft.source, kind)
            if node is None:
                raise NoPatchError(f"the definition of {kind.__name__} cannot be found")
            try:
                _want_harmless(kind, node)
            except NoPatchError:
                new = self._derived(draft, kind, node)
            else:
                _run(node, names)
                new = names[kind.__name__]
            names[kind.__name__] = new
            for space in self.names.values():
                space.update({name: new for name, value in space.items() if value is kind})
                space.update(
                    {name: _with(value, kind, new) for name, value in space.items() if _has_class(value, kind)}
                )

    def rebuilt(self, live: Any) -> Any:
        """Make a factory anew: a function, a method, a partial or a class, behind decorators that wrap it.

        Raises:
            NoPatchError: It is of another kind.
        """
        if isinstance(live, type):
            return self._class(live)
        if isinstance(live, functools.partial):
            return functools.partial(self.rebuilt(live.func), *live.args, **live.keywords)
        if isinstance(live, MethodType):
            return MethodType(self.rebuilt(live.__func__), live.__self__)
        if not isinstance(live, FunctionType):
            raise NoPatchError(f"a factory of the kind {type(live).__name__} cannot be made anew")
        inner = getattr(live, "__wrapped__", None)
        if inner is not None:
            return self._wrapper(live, inner)
        draft = self.drafts.get(Path(live.__code__.co_filename).resolve())
        if draft is None:
            return live
        node = draft.now(draft.original.node_of(live.__code__))
        return self._function(draft, node, live)

    def new_function(
        self, path: Path, name: str, cells: Mapping[str, CellType], like: Any = None
    ) -> Callable[..., Any]:
        """Make a function that the edits brought, by its name.

        Args:
            path: Of the file that holds it.
            name: No other function of the file has it.
            cells: The names of the functions around it that it may use.
            like: What it replaces; its default arguments are taken over.

        Raises:
            NoPatchError: It uses a name of a function around it that is not known.
        """
        draft = self.drafts[path]
        node = next(one for one in ast.walk(draft.source.tree) if isinstance(one, ast.FunctionDef) and one.name == name)
        return _function(draft.source.code_of(node), self.names[path], cells, like)

    def value(self, path: Path, node: ast.expr) -> Any:
        """Evaluate an expression of the original text as it is written now."""
        draft = self.drafts[path]
        expression = ast.Expression(body=draft.now(node))
        return FunctionType(compile(expression, str(path), "eval", dont_inherit=True), self.names[path])()

    def _function(self, draft: Draft, node: Function, live: FunctionType) -> Callable[..., Any]:
        return _function(draft.source.code_of(node), self.names[draft.source.path], cells_of(live), live)

    def _derived(self, draft: Draft, kind: type, node: ast.ClassDef) -> type:
        """Derive from a class whose definition runs something, with the methods that are others now.

        Raises:
            NoPatchError: Something else of it is another now, or to derive from it runs something too.
        """
        old = class_node(draft.original, kind)
        hooked = any("__init_subclass__" in vars(one) for one in kind.__mro__ if one is not object)
        if old is None or hooked or type(kind) is not type:
            raise NoPatchError(f"the definition of {kind.__name__} does more than to define")
        was, now = ([one for one in each.body if isinstance(one, ast.FunctionDef)] for each in (old, node))
        others = [[one for one in each.body if not isinstance(one, ast.FunctionDef)] for each in (old, node)]
        same = [ast.dump(one) for one in others[0]] == [ast.dump(one) for one in others[1]]
        if not same or [one.name for one in was] != [one.name for one in now]:
            raise NoPatchError(f"the definition of {kind.__name__} does more than to define")
        changed = [after.name for before, after in zip(was, now, strict=True) if ast.dump(before) != ast.dump(after)]
        methods = {name: self.rebuilt(vars(kind)[name]) for name in changed}
        return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})

    def _class(self, live: type) -> Any:
        for path, names in self.names.items():
            if Path(_file(live)) == path:
                return names.get(live.__name__, live)
        return live

    def _wrapper(self, live: FunctionType, inner: Any) -> Callable[..., Any]:
        cells = cells_of(live)
        holding = [name for name, cell in cells.items() if _content(cell) is inner]
        if len(holding) != 1:
            raise NoPatchError("the decorator of a factory keeps it where it cannot be exchanged")
        cells[holding[0]] = CellType(self.rebuilt(inner))
        return _function(live.__code__, live.__globals__, cells, live)


def cells_of(live: Any) -> dict[str, CellType]:
    """List the names that a function has from the functions around it."""
    if not isinstance(live, FunctionType):
        return {}
    return dict(zip(live.__code__.co_freevars, live.__closure__ or (), strict=True))


def class_node(source: Source, kind: type) -> ast.ClassDef | None:
    """Find the definition of a class at the top of a module; None when there is none, or several."""
    found = [one for one in source.tree.body if isinstance(one, ast.ClassDef) and one.name == kind.__name__]
    return found[0] if len(found) == 1 and kind.__qualname__ == kind.__name__ else None


def _file(kind: type) -> str:
    try:
        return str(Path(inspect.getfile(kind)).resolve())
    except (TypeError, OSError):
        return ""


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was not assigned yet
        return None


def _function(code: CodeType, names: dict[str, Any], cells: Mapping[str, CellType], like: Any) -> Callable[..., Any]:
    if missing := [name for name in code.co_freevars if name not in cells]:
        raise NoPatchError(f"{', '.join(missing)} cannot be seen from where the task was made")
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(code, names, code.co_name, getattr(like, "__defaults__", None), closure)
    made.__kwdefaults__ = getattr(like, "__kwdefaults__", None)
    return made


def _has_class(module: Any, kind: type) -> bool:
    """Tell whether a thing is the module of a class, or of a package that hands it on."""
    if type(module) is not ModuleType or kind.__module__.split(".")[0] != module.__name__.split(".")[0]:
        return False
    return any(value is kind for value in list(vars(module).values()))


def _with(module: ModuleType, kind: type, new: type) -> ModuleType:
    """Make a stand-in for a module, with another class in the place of one of its own."""
    made = ModuleType(module.__name__)
    vars(made).update({name: new if value is kind else value for name, value in vars(module).items()})
    return made


def _run(statement: ast.stmt, names: dict[str, Any]) -> None:
    """Run a definition in a copy of its module's names."""
    module = ast.Module(body=[statement], type_ignores=[])
    names.setdefault("__builtins__", builtins)
    FunctionType(compile(module, str(names.get("__file__", "edited")), "exec", dont_inherit=True), names)()


def _import_(draft: Draft, names: dict[str, Any]) -> None:
    """Bind what the edits import: torch, evengrad, and what a snippet needs of the standard library."""
    had = {ast.dump(one) for one in draft.original.tree.body if isinstance(one, ast.Import | ast.ImportFrom)}
    for node in draft.source.tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and ast.dump(node) not in had:
            _run(node, names)


def _define_new_(draft: Draft, names: dict[str, Any]) -> None:
    kinds = ast.ClassDef | ast.FunctionDef
    had = {one.name for one in draft.original.tree.body if isinstance(one, kinds)}
    for node in draft.source.tree.body:
        if isinstance(node, kinds) and node.name not in had:
            _run(node, names)


def _want_harmless(kind: type, node: ast.ClassDef) -> None:
    hooked = any("__init_subclass__" in vars(one) for one in kind.__mro__ if one is not object)
    if type(kind) is not type or hooked or node.keywords or node.decorator_list:
        raise NoPatchError(f"the definition of {kind.__name__} does more than to define")
    for one in node.body:
        if isinstance(one, ast.FunctionDef):
            fine = all(isinstance(name, ast.Name) and name.id in HARMLESS for name in one.decorator_list)
        elif isinstance(one, ast.Assign | ast.AnnAssign | ast.Expr):
            fine = one.value is None or isinstance(one.value, ast.Constant)
        else:
            fine = isinstance(one, ast.Pass)
        if not fine:
            raise NoPatchError(f"the definition of {kind.__name__} does more than to define")
