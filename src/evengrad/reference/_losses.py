"""Losses, each with its gradient."""

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, float64, matrix, of_shape


def mean_squared_error(outputs: ArrayLike, targets: ArrayLike) -> tuple[float, Array]:
    """Average the squared errors over all n elements: L = Σ (y − t)² / n, ∂L/∂y = 2 (y − t) / n.

    Args:
        outputs: y, of any shape, not empty.
        targets: t, of the same shape: nothing is stretched to fit.

    Returns:
        The loss, and its gradient with respect to the outputs.

    Raises:
        ValueError: The shapes differ, or there is nothing to average.

    Example:
        >>> loss, gradient = mean_squared_error([[1.0, 3.0]], [[1.0, 1.0]])
        >>> loss, gradient.tolist()
        (2.0, [[0.0, 2.0]])

    Source: Rumelhart, Hinton and Williams, 1986, doi:10.1038/323533a0, equations 3 and 4, which have the sum and 1/2.
    """
    y = float64("outputs", outputs)
    if not y.size:
        raise ValueError(f"outputs: got shape {y.shape}, want at least one element")
    error = y - of_shape("targets", targets, y.shape)
    return float(np.mean(error**2)), 2 * error / y.size


def softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> tuple[float, Array]:
    """Average −log p of the right class over the batch, p = e^y / Σ e^y: ∂L/∂y = (p − onehot) / batch.

    The largest logit is taken off first, so that nothing overflows. The gradient is never above 1 / batch in size,
    however wrong the logits are: this loss starts no explosion.

    Args:
        logits: y, of shape (batch, classes), not empty.
        labels: The right class of each row, whole numbers of shape (batch,), from 0.

    Returns:
        The loss, and its gradient with respect to the logits.

    Raises:
        ValueError: The shapes differ, the batch is empty, or a label is no class.

    Example:
        >>> loss, gradient = softmax_cross_entropy([[0.0, 0.0]], [1])
        >>> round(loss, 4), gradient.tolist()
        (0.6931, [[0.5, -0.5]])

    Source: Bridle, 1990, Probabilistic Interpretation of Feedforward Classification Network Outputs,
    doi:10.1007/978-3-642-76153-9_28.
    """
    y = matrix("logits", logits)
    batch, classes = y.shape
    right = np.asarray(labels)
    if right.dtype.kind not in "iu" or right.shape != (batch,):
        raise ValueError(f"labels: got {right.dtype} of shape {right.shape}, want whole numbers of shape ({batch},)")
    if np.min(right) < 0 or np.max(right) >= classes:
        raise ValueError(f"labels: got {np.min(right)} to {np.max(right)}, want 0 to {classes - 1}")
    shifted = y - np.max(y, axis=1, keepdims=True)
    log_sum = np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    rows = np.arange(batch)
    gradient = np.exp(shifted - log_sum)
    gradient[rows, right] -= 1.0
    return float(np.mean(log_sum[:, 0] - shifted[rows, right])), gradient / batch
