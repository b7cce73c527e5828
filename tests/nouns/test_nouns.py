"""What holds for every noun, the errors, the task and the card of a finding."""

import dataclasses
import inspect
import math
import pickle
import subprocess
import sys

import pytest

import evengrad.nouns
from evengrad.diagnose import AbstractRunRule, rules
from evengrad.diagnose._profile import WIDEST_DECADES as RULES_WIDEST
from evengrad.nouns import (
    Cure,
    EvengradError,
    EvengradWarning,
    Evidence,
    Finding,
    LayerReading,
    NewerRunError,
    NotARunError,
    RunLogError,
    SettingError,
    Task,
    Trial,
    UnknownRuleError,
    described,
    shortened,
)
from evengrad.nouns._size import NOT_FINITE, THERE_OR_NOT, WIDEST_DECADES

PUBLIC = [getattr(evengrad.nouns, name) for name in evengrad.nouns.__all__]
CLASSES = [thing for thing in PUBLIC if inspect.isclass(thing)]
NOUNS = [kind for kind in CLASSES if dataclasses.is_dataclass(kind)]
ERRORS = [kind for kind in CLASSES if issubclass(kind, EvengradError)]
WARNINGS = [kind for kind in CLASSES if issubclass(kind, Warning)]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda kind: kind.__name__)
def test_a_noun_is_frozen_and_its_fields_are_keywords(noun):
    names = [field.name for field in dataclasses.fields(noun)]
    made = object.__new__(noun)
    with pytest.raises(dataclasses.FrozenInstanceError, match=names[0]):
        setattr(made, names[0], 1)
    with pytest.raises(TypeError, match="positional argument"):
        noun("a")
    assert not hasattr(made, "__dict__")
    assert set(names) == set(noun.__slots__)
    parameters = inspect.signature(noun).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}


def test_all_the_nouns_are_looked_at():
    assert len(NOUNS) == 21
    assert len(ERRORS) == 15
    assert len(WARNINGS) == 3


def test_the_nouns_need_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules); import evengrad.nouns\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['evengrad'] False False"


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_says_four_things_and_survives_a_pickle(kind):
    error = kind("max_norm", came="-1.0", wanted="a positive number", advice="use 1.0")
    assert str(error) == "max_norm: got -1.0, want a positive number; use 1.0"
    assert str(kind("lr", came="0", wanted="more")) == "lr: got 0, want more"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    told = (back.what, back.came, back.wanted, back.advice)
    assert told == ("max_norm", "-1.0", "a positive number", "use 1.0")


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        (SettingError, ValueError),
        (UnknownRuleError, KeyError),
        (NotARunError, RunLogError),
        (NewerRunError, RunLogError),
        (RunLogError, EvengradError),
        (EvengradWarning, UserWarning),
    ],
)
def test_an_error_is_caught_as_its_parent(kind, parent):
    assert issubclass(kind, parent)


def test_errors_and_warnings_have_one_root_each():
    assert all(issubclass(kind, Exception) and not issubclass(kind, Warning) for kind in ERRORS)
    assert all(issubclass(kind, EvengradWarning) for kind in WARNINGS)


MEMBERS = {
    "model": lambda: None,
    "optimizer": lambda model: None,
    "loss": lambda output, target: None,
    "train": list,
    "validate": lambda model: 0.0,
    "steps": 1,
}


def test_a_task_takes_functions_and_leaves_the_optional_ones_out():
    task = Task(**MEMBERS)
    assert (task.schedule, task.after_step, task.clip, task.name) == (None, None, None, "task")


@pytest.mark.parametrize("name", ["model", "optimizer", "loss", "train", "validate", "schedule", "after_step"])
def test_a_task_member_that_cannot_be_called_is_named(name):
    with pytest.raises(SettingError, match=rf"^Task\.{name}: got list, which cannot be called, want a function; write"):
        Task(**MEMBERS | {name: []})


@pytest.mark.parametrize("name", ["model", "optimizer", "loss", "train", "validate"])
def test_a_task_member_that_must_be_there_cannot_be_none(name):
    with pytest.raises(SettingError, match=rf"Task\.{name}: got NoneType"):
        Task(**MEMBERS | {name: None})


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "5", None, math.nan])
def test_the_steps_of_a_task_are_a_positive_whole_number(steps):
    with pytest.raises(SettingError, match=r"Task\.steps: got .*, want a positive whole number"):
        Task(**MEMBERS | {"steps": steps})


FINDING = Finding(
    code="EG101",
    symptom="vanishing with depth",
    severity="critical",
    where=("0", "2"),
    when=(3, 40),
    decades=7.1,
    message="the gradient shrinks by 7.1 decades",
    evidence=(Evidence(name="gradient norm", value=6.1e-8), Evidence(name="drop", value=7.1, unit="decades")),
    cause="the activation",
    cures=(
        Cure(treatment="SwapActivation", settings=(("to", "relu"),), tried=True, before_decades=7.1, after_decades=0.2),
        Cure(treatment="AddResidual", change="no two layers of one width"),
        Cure(treatment="AddNormalization"),
        Cure(treatment="ScaleLearningRate"),
    ),
)


def test_the_card_of_a_finding_says_all_of_it():
    assert str(FINDING).splitlines() == [
        "EG101 vanishing with depth (critical)",
        "  the gradient shrinks by 7.1 decades",
        "  where     0, 2",
        "  when      step 3 to 40",
        "  evidence  gradient norm: 6.1e-08",
        "            drop: 7.1 decades",
        "  cause     the activation",
        "  cures     SwapActivation(to='relu'): 7.1 -> 0.2 decades, symptom still there",
        "            AddResidual(): no two layers of one width",
        "            AddNormalization(), ScaleLearningRate(): not tried on one batch",
        "  more      evengrad explain EG101",
    ]


def test_the_card_leaves_out_what_is_not_there():
    card = str(dataclasses.replace(FINDING, when=(5, 5), evidence=(), cause="", cures=(), where=()))
    assert "when      step 5\n" in card
    assert "where     (model)\n" in card
    assert all(word not in card for word in ("evidence", "cause", "cures"))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "n0"), (6, "n0, n1, n2, n3, n4, n5"), (7, "n0, n1, n2, ... (1 more) ..., n4, n5, n6")],
)
def test_a_long_list_of_names_loses_its_middle(count, expected):
    assert shortened(tuple(f"n{number}" for number in range(count))) == expected


def test_the_relief_of_a_cure_is_known_once_it_was_tried():
    assert Cure(treatment="T", before_decades=7.0, after_decades=0.5).relief_decades == 6.5
    assert Cure(treatment="T", before_decades=7.0).relief_decades is None
    assert Cure(treatment="T").relief_decades is None
    assert described(Cure(treatment="T", before_decades=7.0, after_decades=0.5, removes=True)).endswith("symptom gone")


def test_a_gradient_norm_is_the_rms_times_the_root_of_the_count():
    assert LayerReading(name="0", kind="Linear", numel=16, grad_rms=0.5).grad_norm == 2.0
    assert LayerReading(name="0", kind="Linear", numel=16).grad_norm is None


def test_the_size_that_stands_for_not_finite_is_the_widest_that_a_rule_gives_and_every_non_finite_rule_is_known():
    assert WIDEST_DECADES == RULES_WIDEST
    assert {rule.code for rule in rules.ALL if rule.family == "non-finite"} <= NOT_FINITE
    run_rules = {rule.code for rule in rules.ALL if isinstance(rule, AbstractRunRule)}
    assert run_rules >= THERE_OR_NOT
    assert {rule.family for rule in rules.ALL if rule.code in THERE_OR_NOT} == {"signal-cut", "zero-grad"}


def test_a_symptom_has_a_size_only_where_it_has_one():
    sick = {"symptom": "s", "severity": "critical", "where": ()}
    assert Finding(code="EG101", decades=38.5, **sick).size == 38.5, "that is what a gradient of zero has vanished by"
    assert Finding(code="EG101", decades=7.0, **sick).size == 7.0
    assert Finding(code="EG203", decades=38.5, **sick).size == math.inf
    assert Finding(code="EG104", decades=5.0, **sick).size == 5.0
    assert Finding(code="EG108", decades=38.5, **sick).size is None
    assert Finding(code="EG804", decades=0.0, **sick).size is None
    measured = (("EG101", 0.0), ("EG108", 38.5), ("EG201", 38.5))
    trial = Trial(label="untreated", seed=0, steps=1, stage="scout", symptoms=measured)
    assert trial.sizes == (("EG101", 0.0), ("EG201", math.inf))
