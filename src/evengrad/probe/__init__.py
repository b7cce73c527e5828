"""Readings of a model without changing it."""

from evengrad.probe._left_as_found import left_as_found
from evengrad.probe._probe import checked_batch, named_parameters, probe

__all__ = ["checked_batch", "left_as_found", "named_parameters", "probe"]
