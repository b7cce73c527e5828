"""The verdict on made-up trials."""

import pytest

from evengrad.nouns import Finding, Trial
from evengrad.trial._judge import judge, ranked


def trial(metric, *, symptom=0.0, findings=(), seed=0, label="X()"):
    return Trial(
        label=label,
        seed=seed,
        steps=10,
        stage="confirmation",
        metric=metric,
        symptoms=(("EG101", symptom),),
        findings=findings,
    )


SICK = (Finding(code="EG101", symptom="vanishing with depth", severity="critical", where=("0",)),)


def verdict(before, after, untrained=0.1):
    return judge(before, after, SICK, untrained=untrained).outcome


def sick(metric):
    return trial(metric, symptom=6.0, findings=("EG101",), label="untreated")


def test_better_and_healthy_on_every_seed_is_cured():
    assert verdict([sick(0.1), sick(0.2)], [trial(0.9), trial(0.8)]) == "cured"


def test_better_but_still_sick_is_only_improved():
    assert verdict([sick(0.1)], [trial(0.9, symptom=4.0, findings=("EG101",))]) == "improved"


def test_silent_but_not_better_is_not_cured():
    assert verdict([sick(0.5)], [trial(0.5)]) == "not cured"


def test_one_seed_that_is_not_better_is_enough_to_refuse():
    assert verdict([sick(0.5), sick(0.5)], [trial(0.9), trial(0.4)]) == "not cured"


def test_no_better_than_an_untrained_model_is_not_cured():
    assert verdict([sick(None)], [trial(0.1)], untrained=0.1) == "not cured"
    assert verdict([sick(0.05)], [trial(0.1)], untrained=0.1) == "not cured"


def test_a_treated_training_that_fails_is_not_cured():
    assert verdict([sick(0.1)], [trial(None)]) == "not cured"


def test_a_failed_untreated_training_is_beaten_by_one_that_learns():
    assert verdict([sick(None)], [trial(0.9)]) == "cured"


def test_a_symptom_that_did_not_shrink_is_not_cured():
    assert verdict([trial(0.1, symptom=2.0)], [trial(0.9, symptom=2.0)]) == "improved"


def test_nothing_confirmed_is_not_cured():
    assert verdict([], []) == "not cured"


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ((trial(0.5), 1), (trial(0.9), 5), 1),
        ((trial(0.9), 5), (trial(0.9), 1), 1),
        ((trial(0.900), 5), (trial(0.899), 1), 1),
        ((trial(None), 1), (trial(0.1), 5), 1),
        ((trial(0.9, findings=("EG101",)), 1), (trial(0.9), 5), 1),
    ],
    ids=["metric", "effort", "equal within 2 % of the gain", "finished", "healthy"],
)
def test_ranking_prefers(first, second, winner):
    assert ranked([first, second], untrained=0.1)[0] == winner
