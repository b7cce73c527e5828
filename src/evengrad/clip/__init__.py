"""Policies: from the vector of gradient norms to how much of each gradient is let through.

What works on elements, units or weights instead is in `evengrad.clip.transforms`, which needs torch and is loaded when
it is first used.
"""

from importlib import import_module

from evengrad.clip._by_block_rms import ByBlockRms
from evengrad.clip._by_global_norm import ByGlobalNorm
from evengrad.clip._by_moving_average import ByMovingAverage
from evengrad.clip._by_percentile import ByPercentile
from evengrad.clip._by_polyak_step import ByPolyakStep
from evengrad.clip._by_sigma_window import BySigmaWindow
from evengrad.clip._by_smooth_norm import BySmoothNorm
from evengrad.clip._by_tensor_norm import ByTensorNorm
from evengrad.clip._by_weight_norm import ByWeightNorm
from evengrad.clip._by_zscore import ByZScore
from evengrad.clip._chain import Chain
from evengrad.clip._choice import ALL, policy_of
from evengrad.clip._normalized_gradient import NormalizedGradient
from evengrad.clip._numbers import Number, Vector, decides_by_numbers, number_signals, number_state
from evengrad.clip._policy import AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._skip_non_finite import SkipNonFinite
from evengrad.clip._total import total_norm
from evengrad.clip._zclip import ZClip

__all__ = [
    "ALL",
    "AbstractPolicy",
    "Array",
    "ByBlockRms",
    "ByGlobalNorm",
    "ByMovingAverage",
    "ByPercentile",
    "ByPolyakStep",
    "BySigmaWindow",
    "BySmoothNorm",
    "ByTensorNorm",
    "ByWeightNorm",
    "ByZScore",
    "Chain",
    "Decision",
    "NormalizedGradient",
    "Number",
    "Signals",
    "SkipNonFinite",
    "State",
    "Vector",
    "ZClip",
    "decides_by_numbers",
    "number_signals",
    "number_state",
    "policy_of",
    "total_norm",
]


def __getattr__(name: str) -> object:
    if name == "transforms":
        return import_module("evengrad.clip.transforms")
    raise AttributeError(f"module 'evengrad.clip' has no attribute {name!r}")
