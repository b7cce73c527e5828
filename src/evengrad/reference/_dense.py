"""A network of dense layers: forward, and back-propagation by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._activations import activate, activation_slope, known
from evengrad.reference._arrays import Array, matrix, not_negative, of_shape


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dense:
    """Hold one layer: y = φ(x Wᵀ + b), with one row of x for each sample.

    Args:
        weight: W, of shape (units, inputs), as in torch. Anything real; kept as float64.
        bias: b, of shape (units,).
        activation: φ: one of identity, leaky_relu, relu, sigmoid, tanh.
        negative_slope: For leaky_relu only.

    Raises:
        ValueError: The shapes do not fit each other, the activation is unknown, or a setting is out of range.

    Example:
        >>> Dense(weight=np.eye(2), bias=np.zeros(2), activation="relu").weight.shape
        (2, 2)
    """

    weight: Array
    bias: Array
    activation: str = "identity"
    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        weight = matrix("weight", self.weight)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", of_shape("bias", self.bias, weight.shape[:1]))
        known(self.activation)
        not_negative("negative_slope", self.negative_slope)


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DensePass:
    """Keep what back-propagation needs of a forward pass, layer by layer.

    Args:
        inputs: What each layer got, of shape (batch, inputs).
        preactivations: z = x Wᵀ + b of each layer, of shape (batch, units).
        outputs: What the last layer gave, of shape (batch, units).
    """

    inputs: tuple[Array, ...]
    preactivations: tuple[Array, ...]
    outputs: Array


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenseGradients:
    """Keep the gradients of a loss, layer by layer.

    Args:
        weights: ∂L/∂W of each layer.
        biases: ∂L/∂b of each layer.
        signals: δ = ∂L/∂z of each layer, of shape (batch, units): what explodes or vanishes with depth.
        inputs: ∂L/∂x of the first layer, of shape (batch, inputs).
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    signals: tuple[Array, ...]
    inputs: Array


def forward(layers: Sequence[Dense], inputs: ArrayLike) -> DensePass:
    """Send a batch through the layers: z = x Wᵀ + b, then x = φ(z) for the next.

    No layers at all are allowed: the outputs are then the inputs. A NaN stays in its row.

    Args:
        layers: The layers, from the first to the last.
        inputs: x, of shape (batch, inputs), not empty.

    Raises:
        ValueError: A layer does not fit what comes into it, or the batch is empty.

    Example:
        >>> double = Dense(weight=2 * np.eye(2), bias=np.zeros(2), activation="relu")
        >>> forward([double, double], [[1.0, -1.0]]).outputs.tolist()
        [[4.0, 0.0]]

    Source: Rumelhart, Hinton and Williams, 1986, doi:10.1038/323533a0, equations 1 and 2.
    """
    x = matrix("inputs", inputs)
    received, preactivations = [], []
    for number, layer in enumerate(layers):
        if x.shape[1] != layer.weight.shape[1]:
            raise ValueError(f"inputs of layer {number}: got {x.shape[1]} columns, want {layer.weight.shape[1]}")
        z = x @ layer.weight.T + layer.bias
        received.append(x)
        preactivations.append(z)
        x = activate(z, layer.activation, negative_slope=layer.negative_slope)
    return DensePass(inputs=tuple(received), preactivations=tuple(preactivations), outputs=x)


def backward(layers: Sequence[Dense], passed: DensePass, output_gradient: ArrayLike) -> DenseGradients:
    """Send the gradient of a loss back through the layers.

    From the last layer to the first, with g = ∂L/∂y at its output: δ = g ⊙ φ'(z), ∂L/∂W = δᵀ x, ∂L/∂b = the sum of δ
    over the batch, and g = δ W for the layer before. So the signal is multiplied by W and by φ' once for each layer,
    which is why it explodes or vanishes as a power of the depth.

    Args:
        layers: The layers that the forward pass went through.
        passed: That forward pass.
        output_gradient: ∂L/∂y, of the shape of its outputs. A loss that is a mean has its 1/batch in there.

    Raises:
        ValueError: The pass is another network's, or the gradient has another shape than the outputs.

    Example:
        >>> double = Dense(weight=2 * np.eye(2), bias=np.zeros(2), activation="relu")
        >>> passed = forward([double, double], [[1.0, -1.0]])
        >>> backward([double, double], passed, [[1.0, 1.0]]).inputs.tolist()
        [[4.0, 0.0]]

    Source: Rumelhart, Hinton and Williams, 1986, doi:10.1038/323533a0, equations 5 to 7.
    """
    gradient = of_shape("output_gradient", output_gradient, passed.outputs.shape)
    if len(layers) != len(passed.inputs):
        raise ValueError(f"passed: got a pass through {len(passed.inputs)} layers, want {len(layers)}")
    weights, biases, signals = [], [], []
    for layer, x, z in reversed(list(zip(layers, passed.inputs, passed.preactivations, strict=True))):
        if (z.shape[1], x.shape[1]) != layer.weight.shape:
            raise ValueError(f"passed: got a layer of shape {(z.shape[1], x.shape[1])}, want {layer.weight.shape}")
        signal = gradient * activation_slope(z, layer.activation, negative_slope=layer.negative_slope)
        weights.append(signal.T @ x)
        biases.append(np.sum(signal, axis=0))
        signals.append(signal)
        gradient = signal @ layer.weight
    return DenseGradients(
        weights=tuple(weights[::-1]), biases=tuple(biases[::-1]), signals=tuple(signals[::-1]), inputs=gradient
    )
