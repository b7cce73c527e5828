"""What a test must have."""

import ast
from collections import defaultdict
from pathlib import Path

from house_source import calls, dotted, modules


def empty_test_problems(root: Path) -> list[str]:
    """Report tests that cannot fail: no assert, no pytest.raises or warns, no call of an `assert_...` or `check_...`."""
    problems = []
    for module in modules(root):
        if not module.stem.startswith("test_"):
            continue
        for node in ast.walk(module.tree):
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            if named and not _can_fail(node):
                problems.append(module.problem(node.lineno, f"{node.name} asserts nothing"))  # type: ignore[attr-defined]
    return problems


def match_problems(root: Path) -> list[str]:
    """Report pytest.raises and pytest.warns that take any message for the right one."""
    return [
        module.problem(call.lineno, f"{name} without match=")
        for module in modules(root)
        for name, call in calls(module.tree)
        if name in {"pytest.raises", "pytest.warns"} and not any(word.arg == "match" for word in call.keywords)
    ]


def same_name_problems(root: Path) -> list[str]:
    """Report test files that share a name: in an output nobody could tell them apart."""
    names = defaultdict(list)
    for module in modules(root):
        if module.stem != "conftest":
            names[module.stem].append(module.name)
    return [f"{' and '.join(same)} have the same name" for same in names.values() if len(same) > 1]


def _can_fail(test: ast.AST) -> bool:
    if any(isinstance(node, ast.Assert) for node in ast.walk(test)):
        return True
    expecting = {"pytest.raises", "pytest.warns", "pytest.fail"}
    managers = [dotted(item.context_expr.func) for node in ast.walk(test) if isinstance(node, ast.With)
                for item in node.items if isinstance(item.context_expr, ast.Call)]  # fmt: skip
    if expecting & set(managers):
        return True
    return any(name in expecting or name.split(".")[-1].startswith(("assert_", "check_")) for name, _ in calls(test))
