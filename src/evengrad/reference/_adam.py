"""Adam: momentum and a step of its own size for every weight, both corrected for their start at 0."""

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, State, fraction, not_negative
from evengrad.reference._state import memory, step_inputs


def adam(
    weights: ArrayLike,
    gradient: ArrayLike,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    amsgrad: bool = False,
) -> tuple[Array, State]:
    """Divide a running mean of the gradient by the root of one of its square, both corrected for their start at 0.

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², w ← w − η m̂ / (√v̂ + ε), with m̂ = m / (1 − β₁ᵗ) and
    v̂ = v / (1 − β₂ᵗ) at step t. With `amsgrad`, the largest v so far stands in place of v.

    No step of a weight is longer than about η (1 − β₁) / √(1 − β₂), 3 η at the defaults, so an exploding gradient does
    its harm later: v forgets it by a factor of e in 1 / (1 − β₂) steps only, and meanwhile the weight hardly moves. A
    vanishing gradient is scaled up, until it is below ε. A NaN stays in m and v.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        state: What the last step returned, an empty mapping at the first. `amsgrad` stays as it was.
        lr: The learning rate η, 0 or more.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε, 0 or more. With 0 a gradient that was 0 from the start gives 0/0 = NaN.
        amsgrad: Whether v̂ may never fall.

    Returns:
        The new weights and state; the given ones are not changed.

    Raises:
        ValueError: The shapes differ, the state is another optimizer's, or a setting is out of range.

    Example:
        >>> weights, state = adam([1.0, 1.0], [100.0, 0.001], {}, lr=0.1)
        >>> weights.round(3).tolist()
        [0.9, 0.9]

    Source: Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1; amsgrad: Reddi, Kale and Kumar, 2018, arXiv:1904.09237,
    algorithm 2, with Adam's corrections, as in torch.
    """
    w, g = step_inputs(weights, gradient)
    b1, b2 = fraction("betas[0]", betas[0]), fraction("betas[1]", betas[1])
    names = ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))
    step, mean, square, *largest = memory(state, w.shape, *names)
    step, mean, square = np.asarray(step + 1), b1 * mean + (1 - b1) * g, b2 * square + (1 - b2) * g * g
    new: dict[str, Array] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    if amsgrad:
        new["max_exp_avg_sq"] = square = np.maximum(largest[0], square)
    mean_hat, square_hat = mean / (1 - b1 ** float(step)), square / (1 - b2 ** float(step))
    return w - not_negative("lr", lr) * mean_hat / (np.sqrt(square_hat) + not_negative("eps", eps)), new


def adamw(
    weights: ArrayLike,
    gradient: ArrayLike,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
) -> tuple[Array, State]:
    """Shrink the weights, then take Adam's step: w ← (1 − η λ) w, then as in `adam`.

    The weights shrink even where the gradient is 0, and all at the same rate.

    Args:
        weights: The weights w, of any shape.
        gradient: Their gradient g, of the same shape.
        state: What the last step returned, an empty mapping at the first. `amsgrad` stays as it was.
        lr: The learning rate η, 0 or more.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε, 0 or more.
        weight_decay: λ, 0 or more.
        amsgrad: Whether v̂ may never fall.

    Returns:
        The new weights and state; the given ones are not changed.

    Raises:
        ValueError: The shapes differ, the state is another optimizer's, or a setting is out of range.

    Example:
        >>> adamw([1.0], [0.0], {}, lr=0.1, weight_decay=0.1)[0].round(6).tolist()
        [0.99]

    Source: Loshchilov and Hutter, 2019, arXiv:1711.05101, algorithm 2. Differs, as torch does, in that λ is multiplied
    by the learning rate.
    """
    w, g = step_inputs(weights, gradient)
    shrunk = (1 - not_negative("lr", lr) * not_negative("weight_decay", weight_decay)) * w
    return adam(shrunk, g, state, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad)
