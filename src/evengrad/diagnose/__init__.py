"""Rules: from readings to findings; never needs torch."""

from evengrad.diagnose import rules
from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule, Sign
from evengrad.diagnose._constant import loss_left
from evengrad.diagnose._diagnose import Choice, Diagnosis, diagnose, findings_of, in_one_line, symptoms_of
from evengrad.diagnose._explain import explain
from evengrad.diagnose._story import told_as_a_story
from evengrad.diagnose._told import Told

__all__ = [
    "AbstractRule",
    "AbstractRunRule",
    "Choice",
    "Diagnosis",
    "Sign",
    "Told",
    "diagnose",
    "explain",
    "findings_of",
    "in_one_line",
    "loss_left",
    "rules",
    "symptoms_of",
    "told_as_a_story",
]
