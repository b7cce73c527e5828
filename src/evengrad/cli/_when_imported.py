"""Do something as soon as a module has been imported, by whomever."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import final


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call `action` once: now if the module is there, else right after its import, which stays when it is."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


@final
class _Waiting(MetaPathFinder):
    """Find nothing itself: let the others find, and add the action to their loader for one import."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action
        self._asked = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asked:
            return None
        self._asked = True  # the others are asked through the same list, which has this one
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asked = False
        if spec is None or spec.loader is None:
            return None
        loader, execute = spec.loader, spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            del loader.exec_module  # the class's own again
            execute(module)
            sys.meta_path.remove(self)
            self._action()

        loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
