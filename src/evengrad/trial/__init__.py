"""Paired trials and the verdict that they lead to."""

from evengrad.trial._repair import Repair, repair

__all__ = ["Repair", "repair"]
