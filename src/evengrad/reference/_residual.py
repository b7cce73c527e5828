"""The residual connection around dense layers."""

from collections.abc import Sequence
from dataclasses import replace

from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, not_negative, of_shape
from evengrad.reference._dense import Dense, DenseGradients, DensePass, backward, forward


def residual_forward(
    layers: Sequence[Dense], inputs: ArrayLike, *, branch_scale: float = 1.0
) -> tuple[Array, DensePass]:
    """Add what the layers make of the inputs to the inputs: y = x + s F(x).

    With s = 0, or no layers' output but 0, the block is the identity: it can be put anywhere without harm.

    Args:
        layers: The branch F; its last layer has as many units as x has columns.
        inputs: x, of shape (batch, inputs), not empty.
        branch_scale: s, 0 or more. With many blocks at 1 the signal's variance doubles in each; 1/√blocks holds it.

    Returns:
        The outputs y, and the pass through the branch.

    Raises:
        ValueError: A layer does not fit what comes into it, the branch changes the width, or a setting is out of range.

    Example:
        >>> import numpy as np
        >>> half = Dense(weight=0.5 * np.eye(2), bias=np.zeros(2))
        >>> residual_forward([half], [[1.0, -2.0]])[0].tolist()
        [[1.5, -3.0]]

    Source: He et al., 2015, arXiv:1512.03385, equation 1; the scale: De and Smith, 2020, arXiv:2002.10444.
    """
    passed = forward(layers, inputs)
    x = passed.inputs[0] if passed.inputs else passed.outputs
    if passed.outputs.shape != x.shape:
        raise ValueError(f"layers: got outputs of shape {passed.outputs.shape}, want the inputs' {x.shape}")
    return x + not_negative("branch_scale", branch_scale) * passed.outputs, passed


def residual_backward(
    layers: Sequence[Dense], passed: DensePass, output_gradient: ArrayLike, *, branch_scale: float = 1.0
) -> DenseGradients:
    """Send the gradient of a loss back, on both ways: ∂L/∂x = g + s (∂F/∂x)ᵀ g.

    The first term is g itself: however small the weights of the branch, the signal arrives. So it does not vanish with
    depth, but nothing here keeps it from exploding.

    Args:
        layers: The branch F.
        passed: The pass through it, from `residual_forward`.
        output_gradient: g = ∂L/∂y, of the shape of the outputs.
        branch_scale: s, as in the forward pass.

    Returns:
        The gradients of the branch's layers; `inputs` is ∂L/∂x, of both ways together.

    Raises:
        ValueError: The pass is another network's, the gradient has another shape, or a setting is out of range.

    Example:
        >>> import numpy as np
        >>> half = Dense(weight=0.5 * np.eye(2), bias=np.zeros(2))
        >>> _, passed = residual_forward([half], [[1.0, -2.0]])
        >>> residual_backward([half], passed, [[1.0, 0.0]]).inputs.tolist()
        [[1.5, 0.0]]

    Source: He et al., 2016, arXiv:1603.05027, equation 5.
    """
    g = of_shape("output_gradient", output_gradient, passed.outputs.shape)
    branch = backward(layers, passed, not_negative("branch_scale", branch_scale) * g)
    return replace(branch, inputs=g + branch.inputs)
