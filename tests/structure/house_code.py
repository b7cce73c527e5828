"""How files, classes and functions of the package are made."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from house_imports import imports
from house_source import bases, calls, decorators, dotted, modules

MOST_LINES = 400
MOST_POSITIONAL = 5
FORBIDDEN_STEMS = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
PRIVATE_TORCH = frozenset({"measure"})
ENVIRONMENT = frozenset({"NO_COLOR", "CI"})

# A log, a report or a checkpoint may come from a stranger: nothing that runs what it reads. Nothing leaves the machine.
RUNS_WHAT_IT_READS = ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
PACKS_FOR_OWN_WORKERS = "trial/_shipped.py"  # between a process and those that it started: docs/decisions/0019
TALKS_TO_THE_NETWORK = (
    "socket", "ssl", "http", "urllib.request", "ftplib", "smtplib", "xmlrpc", "requests", "httpx", "aiohttp", "urllib3",
)  # fmt: skip


def length_problems(root: Path) -> list[str]:
    """Report files that hold two ideas."""
    return [
        module.problem(lines, f"{lines} lines, more than {MOST_LINES}: two ideas")
        for module in modules(root)
        if (lines := len(module.text.splitlines())) > MOST_LINES
    ]


def docstring_problems(root: Path) -> list[str]:
    """Report modules that do not open with one line that says what they hold."""
    problems = []
    for module in modules(root):
        lines = (ast.get_docstring(module.tree, clean=False) or "").splitlines()
        if not lines:
            problems.append(module.problem(1, "no docstring"))
        elif not lines[0].strip() or (len(lines) > 1 and lines[1].strip()):
            problems.append(module.problem(1, "the docstring's first sentence is not a line of its own"))
    return problems


def name_problems(root: Path) -> list[str]:
    """Report modules that are not private, and names that say nothing."""
    problems = []
    for module in modules(root):
        names = [module.stem, *module.name.split("/")[:-1]]
        problems += [
            module.problem(1, f"`{name}` says nothing of what is in it")
            for name in names
            if name.strip("_") in FORBIDDEN_STEMS
        ]
        if not module.stem.startswith("_") and module.part != "integrations":
            problems.append(module.problem(1, f"a public module: name it _{module.stem}.py"))
    return problems


def all_problems(root: Path) -> list[str]:
    """Report an `__init__` whose `__all__` is missing, not sorted, or names what is not there."""
    problems = []
    for module in modules(root):
        stars = [
            node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]
        problems += [module.problem(node.lineno, "imports *") for node in stars]
        if module.stem != "__init__":
            continue
        bound = dict(_bound(module.tree))
        listed = bound.get("__all__")
        if not isinstance(listed, ast.List | ast.Tuple):
            if set(bound) - {"__all__"}:
                problems.append(module.problem(1, "names without an __all__"))
            continue
        names = [ast.literal_eval(one) for one in listed.elts]
        if names != sorted(set(names)):
            problems.append(module.problem(listed.lineno, "__all__ is not sorted, or names something twice"))
        problems += [
            module.problem(listed.lineno, f"__all__ names {name}, which is not there")
            for name in names
            if name not in bound
        ]
    return problems


def private_torch_problems(root: Path) -> list[str]:
    """Report private functions and modules of torch outside of the one part that may use them.

    Private classes are let through: `isinstance(module, _BatchNorm)` is how all batch norms are known.
    """
    problems = []
    for module in modules(root):
        if module.part in PRIVATE_TORCH:
            continue
        attributes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
        found = [(node.lineno, dotted(node)) for node in attributes if _is_private(node.attr)]
        found += [(one.line, one.target) for one in imports(module) if any(map(_is_private, one.target.split(".")))]
        problems += [
            module.problem(line, f"{name} is private to torch") for line, name in found if name.startswith("torch.")
        ]
    return problems


def parameter_problems(root: Path) -> list[str]:
    """Report functions with too many positional parameters; those that are keyword-only do not count."""
    problems = []
    for module in modules(root):
        methods = {
            id(method)
            for kind in ast.walk(module.tree)
            if isinstance(kind, ast.ClassDef)
            for method in kind.body
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and "staticmethod" not in decorators(method)
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(node.args.posonlyargs) + len(node.args.args) - (id(node) in methods)
                if count > MOST_POSITIONAL:
                    problems.append(module.problem(node.lineno, f"{node.name} has {count} positional parameters"))
    return problems


def dataclass_problems(root: Path) -> list[str]:
    """Report data that can change, or whose fields can be given in a wrong order.

    Slots always; frozen, except for private classes, which a function may fill; keyword-only, except for one field
    that is the thing itself, as in `ByGlobalNorm(1.0)`.
    """
    problems = []
    for module in modules(root):
        for kind in _classes(module.tree):
            settings = _dataclass_settings(kind)
            if settings is None:
                continue
            if "slots" not in settings:
                problems.append(module.problem(kind.lineno, f"{kind.name} has no slots"))
            if "frozen" not in settings and not kind.name.startswith("_"):
                problems.append(module.problem(kind.lineno, f"{kind.name} is not frozen"))
            if "kw_only" not in settings and (count := _positional_fields(kind)) > 1:
                problems.append(module.problem(kind.lineno, f"{kind.name} takes {count} fields by position"))
    return problems


def final_problems(root: Path) -> list[str]:
    """Report classes that derive from an abstract one and could be derived from in turn."""
    problems = []
    for module in modules(root):
        for kind in _classes(module.tree):
            derived = any(base.startswith("Abstract") for base in bases(kind))
            if derived and not kind.name.startswith("Abstract") and "final" not in decorators(kind):
                problems.append(module.problem(kind.lineno, f"{kind.name} is neither abstract nor final"))
    return problems


def left_over_problems(root: Path) -> list[str]:
    """Report prints, and notes to oneself."""
    problems = []
    for module in modules(root):
        problems += [
            module.problem(number, f"{match[0]}: do it, or open an issue")
            for number, line in enumerate(module.text.splitlines(), start=1)
            if (match := re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line))
        ]
        if module.part != "cli":
            problems += [
                module.problem(call.lineno, f"{name}: use logging, or return text")
                for name, call in calls(module.tree)
                if name == "print" or name.startswith(("sys.stdout.", "sys.stderr."))
            ]
    return problems


def swallow_problems(root: Path) -> list[str]:
    """Report errors that nobody would ever hear of."""
    problems = []
    for module in modules(root):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    problems.append(module.problem(node.lineno, "except without a class"))
                elif _catches_all(node.type) and all(isinstance(one, ast.Pass | ast.Continue) for one in node.body):
                    problems.append(module.problem(node.lineno, "any error is passed over"))
        problems += [
            module.problem(call.lineno, "any error is passed over")
            for name, call in calls(module.tree)
            if name.split(".")[-1] == "suppress" and any(_catches_all(one) for one in call.args)
        ]
    return problems


def safety_problems(root: Path) -> list[str]:
    """Report what runs the data that it reads, talks to the network, or listens to the environment."""
    problems = []
    for module in modules(root):
        for one in imports(module):
            if _is_one_of(one.target, RUNS_WHAT_IT_READS) and module.name != PACKS_FOR_OWN_WORKERS:
                problems.append(module.problem(one.line, f"{one.target} runs what it reads"))
            if _is_one_of(one.target, TALKS_TO_THE_NETWORK):
                problems.append(module.problem(one.line, f"{one.target} talks to the network"))
            if one.target in {"os.environ", "os.getenv"}:
                problems.append(module.problem(one.line, f"{one.target} listens to the environment"))
        for name, call in calls(module.tree):
            unsafe_load = name == "torch.load" and not _has_true(call, "weights_only")
            if name in {"eval", "exec"} or (unsafe_load and module.name != PACKS_FOR_OWN_WORKERS):
                problems.append(module.problem(call.lineno, f"{name} runs what it reads"))
        allowed = {id(node) for node in _allowed_environment(module.tree)}
        problems += [
            module.problem(node.lineno, f"{dotted(node)} listens to the environment")
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute)
            and dotted(node) in {"os.environ", "os.getenv"}
            and id(node) not in allowed
        ]
    return problems


def _bound(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.split(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, None
        elif isinstance(node, ast.Assign):
            yield from ((dotted(target), node.value) for target in node.targets)
        elif isinstance(node, ast.AnnAssign):
            yield dotted(node.target), node.value
        elif isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING":
            yield from _bound(ast.Module(body=node.body, type_ignores=[]))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and not re.match("_[A-Z][a-z]", name)


def _classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _dataclass_settings(kind: ast.ClassDef) -> set[str] | None:
    for one in kind.decorator_list:
        if dotted(one.func if isinstance(one, ast.Call) else one).split(".")[-1] == "dataclass":
            return (
                {word.arg or "" for word in one.keywords if _is_true(word.value)}
                if isinstance(one, ast.Call)
                else set()
            )
    return None


def _positional_fields(kind: ast.ClassDef) -> int:
    count = 0
    for node in kind.body:
        if isinstance(node, ast.AnnAssign):
            annotation = ast.unparse(node.annotation)
            if "KW_ONLY" in annotation:
                return count
            count += "ClassVar" not in annotation
    return count


def _catches_all(node: ast.expr) -> bool:
    kinds = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(dotted(kind) in {"Exception", "BaseException"} for kind in kinds)


def _is_one_of(target: str, names: tuple[str, ...]) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in names)


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _has_true(call: ast.Call, name: str) -> bool:
    return any(word.arg == name and _is_true(word.value) for word in call.keywords)


def _allowed_environment(tree: ast.AST) -> Iterator[ast.AST]:
    """Find the mentions of the environment that only read an allowed variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _is_allowed(node.args[0]):
            yield node.func
            if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                yield node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_allowed(node.slice):
            yield node.value
        elif isinstance(node, ast.Compare) and _is_allowed(node.left):
            yield from node.comparators


def _is_allowed(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in ENVIRONMENT
