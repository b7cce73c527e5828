"""Transforms: change gradients element by element or unit by unit, or constrain the weights after the step."""

from evengrad.clip.transforms._all import ALL
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target

__all__ = [
    "ALL",
    "AbstractTransform",
    "Memory",
    "Target",
]
