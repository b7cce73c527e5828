"""What a finding says of its cures once trials have tried them."""

import pytest

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


@pytest.mark.parametrize(
    ("numbers", "tried"),
    [
        ((10.0,), 0),
        ((0.1, 10.0, 1000.0), 1),  # it comes from the first that goes the same way
        ((10.0, 0.1), 0),
    ],
)
def test_a_number_from_the_readings_is_told_at_the_cure_that_it_came_from(numbers, tried):
    cures = tuple(Cure(treatment="ScaleLearningRate", settings=(("factor", number),)) for number in numbers)
    finding = Finding(code="EG602", symptom="", severity="critical", where=(), cures=cures)
    tailor_made = "ScaleLearningRate(factor=100.0)"

    def told(trials, winner=""):
        (one,) = with_trials((finding,), trials, winner)
        assert {cure.trials for cure in one.cures} - {one.cures[tried].trials} <= {""}
        return one.cures[tried].trials

    assert told([trial(tailor_made, 0.5)], tailor_made) == f"won as {tailor_made}"
    assert told([trial(tailor_made, 0.5)]) == f"tried as {tailor_made}: metric 0.500 after 57 steps"
    both = f"{NORM} + {tailor_made}"
    assert told([trial(both, 0.5)], both) == f"won as {tailor_made} with {NORM}"
    assert told([trial(both, error="the loss is nan")]) == f"failed as {tailor_made} with {NORM}: the loss is nan"


def test_a_bound_from_the_readings_is_told_at_the_cure_that_clips():
    cure = Cure(treatment="ClipGradients", settings=(("max_norm", 1.0),))
    label = "ClipGradients(max_norm=0.02)"
    assert said([trial(label, 0.5)], label, cure) == f"won as {label}"
    tried = [trial("ClipGradients(max_norm=1.0)", 0.1), trial(label, 0.5)]
    assert said(tried, label, cure) == f"won as {label}"
    assert said(tried, "", cure) == "tried: metric 0.100 after 57 steps"


def test_the_cure_of_another_finding_is_no_number_from_the_readings():
    cures = [Cure(treatment="ScaleLearningRate", settings=(("factor", number),)) for number in (10.0, 100.0)]
    findings = [Finding(code="EG602", symptom="", severity="critical", where=(), cures=(cure,)) for cure in cures]
    label = "ScaleLearningRate(factor=100.0)"
    assert [one.cures[0].trials for one in with_trials(findings, [trial(label, 0.5)], label)] == ["", "won"]


@pytest.mark.parametrize("winner", ["", RATE])
def test_the_rest_of_a_finding_is_left_as_it_was(winner):
    cure = Cure(treatment="AddActivation", settings=(("kind", "relu"),), change="one batch cannot show it")
    finding = Finding(code="EG804", symptom="not learning", severity="critical", where=("loss",), cures=(cure,))
    assert with_trials((finding,), [trial(RATE, 0.5)], winner) == (finding,)
