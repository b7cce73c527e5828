"""First weights: Xavier, He, orthogonal and constant."""

import math

import numpy as np
from numpy.random import Generator

from evengrad.reference._activations import activation_gain
from evengrad.reference._arrays import Array, float64, positive

Shape = tuple[int, ...]


def fans(shape: Shape) -> tuple[int, int]:
    """Count how many inputs a unit sums over, and how many units an input goes to.

    For a dense weight of shape (units, inputs) these are the inputs and the units; for a convolution of shape
    (channels out, channels in, k₁, k₂, ...) each is multiplied by k₁ k₂ ..., as in torch.

    Args:
        shape: At least two axes, none of them empty.

    Returns:
        fan_in and fan_out.

    Raises:
        ValueError: There are fewer than two axes, or an empty one.

    Example:
        >>> fans((20, 10)), fans((8, 4, 3, 3))
        ((10, 20), (36, 72))
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape: got {shape}, want at least two axes, none of them empty")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def xavier_std(shape: Shape, *, gain: float = 1.0) -> float:
    """Give the deviation of Xavier's weights: σ = gain √(2 / (fan_in + fan_out)).

    A middle between 1 / fan_in, which keeps the variance of the signal on the way forward, and 1 / fan_out, which
    keeps that of the gradient on the way back. Right for activations with slope 1 at 0, such as tanh.

    Args:
        shape: Of the weight; see `fans`.
        gain: Positive; see `activation_gain`.

    Raises:
        ValueError: The shape has no fans, or a setting is out of range.

    Example:
        >>> xavier_std((30, 20))
        0.2

    Source: Glorot and Bengio, 2010, PMLR 9:249-256, equation 12.
    """
    return positive("gain", gain) * math.sqrt(2 / sum(fans(shape)))


def xavier_normal(shape: Shape, generator: Generator, *, gain: float = 1.0) -> Array:
    """Draw weights from N(0, σ²), with Xavier's deviation.

    Args:
        shape: Of the weight; see `fans`.
        generator: NumPy's; the same seed gives the same weights, but not those of torch.
        gain: Positive; see `activation_gain`.

    Raises:
        ValueError: The shape has no fans, or a setting is out of range.

    Example:
        >>> xavier_normal((4, 3), np.random.default_rng(0)).shape
        (4, 3)

    Source: Glorot and Bengio, 2010, PMLR 9:249-256, equation 12.
    """
    return generator.normal(0.0, xavier_std(shape, gain=gain), shape)


def xavier_uniform(shape: Shape, generator: Generator, *, gain: float = 1.0) -> Array:
    """Draw weights evenly from [−a, a), a = √3 σ = gain √(6 / (fan_in + fan_out)): of Xavier's deviation.

    Args:
        shape: Of the weight; see `fans`.
        generator: NumPy's; the same seed gives the same weights, but not those of torch.
        gain: Positive; see `activation_gain`.

    Raises:
        ValueError: The shape has no fans, or a setting is out of range.

    Example:
        >>> bool(abs(xavier_uniform((4, 2), np.random.default_rng(0))).max() <= 1)
        True

    Source: Glorot and Bengio, 2010, PMLR 9:249-256, equation 16.
    """
    bound = math.sqrt(3) * xavier_std(shape, gain=gain)
    return generator.uniform(-bound, bound, shape)


def he_std(shape: Shape, *, activation: str = "relu", negative_slope: float = 0.01, mode: str = "fan_in") -> float:
    """Give the deviation of He's weights: σ = gain / √fan, with the activation's gain.

    For a relu σ² = 2 / fan: half of the sum of squares is lost in each layer, and the 2 brings it back.

    Args:
        shape: Of the weight; see `fans`.
        activation: What follows the weight; see `activation_gain`.
        negative_slope: For leaky_relu only.
        mode: `fan_in` keeps the size of the signal on the way forward, `fan_out` that of the gradient on the way back.

    Raises:
        ValueError: The shape has no fans, or a setting is out of range.

    Example:
        >>> he_std((10, 50))
        0.2

    Source: He et al., 2015, arXiv:1502.01852, equations 10 (fan_in), 14 (fan_out) and 15 (leaky_relu).
    """
    if mode not in {"fan_in", "fan_out"}:
        raise ValueError(f"mode: got {mode!r}, want fan_in or fan_out")
    fan = fans(shape)[mode == "fan_out"]
    return activation_gain(activation, negative_slope=negative_slope) / math.sqrt(fan)


def he_normal(
    shape: Shape,
    generator: Generator,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    mode: str = "fan_in",
) -> Array:
    """Draw weights from N(0, σ²), with He's deviation.

    Args:
        shape: Of the weight; see `fans`.
        generator: NumPy's; the same seed gives the same weights, but not those of torch.
        activation: What follows the weight; see `activation_gain`.
        negative_slope: For leaky_relu only.
        mode: `fan_in` or `fan_out`; see `he_std`.

    Raises:
        ValueError: The shape has no fans, or a setting is out of range.

    Example:
        >>> he_normal((4, 3), np.random.default_rng(0)).shape
        (4, 3)

    Source: He et al., 2015, arXiv:1502.01852, equation 10.
    """
    std = he_std(shape, activation=activation, negative_slope=negative_slope, mode=mode)
    return generator.normal(0.0, std, shape)


def he_uniform(
    shape: Shape,
    generator: Generator,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    mode: str = "fan_in",
) -> Array:
    """Draw weights evenly from [−a, a), a = √3 σ: of He's deviation.

    Args:
        shape: Of the weight; see `fans`.
        generator: NumPy's; the same seed gives the same weights, but not those of torch.
        activation: What follows the weight; see `activation_gain`.
        negative_slope: For leaky_relu only.
        mode: `fan_in` or `fan_out`; see `he_std`.

    Raises:
        ValueError: The shape has no fans, or a setting is out of range.

    Example:
        >>> bool(abs(he_uniform((4, 6), np.random.default_rng(0))).max() <= 1)
        True

    Source: He et al., 2015, arXiv:1502.01852, equation 10; the paper has the normal one only.
    """
    std = he_std(shape, activation=activation, negative_slope=negative_slope, mode=mode)
    bound = math.sqrt(3) * std
    return generator.uniform(-bound, bound, shape)


def orthogonal(shape: Shape, generator: Generator, *, gain: float = 1.0) -> Array:
    """Draw a weight whose rows, or columns if they are fewer, are orthogonal and of length `gain`.

    Q of A = Q R, A normal, each column times the sign of R's diagonal: without the signs Q would not be drawn evenly
    from all orthogonal matrices. Axes behind the second are laid into it, as in torch. A square one changes no length,
    either way, so that the signal in a linear network keeps its size at any depth.

    Args:
        shape: At least two axes, none of them empty.
        generator: NumPy's; the same seed gives the same weights, but not those of torch.
        gain: Positive; see `activation_gain`.

    Raises:
        ValueError: There are fewer than two axes, or an empty one, or a setting is out of range.

    Example:
        >>> weight = orthogonal((3, 3), np.random.default_rng(0))
        >>> bool(np.allclose(weight @ weight.T, np.eye(3)))
        True

    Source: Saxe, McClelland and Ganguli, 2013, arXiv:1312.6120; the signs: Mezzadri, 2006, arXiv:math-ph/0609050.
    """
    fans(shape)
    rows, columns = shape[0], math.prod(shape[1:])
    drawn = generator.normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diagonal(r))
    return float64("weight", positive("gain", gain) * (q if rows >= columns else q.T)).reshape(shape)


def constant(shape: Shape, *, value: float) -> Array:
    """Fill an array with one value: for biases, and for the weight and bias of a normalisation.

    As a weight it makes all units of a layer the same, and they stay so: they all get the same gradient.

    Args:
        shape: Any.
        value: Any.

    Example:
        >>> constant((2,), value=0.5).tolist()
        [0.5, 0.5]
    """
    return np.full(shape, value, dtype=np.float64)
