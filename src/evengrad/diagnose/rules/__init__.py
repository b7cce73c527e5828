"""The rules: one file a fault, registered by a line in `ALL`."""

from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule
from evengrad.diagnose.rules._dead_units import DeadUnits
from evengrad.diagnose.rules._exploding_through_time import ExplodingThroughTime
from evengrad.diagnose.rules._exploding_with_depth import ExplodingWithDepth
from evengrad.diagnose.rules._non_finite_forward import NonFiniteForward
from evengrad.diagnose.rules._non_finite_gradient import NonFiniteGradient
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
    DeadUnits(),
    SaturatedUnits(),
)

__all__ = [
    "ALL",
    "DeadUnits",
    "ExplodingThroughTime",
    "ExplodingWithDepth",
    "NonFiniteForward",
    "NonFiniteGradient",
    "SaturatedUnits",
    "VanishingThroughTime",
    "VanishingWithDepth",
]
