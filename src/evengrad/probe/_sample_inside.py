"""What a sampler reads of single kinds of modules: gates, attention scores, gradients through time."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, final

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from evengrad.probe._attention import are_scores, module_absmax, score_absmax
from evengrad.probe._gates import GATED, GATED_CELLS, gates_of
from evengrad.probe._sample_hooks import Call

EVERY_CELL_CALL = 8  # of a cell in a loop, the gates of every eighth call are computed

# What a computation beside the run raises for shapes and kinds of tensors that it does not know: its number is left
# out then, for the run goes on.
UNKNOWN = (RuntimeError, IndexError, ValueError, TypeError, AttributeError)

CHECKPOINTS = CheckpointFunction.forward.__code__.co_filename


def inside(module: nn.Module, number: int, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Tensor | None:
    """Compute the gates of a module that has some, or its largest attention score; None for all else.

    Args:
        module: The module or its replica.
        number: Which call of the module it was, from 0.
        args: What it was called with.
        kwargs: The same by name, for attention alone.
        result: What it gave.
    """
    if isinstance(module, GATED) or (isinstance(module, GATED_CELLS) and number % EVERY_CELL_CALL == 0):
        return gates_of(module, args, result)
    if isinstance(module, nn.MultiheadAttention):
        return module_absmax(module, args, kwargs)
    if isinstance(module, nn.Softmax) and args and isinstance(args[0], Tensor) and are_scores(args[0]):
        return score_absmax(args[0])
    return None


def in_checkpoint() -> bool:
    """Tell whether a checkpoint of torch runs this.

    It compares what is saved for the backward with what is saved when it computes again, which may be when no hook is
    there any more.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == CHECKPOINTS:
            return True
        frame = frame.f_back
    return False


@final
class ThroughTime:
    """Takes the profile of the gradient at the input of a recurrent module for its call."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, profile: Tensor) -> None:
        """Keep the latest, while the round is open."""
        if self._call.row is not None and self._call.round.open:
            self._call.more["time"] = profile
            self._call.round.see_gradient()
