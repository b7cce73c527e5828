"""What a finding says of its cures once trials have tried them."""

import pytest
import torch
from searched_tasks import deep, task
from torch import nn

import evengrad
from evengrad.nouns import Cure, Finding, Trial
from evengrad.trial._trained import with_trials

RATE, NORM = "ScaleLearningRate(factor=10.0)", "AddNormalization(kind='auto')"


def trial(label, metric=None, *, steps=57, seed=0, stage="halving 1", error=""):
    return Trial(label=label, seed=seed, steps=steps, stage=stage, metric=metric, error=error)


def said(trials, winner="", cure=Cure(treatment="ScaleLearningRate", settings=(("factor", 10.0),))):  # noqa: B008
    finding = Finding(code="EG804", symptom="not learning", severity="critical", where=(), cures=(cure,))
    return with_trials((finding,), trials, winner)[0].cures[0].trials


def test_a_cure_that_no_trial_held_says_nothing():
    assert said([trial("untreated", 0.1), trial(NORM, 0.5), trial("ScaleLearningRate(factor=0.01)", 0.5)]) == ""
    assert said([trial(f"{RATE} + {NORM}, targets shuffled", 0.1, stage="control")]) == ""


def test_a_cure_that_won_says_so_and_with_what():
    trials = [trial(RATE, error="the loss is nan"), trial(f"{NORM} + {RATE}", 0.9, stage="confirmation")]
    assert said(trials, winner=f"{NORM} + {RATE}") == f"won with {NORM}"
    assert said(trials, winner=RATE) == "won"
    assert said(trials, winner="") == "failed: the loss is nan"


def test_a_cure_that_others_have_beaten_tells_how_far_it_came_alone():
    trials = [trial(f"{NORM} + {RATE}", 0.9, steps=225), trial(RATE, 0.2), trial(RATE, 0.4, steps=225)]
    assert said(trials, winner=NORM) == "tried: metric 0.400 after 225 steps"
    trials += [trial(RATE, metric, steps=900, seed=seed, stage="confirmation") for seed, metric in ((2, 0.5), (3, 0.7))]
    assert said(trials, winner=NORM) == "tried: metric 0.600 (0.500 to 0.700) after 900 steps on 2 seeds"


def test_a_cure_that_was_tried_only_with_others_tells_of_the_best_of_these():
    trials = [
        trial(f"Reinitialize(scheme='auto') + {RATE}", error="the loss is nan", steps=900),
        trial(f"{NORM} + {RATE}", 0.3),
        trial(f"AddResidual(norm='auto') + {RATE}", 0.4),
    ]
    assert said(trials) == "tried with AddResidual(norm='auto'): metric 0.400 after 57 steps"
    assert said(trials[:1]) == "failed with Reinitialize(scheme='auto'): the loss is nan"


def test_a_trial_that_ctrl_c_has_ended_has_not_failed():
    assert said([trial(RATE, error="interrupted after 30 steps")]) == "begun: interrupted after 30 steps"


def test_a_cure_is_known_by_what_its_settings_come_to():
    assert said([trial("Reinitialize(scheme='auto')", 0.5)], cure=Cure(treatment="Reinitialize")).startswith("tried")


def test_a_cure_with_a_number_from_the_readings_stands_beside_the_usual_ones_and_tells_of_itself():
    """Steps of a hundred thousandth of the weights ask for a hundred times the rate; the usual guess is ten."""
    small = evengrad.repair(
        task(deep(nn.Tanh, 1), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-5), steps=40),
        engine="here",
        seeds=2,
    )
    cures = {cure.label: cure for finding in small.findings for cure in finding.cures}
    alone = {trial.label for trial in small.trials if trial.label.startswith("ScaleLearningRate(")}
    alone = {label for label in alone if " + " not in label}
    assert alone - {f"ScaleLearningRate(factor={factor})" for factor in (0.01, 0.1, 10.0, 100.0)}, "from the readings"
    assert all(cures[label].trials for label in alone)
    assert any(cure.trials.startswith("won") for cure in cures.values())


@pytest.mark.parametrize("winner", ["", RATE])
def test_the_rest_of_a_finding_is_left_as_it_was(winner):
    cure = Cure(treatment="AddActivation", settings=(("kind", "relu"),), change="one batch cannot show it")
    finding = Finding(code="EG804", symptom="not learning", severity="critical", where=("loss",), cures=(cure,))
    assert with_trials((finding,), [trial(RATE, 0.5)], winner) == (finding,)
