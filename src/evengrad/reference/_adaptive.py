"""Optimizers with a step of its own size for every weight: Adagrad and RMSprop."""

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, State, fraction, not_negative
from evengrad.reference._state import memory, step_inputs


def adagrad(
    weights: ArrayLike, gradient: ArrayLike, state: State, *, lr: float, lr_decay: float = 0.0, eps: float = 1e-10
) -> tuple[Array, State]:
    """Divide by the root of the sum of all squares so far: s ← s + g², w ← w − η_t g / (√s + ε).

    η_t = η / (1 + (t − 1) d) at step t. The first step is η in every weight whose gradient is not 0, however small the
    gradient; the steps then shrink like 1/√t. One exploding gradient stays in s for good. With `eps=0` a gradient that
    was 0 from the start gives 0/0 = NaN.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        state: What the last step returned, an empty mapping at the first.
        lr: The learning rate η, 0 or more.
        lr_decay: d, 0 or more.
        eps: ε, 0 or more; where √s is below it, the step is small.

    Returns:
        The new weights and state; the given ones are not changed.

    Raises:
        ValueError: The shapes differ, the state is another optimizer's, or a setting is out of range.

    Example:
        >>> weights, state = adagrad([1.0, 1.0], [100.0, 0.001], {}, lr=0.1)
        >>> weights.round(6).tolist()
        [0.9, 0.9]

    Source: Duchi, Hazan and Singer, 2011, JMLR 12:2121-2159, the diagonal version of section 1.1, without projection;
    ε and d as in torch.
    """
    w, g = step_inputs(weights, gradient)
    step, squares = memory(state, w.shape, "step", "sum")
    squares = squares + g * g
    rate = not_negative("lr", lr) / (1 + float(step) * not_negative("lr_decay", lr_decay))
    moved = w - rate * g / (np.sqrt(squares) + not_negative("eps", eps))
    return moved, {"step": np.asarray(step + 1), "sum": squares}


def rmsprop(
    weights: ArrayLike,
    gradient: ArrayLike,
    state: State,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
) -> tuple[Array, State]:
    """Divide by the root of a running mean of the squares: v ← α v + (1 − α) g², w ← w − η g / (√v + ε).

    With `centered`, the running mean m ← α m + (1 − α) g is taken off: √(v − m²), an estimate of the deviation. With
    momentum μ, b ← μ b + g / (√v + ε) and w ← w − η b. v begins at 0 and is not corrected for that: the first step is
    η / √(1 − α), ten times η at α = 0.99. With `centered`, a gradient that stays the same lets the divisor sink to ε,
    and the weight takes steps of up to η g / ε.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        state: What the last step returned, an empty mapping at the first. `momentum` and `centered` stay as they were.
        lr: The learning rate η, 0 or more.
        alpha: α, in [0, 1): the weight of the past.
        eps: ε, 0 or more. With 0 a gradient that was 0 from the start gives 0/0 = NaN.
        momentum: μ, in [0, 1).
        centered: Whether to take the mean off.

    Returns:
        The new weights and state; the given ones are not changed.

    Raises:
        ValueError: The shapes differ, the state is another optimizer's, or a setting is out of range.

    Example:
        >>> weights, state = rmsprop([1.0, 1.0], [100.0, 0.001], {}, lr=0.01)
        >>> weights.round(3).tolist()
        [0.9, 0.9]

    Source: Tieleman and Hinton, 2012, Neural Networks for Machine Learning, lecture 6.5; centered: Graves, 2013,
    arXiv:1308.0850, equations 38 to 41. Differs, as torch does, in ε outside of the root. Differs from torch where
    rounding makes v − m² negative (a gradient that stays the same): its root is 0 here and NaN there.
    """
    w, g = step_inputs(weights, gradient)
    names = ["square_avg", *(["grad_avg"] if centered else []), *(["momentum_buffer"] if momentum else [])]
    past = dict(zip(names, memory(state, w.shape, *names), strict=True))
    a, rate, mu = fraction("alpha", alpha), not_negative("lr", lr), fraction("momentum", momentum)
    new = {"square_avg": a * past["square_avg"] + (1 - a) * g * g}
    variance = new["square_avg"]
    if centered:
        new["grad_avg"] = a * past["grad_avg"] + (1 - a) * g
        variance = np.maximum(variance - new["grad_avg"] ** 2, 0.0)
    direction = g / (np.sqrt(variance) + not_negative("eps", eps))
    if momentum:
        new["momentum_buffer"] = direction = mu * past["momentum_buffer"] + direction
    return w - rate * direction, new
