"""Readings of a model without changing it."""

from evengrad.probe._eagerly import is_compiled
from evengrad.probe._ends import EndsSample
from evengrad.probe._left_as_found import left_as_found
from evengrad.probe._probe import checked_batch, named_parameters, probe
from evengrad.probe._sample_readings import Layout
from evengrad.probe._sampler import Sampler
from evengrad.probe._setup import setup_and_untrained, setup_of
from evengrad.probe._untouched import Untouched, those
from evengrad.probe._weights import WeightSampler

__all__ = [
    "EndsSample",
    "Layout",
    "Sampler",
    "Untouched",
    "WeightSampler",
    "checked_batch",
    "is_compiled",
    "left_as_found",
    "named_parameters",
    "probe",
    "setup_and_untrained",
    "setup_of",
    "those",
]
