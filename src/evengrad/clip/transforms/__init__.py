"""Transforms: change gradients element by element or unit by unit, or constrain the weights after the step."""

from evengrad.clip.transforms._add_noise import AddNoise
from evengrad.clip.transforms._all import ALL
from evengrad.clip.transforms._by_unit_weight_norm import ByUnitWeightNorm
from evengrad.clip.transforms._by_value import ByValue
from evengrad.clip.transforms._centralize import Centralize
from evengrad.clip.transforms._clamp_weights import ClampWeights
from evengrad.clip.transforms._inhibit import Inhibit
from evengrad.clip.transforms._max_norm import MaxNorm
from evengrad.clip.transforms._normalize_weights import normalize_weights_
from evengrad.clip.transforms._quantize import Quantize
from evengrad.clip.transforms._sign import Sign
from evengrad.clip.transforms._spike_aware import SpikeAware
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.clip.transforms._update_clip import UpdateClip

__all__ = [
    "ALL",
    "AbstractTransform",
    "AddNoise",
    "ByUnitWeightNorm",
    "ByValue",
    "Centralize",
    "ClampWeights",
    "Inhibit",
    "MaxNorm",
    "Memory",
    "Quantize",
    "Sign",
    "SpikeAware",
    "Target",
    "UpdateClip",
    "normalize_weights_",
]
