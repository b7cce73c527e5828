"""The rules: one file a fault, registered by a line in `ALL`."""

from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule
from evengrad.diagnose.rules._attention_logits_large import AttentionLogitsLarge
from evengrad.diagnose.rules._dead_units import DeadUnits
from evengrad.diagnose.rules._exploding_through_time import ExplodingThroughTime
from evengrad.diagnose.rules._exploding_with_depth import ExplodingWithDepth
from evengrad.diagnose.rules._half_precision_overflow import HalfPrecisionOverflow
from evengrad.diagnose.rules._half_precision_underflow import HalfPrecisionUnderflow
from evengrad.diagnose.rules._non_finite_forward import NonFiniteForward
from evengrad.diagnose.rules._non_finite_gradient import NonFiniteGradient
from evengrad.diagnose.rules._non_finite_loss import NonFiniteLoss
from evengrad.diagnose.rules._saturated_units import SaturatedUnits
from evengrad.diagnose.rules._vanishing_through_time import VanishingThroughTime
from evengrad.diagnose.rules._vanishing_with_depth import VanishingWithDepth
from evengrad.diagnose.rules._activation_on_logits import ActivationOnLogits
from evengrad.diagnose.rules._bad_input import BadInput
from evengrad.diagnose.rules._bad_labels import BadLabels
from evengrad.diagnose.rules._divergence import Divergence
from evengrad.diagnose.rules._input_not_normalised import InputNotNormalised
from evengrad.diagnose.rules._not_learning import NotLearning
from evengrad.diagnose.rules._oscillation import Oscillation
from evengrad.diagnose.rules._output_cannot_reach_target import OutputCannotReachTarget
from evengrad.diagnose.rules._output_range_too_narrow import OutputRangeTooNarrow
from evengrad.diagnose.rules._plateau import Plateau
from evengrad.diagnose.rules._softmax_twice import SoftmaxTwice
from evengrad.diagnose.rules._target_not_normalised import TargetNotNormalised
from evengrad.diagnose.rules._wrong_custom_backward import WrongCustomBackward

ALL: tuple[AbstractRule | AbstractRunRule, ...] = (
    VanishingWithDepth(),
    ExplodingWithDepth(),
    VanishingThroughTime(),
    ExplodingThroughTime(),
    NonFiniteForward(),
    NonFiniteGradient(),
    NonFiniteLoss(),
    HalfPrecisionUnderflow(),
    HalfPrecisionOverflow(),
    AttentionLogitsLarge(),
    DeadUnits(),
    SaturatedUnits(),
    SoftmaxTwice(),
    ActivationOnLogits(),
    OutputCannotReachTarget(),
    WrongCustomBackward(),
    OutputRangeTooNarrow(),
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
    "ActivationOnLogits",
    "AttentionLogitsLarge",
    "BadInput",
    "BadLabels",
    "DeadUnits",
    "Divergence",
    "ExplodingThroughTime",
    "ExplodingWithDepth",
    "HalfPrecisionOverflow",
    "HalfPrecisionUnderflow",
    "InputNotNormalised",
    "NonFiniteForward",
    "NonFiniteGradient",
    "NonFiniteLoss",
    "NotLearning",
    "Oscillation",
    "OutputCannotReachTarget",
    "OutputRangeTooNarrow",
    "Plateau",
    "SaturatedUnits",
    "SoftmaxTwice",
    "TargetNotNormalised",
    "VanishingThroughTime",
    "VanishingWithDepth",
    "WrongCustomBackward",
]
