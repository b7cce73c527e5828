"""Non-linearities that a model calls as functions are seen too: `F.relu(self.fc(x))` has no module to hook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from evengrad.probe._kinds import FUNCTIONS


class FunctionalActivations(TorchFunctionMode):
    """Report each non-linearity that is called as a function.

    Args:
        seen: Called with the function's name, its first argument and its result.
    """

    def __init__(self, seen: Callable[[str, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._seen = seen
        self._inside = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function; F.tanh calling Tensor.tanh counts once."""
        name = str(getattr(func, "__name__", "")).rstrip("_")
        if self._inside or name not in FUNCTIONS or (name == "hardtanh" and _bounds(args, kwargs or {}) != (-1, 1)):
            return func(*args, **(kwargs or {}))
        self._inside = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._inside = False
        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            self._seen(name, args[0], result)
        return result


def _bounds(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float, float]:
    """Tell between what a call of hardtanh clamps: with other bounds than -1 and 1 it is a clamp, as the module is."""
    given = dict(zip(("min_val", "max_val"), args[1:3], strict=False)) | dict(kwargs)
    return given.get("min_val", -1.0), given.get("max_val", 1.0)
