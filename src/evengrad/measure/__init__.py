"""Norms of gradients, packed, in float32; the only part that calls private torch functions."""

from evengrad.measure._norms import Norms, first_accelerator
from evengrad.measure._scale import copy_each_, scale_, scale_by_, scale_each_
from evengrad.measure._units import Cut, scale_units_, unit_norms

__all__ = [
    "Cut",
    "Norms",
    "copy_each_",
    "first_accelerator",
    "scale_",
    "scale_by_",
    "scale_each_",
    "scale_units_",
    "unit_norms",
]
