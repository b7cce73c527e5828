"""What a loss takes: any number, a probability, a positive number, or what an activation holds from below."""

import warnings
from collections.abc import Callable
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from evengrad.treat._random_state import random_state_kept

Wanted = Literal["anything", "probability", "positive", "bounded"]


def wanted_by(loss: Callable[[Any, Any], Any], output: Tensor, target: Any) -> Wanted:
    """Try a loss on constant outputs.

    A probability is wanted if the loss raises or is not finite at 2 (and perhaps at -2), or does not change beyond 0
    and 1 although it does between; a positive number, if it fails at -2 only. The output has to be bounded if the loss
    at -1000 or 1000 is far below zero: then it falls for ever, as a negative log-likelihood of log-probabilities does.

    Args:
        loss: `loss(output, target)`, a scalar.
        output: An output of the model, for its shape, dtype and device.
        target: The target of the same batch.
    """

    def at(value: float) -> float | None:
        try:
            number = float(loss(torch.full_like(output, value), target))
        except Exception:  # user code: that it raises is the answer
            return None
        return number if isfinite(number) else None

    with random_state_kept(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if at(-2.0) is None:
            return "probability" if at(2.0) is None else "positive"
        clamped = at(2.0) == at(5.0) and at(-2.0) == at(-5.0) and at(0.3) != at(0.7)
        if at(2.0) is None or clamped:
            return "probability"
        extremes = [value for value in (at(-1000.0), at(1000.0)) if value is not None]
        return "bounded" if min(extremes, default=0.0) < -100.0 else "anything"
