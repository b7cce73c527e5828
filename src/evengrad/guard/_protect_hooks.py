"""A module hook that knows its module's name, and does nothing in copies of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor


@final
class Hook:
    """Call a method with the module's name before what torch gives a hook; copied or pickled it does nothing.

    In a model that is compiled afterwards the call is a graph break: the method runs as it is written.
    """

    def __init__(self, method: Callable[..., Any], name: str) -> None:
        self._method, self._name = torch.compiler.disable(method), name

    def __call__(self, *given: Any) -> Any:
        return self._method(self._name, *given)

    def __reduce__(self) -> tuple[object, ...]:
        return Nothing, ()


@final
class Nothing:
    """A hook that does nothing."""

    def __call__(self, *_: Any) -> None:
        return None


def version_of(tensor: Tensor) -> int:
    """Tell how often a tensor was changed in place; one of inference mode does not know, and says 0."""
    return 0 if tensor.is_inference() else int(tensor._version)
