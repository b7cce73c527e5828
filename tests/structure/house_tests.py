"""What a test must have."""

import ast
from collections import defaultdict
from pathlib import Path

from house_source import calls, modules

# The last one makes torch raise where it would wait for the device.
EXPECTING = frozenset({"pytest.raises", "pytest.warns", "pytest.fail", "torch.cuda.set_sync_debug_mode"})


def empty_test_problems(root: Path) -> list[str]:
    """Report tests that cannot fail.

    What makes one fail: an assert, pytest.raises or warns, a call of an `assert_...` or `check_...`, or of something in
    the same file that holds one of these.
    """
    problems = []
    for module in modules(root):
        if not module.stem.startswith("test_"):
            continue
        helpers = _asserting(module.tree)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not _can_fail(node, helpers):
                problems.append(module.problem(node.lineno, f"{node.name} asserts nothing"))
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


def _can_fail(test: ast.AST, helpers: set[str]) -> bool:
    if any(isinstance(node, ast.Assert) for node in ast.walk(test)):
        return True
    names = {name for name, _ in calls(test)}
    return bool(names & (EXPECTING | helpers)) or any(
        name.split(".")[-1].startswith(("assert_", "check_")) for name in names
    )


def _asserting(tree: ast.Module) -> set[str]:
    """Name the functions and classes of a file that hold an assert, and those that call them."""
    found: set[str] = set()
    for _ in range(2):
        found |= {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and _can_fail(node, found)
        }
    return {name for name in found if not name.startswith("test_")}
