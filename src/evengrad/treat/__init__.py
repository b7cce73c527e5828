"""Treatments: changed copies of a model or a task, in words and as code."""

from evengrad.treat._abstract import AbstractTreatment, Treated
from evengrad.treat._add_activation import AddActivation
from evengrad.treat._add_normalization import AddNormalization
from evengrad.treat._add_output_activation import AddOutputActivation
from evengrad.treat._add_residual import AddResidual
from evengrad.treat._clip_gradients import ClipGradients, bound_from
from evengrad.treat._combined import Combined
from evengrad.treat._constrain_weights import ConstrainWeights
from evengrad.treat._keep_in_float32 import KeepInFloat32
from evengrad.treat._make import ALL, make
from evengrad.treat._normalize_input import NormalizeInput
from evengrad.treat._normalize_target import NormalizeTarget
from evengrad.treat._on_a_task import built
from evengrad.treat._reinitialize import Reinitialize
from evengrad.treat._remove_output_activation import OnlyInEvaluation, RemoveOutputActivation
from evengrad.treat._residual import Residual
from evengrad.treat._scale_learning_rate import ScaleLearningRate, factor_from_update_ratio
from evengrad.treat._scale_loss import ScaleLoss
from evengrad.treat._set_optimizer import SetOptimizer
from evengrad.treat._swap_activation import SwapActivation
from evengrad.treat._swap_optimizer import SwapOptimizer
from evengrad.treat._train_everything import TrainEverything
from evengrad.treat._truncate_backprop import TruncateBackprop
from evengrad.treat._use_gated_cell import UseGatedCell
from evengrad.treat._warm_up import WarmUp

__all__ = [
    "ALL",
    "AbstractTreatment",
    "AddActivation",
    "AddNormalization",
    "AddOutputActivation",
    "AddResidual",
    "ClipGradients",
    "Combined",
    "ConstrainWeights",
    "KeepInFloat32",
    "NormalizeInput",
    "NormalizeTarget",
    "OnlyInEvaluation",
    "Reinitialize",
    "RemoveOutputActivation",
    "Residual",
    "ScaleLearningRate",
    "ScaleLoss",
    "SetOptimizer",
    "SwapActivation",
    "SwapOptimizer",
    "TrainEverything",
    "Treated",
    "TruncateBackprop",
    "UseGatedCell",
    "WarmUp",
    "bound_from",
    "built",
    "factor_from_update_ratio",
    "make",
]
