"""The rules: one file a fault, registered by a line in `ALL`."""

from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule
from evengrad.diagnose.rules._activation_drift import ActivationDrift
from evengrad.diagnose.rules._activation_on_logits import ActivationOnLogits
from evengrad.diagnose.rules._attention_logits_large import AttentionLogitsLarge
from evengrad.diagnose.rules._bad_input import BadInput
from evengrad.diagnose.rules._bad_labels import BadLabels
from evengrad.diagnose.rules._batch_norm_misuse import BatchNormMisuse
from evengrad.diagnose.rules._clipping_throttles import ClippingThrottles
from evengrad.diagnose.rules._collapsed_units import CollapsedUnits
from evengrad.diagnose.rules._dead_units import DeadUnits
from evengrad.diagnose.rules._divergence import Divergence
from evengrad.diagnose.rules._epsilon_drowns import EpsilonDrowns
from evengrad.diagnose.rules._exploding_through_time import ExplodingThroughTime
from evengrad.diagnose.rules._exploding_with_depth import ExplodingWithDepth
from evengrad.diagnose.rules._forgotten_zero_grad import ForgottenZeroGrad
from evengrad.diagnose.rules._frozen_by_mistake import FrozenByMistake
from evengrad.diagnose.rules._gates_stuck import GatesStuck
from evengrad.diagnose.rules._gradient_cleared import GradientCleared
from evengrad.diagnose.rules._gradient_norm_drift import GradientNormDrift
from evengrad.diagnose.rules._gradient_spike import GradientSpike
from evengrad.diagnose.rules._half_precision_overflow import HalfPrecisionOverflow
from evengrad.diagnose.rules._half_precision_underflow import HalfPrecisionUnderflow
from evengrad.diagnose.rules._initial_weights_too_large import InitialWeightsTooLarge
from evengrad.diagnose.rules._initial_weights_too_small import InitialWeightsTooSmall
from evengrad.diagnose.rules._input_not_normalised import InputNotNormalised
from evengrad.diagnose.rules._layer_out_of_line import LayerOutOfLine
from evengrad.diagnose.rules._learning_rate_too_high import LearningRateTooHigh
from evengrad.diagnose.rules._learning_rate_too_low import LearningRateTooLow
from evengrad.diagnose.rules._non_finite_forward import NonFiniteForward
from evengrad.diagnose.rules._non_finite_gradient import NonFiniteGradient
from evengrad.diagnose.rules._non_finite_loss import NonFiniteLoss
from evengrad.diagnose.rules._not_in_optimizer import NotInOptimizer
from evengrad.diagnose.rules._not_learning import NotLearning
from evengrad.diagnose.rules._oscillation import Oscillation
from evengrad.diagnose.rules._output_cannot_reach_target import OutputCannotReachTarget
from evengrad.diagnose.rules._output_range_too_narrow import OutputRangeTooNarrow
from evengrad.diagnose.rules._plateau import Plateau
from evengrad.diagnose.rules._saturated_units import SaturatedUnits
from evengrad.diagnose.rules._signal_cut import SignalCut
from evengrad.diagnose.rules._softmax_over_batch import SoftmaxOverBatch
from evengrad.diagnose.rules._softmax_twice import SoftmaxTwice
from evengrad.diagnose.rules._target_broadcast import TargetBroadcast
from evengrad.diagnose.rules._target_not_normalised import TargetNotNormalised
from evengrad.diagnose.rules._vanishing_through_time import VanishingThroughTime
from evengrad.diagnose.rules._vanishing_with_depth import VanishingWithDepth
from evengrad.diagnose.rules._weight_decay_collapse import WeightDecayCollapse
from evengrad.diagnose.rules._weights_stand_still import WeightsStandStill
from evengrad.diagnose.rules._wrong_custom_backward import WrongCustomBackward

ALL: tuple[AbstractRule | AbstractRunRule, ...] = (
    VanishingWithDepth(),
    ExplodingWithDepth(),
    VanishingThroughTime(),
    ExplodingThroughTime(),
    ActivationDrift(),
    GradientNormDrift(),
    GradientSpike(),
    SignalCut(),
    NotInOptimizer(),
    FrozenByMistake(),
    GradientCleared(),
    NonFiniteForward(),
    NonFiniteGradient(),
    NonFiniteLoss(),
    HalfPrecisionUnderflow(),
    HalfPrecisionOverflow(),
    AttentionLogitsLarge(),
    DeadUnits(),
    SaturatedUnits(),
    CollapsedUnits(),
    GatesStuck(),
    InitialWeightsTooLarge(),
    InitialWeightsTooSmall(),
    LayerOutOfLine(),
    SoftmaxTwice(),
    ActivationOnLogits(),
    OutputCannotReachTarget(),
    WrongCustomBackward(),
    OutputRangeTooNarrow(),
    SoftmaxOverBatch(),
    TargetBroadcast(),
    LearningRateTooHigh(),
    LearningRateTooLow(),
    ForgottenZeroGrad(),
    ClippingThrottles(),
    EpsilonDrowns(),
    WeightDecayCollapse(),
    WeightsStandStill(),
    BatchNormMisuse(),
    InputNotNormalised(),
    TargetNotNormalised(),
    BadInput(),
    BadLabels(),
    Plateau(),
    Oscillation(),
    Divergence(),
    NotLearning(),
)

__all__ = [
    "ALL",
    "ActivationDrift",
    "ActivationOnLogits",
    "AttentionLogitsLarge",
    "BadInput",
    "BadLabels",
    "BatchNormMisuse",
    "ClippingThrottles",
    "CollapsedUnits",
    "DeadUnits",
    "Divergence",
    "EpsilonDrowns",
    "ExplodingThroughTime",
    "ExplodingWithDepth",
    "ForgottenZeroGrad",
    "FrozenByMistake",
    "GatesStuck",
    "GradientCleared",
    "GradientNormDrift",
    "GradientSpike",
    "HalfPrecisionOverflow",
    "HalfPrecisionUnderflow",
    "InitialWeightsTooLarge",
    "InitialWeightsTooSmall",
    "InputNotNormalised",
    "LayerOutOfLine",
    "LearningRateTooHigh",
    "LearningRateTooLow",
    "NonFiniteForward",
    "NonFiniteGradient",
    "NonFiniteLoss",
    "NotInOptimizer",
    "NotLearning",
    "Oscillation",
    "OutputCannotReachTarget",
    "OutputRangeTooNarrow",
    "Plateau",
    "SaturatedUnits",
    "SignalCut",
    "SoftmaxOverBatch",
    "SoftmaxTwice",
    "TargetBroadcast",
    "TargetNotNormalised",
    "VanishingThroughTime",
    "VanishingWithDepth",
    "WeightDecayCollapse",
    "WeightsStandStill",
    "WrongCustomBackward",
]
