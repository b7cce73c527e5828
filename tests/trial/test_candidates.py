"""What is worth a trial, and what goes with what."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import rules
from evengrad.nouns import Cure, Finding, Task
from evengrad.treat import (
    ALL,
    ClipGradients,
    Combined,
    Reinitialize,
    ScaleLearningRate,
    SetOptimizer,
    SwapActivation,
    SwapOptimizer,
    make,
)
from evengrad.trial._candidates import ORDER, candidates, combined, proposed

INPUTS = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def task():
    return Task(
        model=lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=5e-3),
        loss=functional.cross_entropy,
        train=lambda: [(INPUTS, torch.arange(8) % 4)],
        validate=lambda model: 0.0,
        steps=8,
    )


def finding(*cures, code="EG101", follows=()):
    return Finding(code=code, symptom="", severity="critical", where=("0",), cures=cures, follows=follows)


def tried(name, *, removes=False, relief=3.0, brings=(), **settings):
    return Cure(
        treatment=name,
        settings=tuple(settings.items()),
        tried=True,
        before_decades=6.0,
        after_decades=6.0 - relief,
        removes=removes,
        brings=brings,
    )


def labels(*findings):
    return [treatment.name for treatment in proposed(findings)]


def test_every_treatment_has_its_place_among_others():
    assert {kind.__name__ for kind in ALL} == set(ORDER)


@pytest.mark.parametrize("rule", rules.ALL, ids=lambda rule: rule.code)
def test_every_cure_that_a_rule_proposes_is_a_treatment_that_can_be_made(rule):
    made = [make(cure.treatment, cure.settings) for cure in rule.cures()]
    assert [one.name for one in made] == [cure.treatment for cure in rule.cures()]
    pairs = zip(made, rule.cures(), strict=True)
    assert all(dict(cure.settings).items() <= dict(one.settings).items() for one, cure in pairs)


def test_what_removes_the_symptom_on_the_batch_comes_before_what_only_helps():
    found = finding(tried("AddResidual"), tried("Reinitialize", removes=True), Cure(treatment="ClipGradients"))
    assert labels(found) == ["Reinitialize", "ClipGradients", "AddResidual"]


def test_a_cure_that_brings_another_finding_is_not_taken_for_proven():
    found = finding(tried("AddResidual", removes=True, brings=("EG301",)), tried("Reinitialize", removes=True))
    assert labels(found) == ["Reinitialize", "AddResidual"]


def test_a_treatment_that_helped_too_little_is_left_out():
    assert labels(finding(tried("AddResidual", relief=0.1))) == []


def test_each_finding_gives_its_first_cure_before_any_gives_its_second():
    first = finding(Cure(treatment="ClipGradients"), Cure(treatment="ScaleLearningRate"))
    second = finding(Cure(treatment="NormalizeInput"), Cure(treatment="SwapOptimizer"), code="EG701")
    assert labels(first, second) == ["ClipGradients", "NormalizeInput", "ScaleLearningRate", "SwapOptimizer"]


def test_a_root_comes_before_what_follows_from_it():
    follower = finding(Cure(treatment="ClipGradients"), follows=("EG701",))
    root = finding(Cure(treatment="NormalizeInput"), code="EG701")
    assert labels(follower, root) == ["NormalizeInput", "ClipGradients"]


def test_what_does_not_apply_takes_no_place(task):
    wanted = [SwapActivation(to="relu"), Reinitialize(), ClipGradients(max_norm=1.0)]  # it has relu already
    chosen = [one.treatment.name for one in candidates(task, wanted, seed=0, most=2)]
    assert chosen == ["Reinitialize", "ClipGradients"]


def test_what_is_known_is_not_tried_again(task):
    chosen = candidates(task, [Reinitialize()], seed=0, most=2, known=frozenset({Reinitialize().label}))
    assert chosen == []


def test_the_function_comes_before_the_weights_that_are_drawn_for_it():
    (pair,) = combined(Reinitialize(), [SwapActivation(to="tanh")])
    assert [part.name for part in pair.treatments] == ["SwapActivation", "Reinitialize"]


def test_a_combination_takes_a_third_part():
    pair = Combined((SwapActivation(to="tanh"), Reinitialize()))
    (triple,) = combined(pair, [ClipGradients(max_norm=1.0)])
    assert [part.name for part in triple.treatments] == ["SwapActivation", "Reinitialize", "ClipGradients"]


def test_two_of_a_name_and_settings_of_an_optimizer_that_goes_are_not_combined():
    assert combined(SwapActivation(to="tanh"), [SwapActivation(to="relu")]) == []
    assert combined(SwapOptimizer(), [SetOptimizer(eps=1e-8)]) == []


def test_a_rate_is_followed_while_it_helps():
    (faster,) = combined(ScaleLearningRate(factor=10.0), [ScaleLearningRate(factor=10.0)])
    assert faster == ScaleLearningRate(factor=100.0)
    assert combined(ScaleLearningRate(factor=10.0), [ScaleLearningRate(factor=0.1)]) == []
    base = Combined((Reinitialize(), ScaleLearningRate(factor=0.1)))
    (slower,) = combined(base, [ScaleLearningRate(factor=0.1)])
    assert slower.treatments[-1] == ScaleLearningRate(factor=0.01)


def test_another_optimizer_goes_before_the_rate_that_is_scaled():
    (pair,) = combined(ScaleLearningRate(factor=10.0), [SwapOptimizer()])
    assert [part.name for part in pair.treatments] == ["SwapOptimizer", "ScaleLearningRate"]


def test_a_third_number_for_the_same_treatment_waits_for_the_others():
    rates = [Cure(treatment="ScaleLearningRate", settings=(("factor", factor),)) for factor in (0.1, 0.01, 0.001)]
    names = labels(finding(*rates, Cure(treatment="ClipGradients")))
    assert names == ["ScaleLearningRate", "ScaleLearningRate", "ClipGradients", "ScaleLearningRate"]
