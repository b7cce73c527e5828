"""Paired trials and the verdict that they lead to."""

from evengrad.trial._repair import Repair, repair
from evengrad.trial._user_code import first_batch, fresh_model

__all__ = ["Repair", "first_batch", "fresh_model", "repair"]
