"""Paired trials and the verdict that they lead to."""

from evengrad.trial._course import first_batch, fresh_model
from evengrad.trial._repair import Repair, repair

__all__ = ["Repair", "first_batch", "fresh_model", "repair"]
