"""Activation functions, their slopes, and the gain that makes up for them."""

import math

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, float64, not_negative

ACTIVATIONS = ("identity", "leaky_relu", "relu", "sigmoid", "tanh")


def activate(preactivations: ArrayLike, activation: str, *, negative_slope: float = 0.01) -> Array:
    """Apply an activation function to every element.

    identity: z. sigmoid: 1 / (1 + e⁻ᶻ). tanh: (eᶻ − e⁻ᶻ) / (eᶻ + e⁻ᶻ). relu: max(z, 0). leaky_relu: z where z > 0,
    a z elsewhere. A NaN stays one; nothing overflows.

    Args:
        preactivations: z, of any shape.
        activation: One of identity, leaky_relu, relu, sigmoid, tanh.
        negative_slope: a, 0 or more; for leaky_relu only.

    Raises:
        ValueError: The activation is unknown, or a setting is out of range.

    Example:
        >>> activate([-2.0, 0.0, 2.0], "relu").tolist()
        [0.0, 0.0, 2.0]
        >>> activate([-1000.0, 0.0, 1000.0], "sigmoid").tolist()
        [0.0, 0.5, 1.0]

    Source: relu: Nair and Hinton, 2010, ICML, Rectified Linear Units Improve Restricted Boltzmann Machines; leaky_relu:
    Maas, Hannun and Ng, 2013, ICML, Rectifier Nonlinearities Improve Neural Network Acoustic Models.
    """
    z = float64("preactivations", preactivations)
    match known(activation):
        case "identity":
            return z
        case "sigmoid":
            small = np.exp(-np.abs(z))  # at most 1, so that nothing overflows
            return np.where(z >= 0, 1 / (1 + small), small / (1 + small))
        case "tanh":
            return np.tanh(z)
        case "relu":
            return np.maximum(z, 0.0)
        case _:
            return np.where(z > 0, z, not_negative("negative_slope", negative_slope) * z)


def activation_slope(preactivations: ArrayLike, activation: str, *, negative_slope: float = 0.01) -> Array:
    """Take the slope of an activation function at every element.

    identity: 1. sigmoid: s (1 − s), at most 1/4. tanh: 1 − tanh² z, at most 1. relu: 1 where z > 0, else 0.
    leaky_relu: 1 where z > 0, else a. At the kink, z = 0, it is the slope to the left, as in torch. Far from 0 the
    slopes of sigmoid and tanh round to 0: such a unit is saturated and passes no gradient at all.

    Args:
        preactivations: z, of any shape.
        activation: One of identity, leaky_relu, relu, sigmoid, tanh.
        negative_slope: a, 0 or more; for leaky_relu only.

    Raises:
        ValueError: The activation is unknown, or a setting is out of range.

    Example:
        >>> activation_slope([0.0, 40.0], "sigmoid").tolist()
        [0.25, 0.0]

    Source: the derivative of `activate`; sigmoid: Rumelhart, Hinton and Williams, 1986, doi:10.1038/323533a0,
    equation 5.
    """
    z = float64("preactivations", preactivations)
    match known(activation):
        case "identity":
            return np.ones_like(z)
        case "sigmoid":
            value = activate(z, "sigmoid")
            return value * (1 - value)
        case "tanh":
            return 1 - np.tanh(z) ** 2
        case "relu":
            return np.where(z <= 0, 0.0, 1.0)  # so that a NaN lets the gradient through, as in torch
        case _:
            return np.where(z > 0, 1.0, not_negative("negative_slope", negative_slope))


def activation_gain(activation: str, *, negative_slope: float = 0.01) -> float:
    """Give the factor on the weights' deviation that keeps the signal's size behind this activation.

    identity and sigmoid: 1. tanh: 5/3. relu: √2. leaky_relu: √(2 / (1 + a²)). Only those of identity, relu and
    leaky_relu follow from theory (half of the squares is lost in a relu); 5/3 is of experience, and that of sigmoid is
    torch's: it keeps no size, since the slope is 1/4 at most.

    Args:
        activation: One of identity, leaky_relu, relu, sigmoid, tanh.
        negative_slope: a, 0 or more; for leaky_relu only.

    Raises:
        ValueError: The activation is unknown, or a setting is out of range.

    Example:
        >>> round(activation_gain("relu"), 4)
        1.4142

    Source: He et al., 2015, arXiv:1502.01852, equations 10 and 15; the others as in `torch.nn.init.calculate_gain`.
    """
    slope = not_negative("negative_slope", negative_slope)
    gains = {"tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + slope**2))}
    return gains.get(known(activation), 1.0)


def known(activation: str) -> str:
    """Take the name of an activation that there is."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, want one of {', '.join(ACTIVATIONS)}")
    return activation
