"""Gradient descent, with and without momentum."""

from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, State, fraction, not_negative, positive
from evengrad.reference._state import memory, step_inputs


def add_weight_decay(weights: ArrayLike, gradient: ArrayLike, *, weight_decay: float) -> Array:
    """Add the gradient of an L2 penalty: g ← g + λ w, the gradient of loss + λ/2 ‖w‖².

    It is what `weight_decay` does in every optimizer of torch but AdamW: take it before the step. In Adam, Adagrad and
    RMSprop the penalty is then divided by the size of the gradient; `adamw` is without that.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        weight_decay: λ, 0 or more.

    Raises:
        ValueError: The shapes differ, or a setting is out of range.

    Example:
        >>> add_weight_decay([1.0, -2.0], [0.5, 0.5], weight_decay=0.1).tolist()
        [0.6, 0.3]

    Source: Krogh and Hertz, 1991, A Simple Weight Decay Can Improve Generalization, NIPS 4.
    """
    w, g = step_inputs(weights, gradient)
    return g + not_negative("weight_decay", weight_decay) * w


def gradient_descent(weights: ArrayLike, gradient: ArrayLike, state: State, *, lr: float) -> tuple[Array, State]:
    """Step against the gradient: w ← w − η g.

    Nothing is remembered: the state is empty, before and after. A gradient of 0 moves nothing; a NaN or inf in the
    gradient is one in the weights.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        state: An empty mapping.
        lr: The learning rate η, 0 or more.

    Returns:
        The new weights and an empty state; the given ones are not changed.

    Raises:
        ValueError: The shapes differ, the state is not empty, or a setting is out of range.

    Example:
        >>> gradient_descent([1.0, 2.0], [10.0, 0.0], {}, lr=0.05)[0].tolist()
        [0.5, 2.0]

    Source: Rumelhart, Hinton and Williams, 1986, Nature 323:533-536, doi:10.1038/323533a0, equation 8.
    """
    w, g = step_inputs(weights, gradient)
    memory(state, w.shape)
    return w - not_negative("lr", lr) * g, {}


def momentum(
    weights: ArrayLike,
    gradient: ArrayLike,
    state: State,
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> tuple[Array, State]:
    """Step along a decaying sum of the gradients: v ← μ v + (1 − τ) g, w ← w − η v.

    At the first step v = g, without the factor 1 − τ, as in torch. With `nesterov` the step is w ← w − η (g + μ v),
    with the new v. For a gradient that stays the same, v grows to g (1 − τ) / (1 − μ): ten times g at μ = 0.9, so the
    learning rate counts tenfold. A NaN that entered v stays there.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        state: What the last step returned, an empty mapping at the first.
        lr: The learning rate η, 0 or more.
        momentum: μ, in (0, 1).
        dampening: τ, in [0, 1).
        nesterov: Whether to look ahead; wants dampening 0.

    Returns:
        The new weights and state; the given ones are not changed.

    Raises:
        ValueError: The shapes differ, the state is another optimizer's, or a setting is out of range.

    Example:
        >>> weights, state = momentum([1.0], [1.0], {}, lr=0.1)
        >>> weights, state = momentum(weights, [1.0], state, lr=0.1)
        >>> state["momentum_buffer"].tolist(), weights.round(3).tolist()
        ([1.9], [0.71])

    Source: Polyak, 1964, doi:10.1016/0041-5553(64)90137-5; Sutskever et al., 2013, PMLR 28(3):1139-1147, equations 1 to
    4. Differs, as torch does: there the learning rate multiplies what enters v, here what leaves it, which is another
    path when the learning rate changes.
    """
    w, g = step_inputs(weights, gradient)
    mu, tau = fraction("momentum", momentum), fraction("dampening", dampening)
    positive("momentum", momentum)
    if nesterov and tau:
        raise ValueError(f"dampening: got {tau}, want 0 with nesterov=True")
    (past,) = memory(state, w.shape, "momentum_buffer")
    velocity = mu * past + (1 - tau) * g if state else g.copy()
    direction = g + mu * velocity if nesterov else velocity
    return w - not_negative("lr", lr) * direction, {"momentum_buffer": velocity}
