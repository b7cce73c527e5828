"""The mathematics of training in NumPy float64: each function with its formula and its source.

It is the oracle of the tests and a text to learn from: small, slow and plain. Training is done with torch's own
optimizers. Nothing of evengrad is imported here, and nothing but NumPy. All functions are pure: no argument is changed.
Numbers that are not finite go through as arithmetic has it, with NumPy's own warnings; shapes that differ and settings
out of range are refused with a ValueError.
"""

from evengrad.reference._activations import activate, activation_gain, activation_slope
from evengrad.reference._adam import adam, adamw
from evengrad.reference._adaptive import adagrad, rmsprop
from evengrad.reference._arrays import Array, State
from evengrad.reference._batch_norm import (
    BatchNormGradients,
    BatchNormPass,
    RunningStatistics,
    batch_norm_backward,
    batch_norm_eval,
    batch_norm_train,
    move_running_statistics,
)
from evengrad.reference._clipping import (
    clip_by_norm,
    clip_by_value,
    clip_each_by_norm,
    clip_weights,
    limit_unit_norms,
    norm,
    squared_norms,
    total_norm,
    truncate,
)
from evengrad.reference._dense import Dense, DenseGradients, DensePass, backward, forward
from evengrad.reference._descent import add_weight_decay, gradient_descent, momentum
from evengrad.reference._gradient_check import GradientCheck, central_differences, check_gradient
from evengrad.reference._initialisation import (
    constant,
    fans,
    he_normal,
    he_std,
    he_uniform,
    orthogonal,
    xavier_normal,
    xavier_std,
    xavier_uniform,
)
from evengrad.reference._losses import mean_squared_error, softmax_cross_entropy
from evengrad.reference._residual import residual_backward, residual_forward

__all__ = [
    "Array",
    "BatchNormGradients",
    "BatchNormPass",
    "Dense",
    "DenseGradients",
    "DensePass",
    "GradientCheck",
    "RunningStatistics",
    "State",
    "activate",
    "activation_gain",
    "activation_slope",
    "adagrad",
    "adam",
    "adamw",
    "add_weight_decay",
    "backward",
    "batch_norm_backward",
    "batch_norm_eval",
    "batch_norm_train",
    "central_differences",
    "check_gradient",
    "clip_by_norm",
    "clip_by_value",
    "clip_each_by_norm",
    "clip_weights",
    "constant",
    "fans",
    "forward",
    "gradient_descent",
    "he_normal",
    "he_std",
    "he_uniform",
    "limit_unit_norms",
    "mean_squared_error",
    "momentum",
    "move_running_statistics",
    "norm",
    "orthogonal",
    "residual_backward",
    "residual_forward",
    "rmsprop",
    "softmax_cross_entropy",
    "squared_norms",
    "total_norm",
    "truncate",
    "xavier_normal",
    "xavier_std",
    "xavier_uniform",
]
