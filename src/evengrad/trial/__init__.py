"""Paired trials and the verdict that they lead to."""

from evengrad.trial._look_at import with_lines
from evengrad.trial._metric import metric_of
from evengrad.trial._on_batch import on_batch
from evengrad.trial._repair import Repair, repair
from evengrad.trial._tune import Tuning, tune
from evengrad.trial._tune_space import POLICIES
from evengrad.trial._user_code import first_batch, fresh_model
from evengrad.trial._where_made import WhereMade

__all__ = [
    "POLICIES",
    "Repair",
    "Tuning",
    "WhereMade",
    "first_batch",
    "fresh_model",
    "metric_of",
    "on_batch",
    "repair",
    "tune",
    "with_lines",
]
