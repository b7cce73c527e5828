"""The frozen nouns that the parts hand to each other, and every error; standard library only."""

from evengrad.nouns._errors import (
    BatchError,
    EvengradError,
    EvengradWarning,
    LossError,
    ModelError,
    NewerRunError,
    NonFiniteError,
    NotARunError,
    OptimizerError,
    RunLogError,
    SettingError,
    TaskError,
    TooManySkipsError,
    TornLogWarning,
    TreatmentError,
    UnguardedStepWarning,
    UnknownRuleError,
)
from evengrad.nouns._event import Event
from evengrad.nouns._finding import Cure, Evidence, Finding, Setting, Severity, described, printable, shortened
from evengrad.nouns._json import from_json, to_json, to_plain
from evengrad.nouns._reading import LayerReading, Reading, Record
from evengrad.nouns._story import Curve, HeatMap, Story
from evengrad.nouns._task import Task, output_of
from evengrad.nouns._verdict import Outcome, Trial, Verdict

__all__ = [
    "BatchError",
    "Cure",
    "Curve",
    "EvengradError",
    "EvengradWarning",
    "Event",
    "Evidence",
    "Finding",
    "HeatMap",
    "LayerReading",
    "LossError",
    "ModelError",
    "NewerRunError",
    "NonFiniteError",
    "NotARunError",
    "OptimizerError",
    "Outcome",
    "Reading",
    "Record",
    "RunLogError",
    "Setting",
    "SettingError",
    "Severity",
    "Story",
    "Task",
    "TaskError",
    "TooManySkipsError",
    "TornLogWarning",
    "TreatmentError",
    "Trial",
    "UnguardedStepWarning",
    "UnknownRuleError",
    "Verdict",
    "described",
    "from_json",
    "output_of",
    "printable",
    "shortened",
    "to_json",
    "to_plain",
]
