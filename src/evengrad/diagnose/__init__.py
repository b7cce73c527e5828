"""Rules: from readings to findings; never needs torch."""

from evengrad.diagnose import rules
from evengrad.diagnose._abstract import AbstractRule, AbstractRunRule, Sign
from evengrad.diagnose._diagnose import Diagnosis, diagnose, findings_of, symptoms_of
from evengrad.diagnose._explain import explain

__all__ = [
    "AbstractRule",
    "AbstractRunRule",
    "Diagnosis",
    "Sign",
    "diagnose",
    "explain",
    "findings_of",
    "rules",
    "symptoms_of",
]
