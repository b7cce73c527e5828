"""Policies: from the vector of gradient norms to how much of each gradient is let through."""

from evengrad.clip._by_global_norm import ByGlobalNorm
from evengrad.clip._by_zscore import ByZScore
from evengrad.clip._choice import ALL, policy_of
from evengrad.clip._policy import AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._total import total_norm

__all__ = [
    "ALL",
    "AbstractPolicy",
    "Array",
    "ByGlobalNorm",
    "ByZScore",
    "Decision",
    "Signals",
    "State",
    "policy_of",
    "total_norm",
]
