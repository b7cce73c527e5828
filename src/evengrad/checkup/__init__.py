"""One batch, looked at: layers, findings, and which change removes them."""

from evengrad.checkup._checkup import Checkup, checkup
from evengrad.checkup._counterfactual import Patient, Progress, with_causes

__all__ = ["Checkup", "Patient", "Progress", "checkup", "with_causes"]
