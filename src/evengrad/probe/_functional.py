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
        clamp = name == "hardtanh" and (len(args) > 1 or not {"min_val", "max_val"}.isdisjoint(kwargs or {}))
        if self._inside or name not in FUNCTIONS or clamp:
            return func(*args, **(kwargs or {}))
        self._inside = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._inside = False
        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            self._seen(name, args[0], result)
        return result
