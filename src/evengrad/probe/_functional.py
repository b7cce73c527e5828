"""What a model calls as a function is seen too: `F.relu(self.fc(x))` has no module to hook, nor has attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evengrad.probe._attention import are_scores, product_absmax, score_absmax
from evengrad.probe._kinds import FUNCTIONS

PRODUCT = "scaled_dot_product_attention"
SOFTMAX = "softmax"
SEEN = FUNCTIONS | {PRODUCT, SOFTMAX}


class FunctionalActivations(TorchFunctionMode):
    """Report each non-linearity that is called as a function, and each attention.

    Args:
        seen: Called with the function's name, its arguments and its result; of softmax only where it is over attention
            scores. It runs with this mode off.
    """

    def __init__(self, seen: Callable[[str, tuple[Any, ...], Mapping[str, Any], Tensor], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function; F.tanh calling Tensor.tanh counts once."""
        given = kwargs or {}
        name = str(getattr(func, "__name__", "")).rstrip("_")
        if name not in SEEN or torch.compiler.is_dynamo_compiling():
            return func(*args, **given)
        scores = name == SOFTMAX and _over_scores(args, given)
        result = func(*args, **given)
        if isinstance(result, Tensor) and (name != SOFTMAX or scores) and not _is_clamp(name, args, given):
            self._seen(name, args, given, result)
        return result


def attention_absmax(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Measure the scores in a call that was reported; None for non-linearities."""
    if name == PRODUCT:
        return product_absmax(args, kwargs)
    if name == SOFTMAX:
        return score_absmax(args[0] if args else kwargs["input"])
    return None


def _over_scores(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    value = args[0] if args else kwargs.get("input")
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if type(value) is not Tensor or dim not in {-1, value.ndim - 1}:
        return False
    return are_scores(value)


def _is_clamp(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell what a call of hardtanh clamps: with other bounds than -1 and 1 it is a clamp, as the module is."""
    if name != "hardtanh":
        return False
    given = dict(zip(("min_val", "max_val"), args[1:3], strict=False)) | dict(kwargs)
    return (given.get("min_val", -1.0), given.get("max_val", 1.0)) != (-1, 1)
