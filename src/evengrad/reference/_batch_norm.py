"""Batch normalisation: in training, in use, and backward by hand."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, matrix, of_shape, positive


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunningStatistics:
    """Hold what a trained layer takes in place of the batch's own mean and variance.

    Args:
        mean: Of each feature.
        var: Of each feature, 0 or more.
    """

    mean: Array
    var: Array


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchNormPass:
    """Keep what the way back needs of a forward pass.

    Args:
        outputs: y, of shape (batch, features).
        normalised: x̂ = (x − μ) / √(σ² + ε), of the same shape.
        factor: γ / √(σ² + ε) of each feature.
        statistics: The mean μ and variance σ² that were taken off.
        training: Whether μ and σ² came from the batch, and so depend on x.
    """

    outputs: Array
    normalised: Array
    factor: Array
    statistics: RunningStatistics
    training: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchNormGradients:
    """Keep the gradients of a loss with respect to what batch normalisation got.

    Args:
        inputs: ∂L/∂x, of shape (batch, features).
        weight: ∂L/∂γ of each feature.
        bias: ∂L/∂β of each feature.
    """

    inputs: Array
    weight: Array
    bias: Array


def batch_norm_train(inputs: ArrayLike, weight: ArrayLike, bias: ArrayLike, *, eps: float = 1e-5) -> BatchNormPass:
    """Normalise each feature by the batch's own mean and variance: y = γ x̂ + β, x̂ = (x − μ) / √(σ² + ε).

    μ = Σ x / n and σ² = Σ (x − μ)² / n. A feature that is the same in all rows gives x̂ = 0. A NaN takes its whole
    feature with it, in all rows. For a convolution, make one row of each sample and position.

    Args:
        inputs: x, of shape (batch, features), with two rows or more: one row is its own mean, and nothing is left.
        weight: γ of each feature.
        bias: β of each feature.
        eps: ε, positive.

    Raises:
        ValueError: The shapes do not fit each other, there are fewer than two rows, or a setting is out of range.

    Example:
        >>> batch_norm_train([[1.0], [3.0]], [2.0], [10.0]).outputs.round(3).tolist()
        [[8.0], [12.0]]

    Source: Ioffe and Szegedy, 2015, arXiv:1502.03167, algorithm 1.
    """
    x = matrix("inputs", inputs)
    if len(x) < 2:
        raise ValueError(f"inputs: got shape {x.shape}, want at least two rows")
    mean = np.mean(x, axis=0)
    var = np.mean((x - mean) ** 2, axis=0)
    return _normalise(x, weight, bias, RunningStatistics(mean=mean, var=var), eps=eps, training=True)


def batch_norm_eval(
    inputs: ArrayLike, weight: ArrayLike, bias: ArrayLike, running: RunningStatistics, *, eps: float = 1e-5
) -> BatchNormPass:
    """Normalise each feature by the running mean and variance: the rows know nothing of each other.

    Args:
        inputs: x, of shape (batch, features); one row will do.
        weight: γ of each feature.
        bias: β of each feature.
        running: The running mean and variance.
        eps: ε, positive.

    Raises:
        ValueError: The shapes do not fit each other, the batch is empty, or a setting is out of range.

    Example:
        >>> running = RunningStatistics(mean=np.array([1.0]), var=np.array([4.0]))
        >>> batch_norm_eval([[5.0]], [1.0], [0.0], running).outputs.round(3).tolist()
        [[2.0]]

    Source: Ioffe and Szegedy, 2015, arXiv:1502.03167, algorithm 2, line 11.
    """
    return _normalise(matrix("inputs", inputs), weight, bias, running, eps=eps, training=False)


def move_running_statistics(
    running: RunningStatistics, passed: BatchNormPass, *, momentum: float = 0.1
) -> RunningStatistics:
    """Move the running statistics towards those of a batch: r ← (1 − m) r + m s, with the variance of n − 1.

    The batch is normalised with Σ (x − μ)² / n, but Σ (x − μ)² / (n − 1) enters the running variance, as in torch.
    A NaN that entered stays: the layer is then lost for use, though it trains on.

    Args:
        running: The statistics so far; mean 0 and variance 1 at first.
        passed: What `batch_norm_train` returned.
        momentum: m, in (0, 1]: the weight of the new batch, where optimizers have that of the past.

    Raises:
        ValueError: The pass is none in training, the shapes differ, or a setting is out of range.

    Example:
        >>> first = RunningStatistics(mean=np.zeros(1), var=np.ones(1))
        >>> moved = move_running_statistics(first, batch_norm_train([[1.0], [3.0]], [1.0], [0.0]))
        >>> moved.mean.round(3).tolist(), moved.var.round(3).tolist()
        ([0.2], [1.1])

    Source: Ioffe and Szegedy, 2015, arXiv:1502.03167, algorithm 2, line 10, with a running mean in place of a mean
    over batches.
    """
    if not passed.training:
        raise ValueError("passed: got a pass of batch_norm_eval, want one of batch_norm_train")
    m = positive("momentum", momentum)
    if m > 1:
        raise ValueError(f"momentum: got {m}, want a number in (0, 1]")
    count, features = passed.outputs.shape
    mean = of_shape("running.mean", running.mean, (features,))
    var = of_shape("running.var", running.var, (features,))
    unbiased = passed.statistics.var * count / (count - 1)
    return RunningStatistics(mean=(1 - m) * mean + m * passed.statistics.mean, var=(1 - m) * var + m * unbiased)


def batch_norm_backward(passed: BatchNormPass, output_gradient: ArrayLike) -> BatchNormGradients:
    """Send the gradient of a loss back: ∂L/∂x = γ / √(σ² + ε) · (g − mean g − x̂ mean (g x̂)), means over the batch.

    The two means are what the batch's own statistics add; in use, with running ones, ∂L/∂x = γ / √(σ² + ε) · g. In
    training the gradient is so without a part along 1 and along x̂, and weights that grow before the layer shrink it
    by the same factor. ∂L/∂γ = Σ g x̂ and ∂L/∂β = Σ g.

    Args:
        passed: What `batch_norm_train` or `batch_norm_eval` returned.
        output_gradient: g = ∂L/∂y, of the shape of the outputs.

    Raises:
        ValueError: The gradient has another shape than the outputs.

    Example:
        >>> passed = batch_norm_train([[1.0], [3.0]], [1.0], [0.0])
        >>> batch_norm_backward(passed, [[1.0], [1.0]]).inputs.tolist()
        [[0.0], [0.0]]

    Source: Ioffe and Szegedy, 2015, arXiv:1502.03167, section 3, the chain rule after algorithm 1, put together.
    """
    g = of_shape("output_gradient", output_gradient, passed.outputs.shape)
    x_hat = passed.normalised
    inner = g - np.mean(g, axis=0) - x_hat * np.mean(g * x_hat, axis=0) if passed.training else g
    return BatchNormGradients(inputs=passed.factor * inner, weight=np.sum(g * x_hat, axis=0), bias=np.sum(g, axis=0))


def _normalise(
    x: Array, weight: ArrayLike, bias: ArrayLike, statistics: RunningStatistics, *, eps: float, training: bool
) -> BatchNormPass:
    features = x.shape[1:]
    gamma, beta = of_shape("weight", weight, features), of_shape("bias", bias, features)
    mean = of_shape("running.mean", statistics.mean, features)
    var = of_shape("running.var", statistics.var, features)
    inverse = 1 / np.sqrt(var + positive("eps", eps))
    normalised = (x - mean) * inverse
    return BatchNormPass(
        outputs=gamma * normalised + beta,
        normalised=normalised,
        factor=gamma * inverse,
        statistics=statistics,
        training=training,
    )
