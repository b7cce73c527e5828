"""Norms of gradients, packed, in float32; the only part that calls private torch functions."""

from evengrad.measure._norms import Norms
from evengrad.measure._scale import scale_

__all__ = ["Norms", "scale_"]
