"""What a policy is: a pure function from norms and state to a decision and the next state."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device

Array = Any
"""An array of any library that follows the Python array API: NumPy, torch, JAX, array-api-strict."""

State = dict[str, Array]
"""Named one-dimensional float32 arrays: shape (P,) for one value per parameter, another fixed length for the whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """What a policy may ask for beside the gradient norms, by the names in its `needs`; the others are None.

    Args:
        loss: The loss of the step, float32, shape (1,); NaN when nobody handed it over.
        lr: The largest learning rate of SGD, float32, shape (1,); 0 where another optimizer steps.
        sizes_P: How many elements each parameter has, float32, shape (P,).
        weight_norms_P: The Euclidean norm of each parameter itself, float32, shape (P,).
    """

    loss: Array = None
    lr: Array = None
    sizes_P: Array = None
    weight_norms_P: Array = None


NO_SIGNALS = Signals()


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a policy decided for one step.

    Args:
        norm: The norm of all gradients together, float32, shape (1,); NaN or infinite when a gradient was.
        scale: The factor to multiply gradients with, float32: shape (1,) for one that holds for all, shape (P,) for one
            per parameter (always the same of the two for a policy). Finite and positive; 1 when the step is skipped.
        skip: Whether to leave the step out, bool, shape (1,). To be applied by selection, never by multiplying with 0.
        state: The state for the next step; equal to the bit to the state before when the norm is not finite. A policy
            that skips a finite step may remember it.
    """

    norm: Array
    scale: Array
    skip: Array
    state: State


class AbstractPolicy(ABC):
    """Decide from the norms of a step how much of its gradients to let through.

    A policy holds settings only; its memory is the state that it is handed and hands back. Its lines use nothing but
    the array API and never look at a value, so that they run on any array library and device, without a wait for it.

    An attribute `norm_type` says which norm it wants to be handed; without one it is the Euclidean norm.
    """

    __slots__ = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Signals` that it cannot decide without."""

    @abstractmethod
    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state before the first step.

        Args:
            count: Number of parameter tensors P.
            like: An array whose library and device the state is to have; None for NumPy.
        """

    @abstractmethod
    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step.

        Args:
            norms_P: The unclipped, unscaled gradient norm of each parameter, shape (P,), P at least 1; 0 where there is
                no gradient.
            state: What `init` made or the last decision held.
            signals: What it needs beside the norms.
        """


def zeros(length: int, like: Array) -> Array:
    """Make a float32 vector of zeros in the library and on the device of another array (NumPy for None)."""
    if like is None:
        return np.zeros(length, dtype=np.float32)
    xp = array_namespace(like)
    return xp.zeros(length, dtype=xp.float32, device=device(like))
