"""What an optimizer remembers from one step to the next."""

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, State, float64, of_shape


def step_inputs(weights: ArrayLike, gradient: ArrayLike) -> tuple[Array, Array]:
    """Take weights and a gradient of the same shape."""
    w = float64("weights", weights)
    return w, of_shape("gradient", gradient, w.shape)


def memory(state: State, shape: tuple[int, ...], *names: str) -> tuple[Array, ...]:
    """Take the arrays of these names out of a state, in this order; zeros at the first step.

    The name `step` is a count, an array without axes. A state with other names belongs to another optimizer, or to
    other settings of this one, and is refused.
    """
    shapes = {name: () if name == "step" else shape for name in names}
    if not state:
        return tuple(np.zeros(one) for one in shapes.values())
    if set(state) != set(names):
        raise ValueError(f"state: got {', '.join(sorted(state))}, want {', '.join(sorted(names))}, or nothing yet")
    return tuple(of_shape(f"state[{name!r}]", state[name], one) for name, one in shapes.items())
