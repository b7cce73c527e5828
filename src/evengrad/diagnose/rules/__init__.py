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
)

__all__ = [
    "ALL",
    "AttentionLogitsLarge",
    "DeadUnits",
    "ExplodingThroughTime",
    "ExplodingWithDepth",
    "HalfPrecisionOverflow",
    "HalfPrecisionUnderflow",
    "NonFiniteForward",
    "NonFiniteGradient",
    "NonFiniteLoss",
    "SaturatedUnits",
    "VanishingThroughTime",
    "VanishingWithDepth",
]
