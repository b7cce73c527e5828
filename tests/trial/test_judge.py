"""The verdict on made-up trials."""

import math
import random
from dataclasses import replace

import pytest

from evengrad.nouns import Finding, Trial
from evengrad.trial._judge import Floor, Standing, judge, ranked


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
    return judge(before, after, SICK, floors=[untrained] * len(before)).outcome


def sick(metric):
    return trial(metric, symptom=6.0, findings=("EG101",), label="untreated")


def test_better_and_healthy_on_every_seed_is_cured():
    assert verdict([sick(0.1), sick(0.2)], [trial(0.9), trial(0.8)]) == "cured"


def test_one_seed_is_never_enough_for_cured():
    assert verdict([sick(0.1)], [trial(0.9)]) == "improved"
    message = judge([sick(0.1)], [trial(0.9)], SICK, floors=[0.1]).message
    assert "one seed that was not used for choosing" in message
    assert "one seed proves little" in message


def test_better_but_still_sick_is_only_improved():
    still = trial(0.9, symptom=4.0, findings=("EG101",))
    assert verdict([sick(0.1), sick(0.1)], [trial(0.9), still]) == "improved"


def test_a_symptom_that_only_moved_is_not_cured_and_the_new_one_is_named():
    moved = trial(0.9, findings=("EG301",))
    told = judge([sick(0.1), sick(0.1)], [moved, moved], SICK, floors=[0.1, 0.1])
    assert told.outcome == "improved"
    assert "but now EG301" in told.message


def test_silent_but_not_better_is_not_cured():
    assert verdict([sick(0.5), sick(0.5)], [trial(0.5), trial(0.5)]) == "not cured"


def test_one_seed_that_is_not_better_is_enough_to_refuse():
    assert verdict([sick(0.5), sick(0.5)], [trial(0.9), trial(0.4)]) == "not cured"


def test_a_gain_smaller_than_what_the_seed_alone_changes_is_noise():
    """The accuracies are those of a network that was trained on labels drawn at random."""
    assert verdict([sick(0.22)] * 3, [trial(0.245), trial(0.275), trial(0.255)]) == "not cured"
    assert verdict([sick(0.4375)] * 3, [trial(0.477), trial(0.586), trial(0.563)]) == "not cured"
    assert verdict([sick(0.22)] * 3, [trial(0.345), trial(0.375), trial(0.355)]) == "cured"


def test_a_gain_below_one_percent_of_the_metric_is_none():
    assert verdict([sick(0.1)] * 2, [trial(0.1000001)] * 2) == "not cured"
    assert verdict([sick(-2.31)] * 2, [trial(-2.30)] * 2, untrained=None) == "not cured"
    assert verdict([sick(-2.31)] * 2, [trial(-2.20)] * 2, untrained=None) == "cured"


def test_no_better_than_an_untrained_model_is_not_cured():
    assert verdict([sick(None)] * 2, [trial(0.1)] * 2, untrained=0.1) == "not cured"
    assert verdict([sick(0.05)] * 2, [trial(0.1)] * 2, untrained=0.1) == "not cured"


def test_a_treated_training_that_fails_is_not_cured():
    assert verdict([sick(0.1)] * 2, [trial(0.9), trial(None)]) == "not cured"


def test_a_failed_untreated_training_is_beaten_by_one_that_learns():
    assert verdict([sick(None)] * 2, [trial(0.9)] * 2) == "cured"
    assert verdict([sick(None)] * 2, [trial(0.9)] * 2, untrained=None) == "not cured", "nothing to compare with"


def test_a_symptom_that_did_not_shrink_is_not_cured():
    assert verdict([trial(0.1, symptom=2.0)] * 2, [trial(0.9, symptom=2.0)] * 2) == "improved"


def test_nothing_confirmed_is_not_cured():
    assert verdict([], []) == "not cured"


@pytest.mark.parametrize(
    ("trials", "winner"),
    [
        ([(trial(0.5), 1), (trial(0.9), 5)], 1),
        ([(trial(0.9), 5), (trial(0.9), 1)], 1),
        ([(trial(0.900), 5), (trial(0.899), 1)], 1),
        ([(trial(None), 1), (trial(0.1), 5)], 1),
        ([(trial(0.9, findings=("EG101",)), 1), (trial(0.9), 5)], 1),
        ([(trial(-1e6), 1), (trial(-2.6), 1), (trial(0.642), 3)], 2),
        ([(trial(0.90), 1), (trial(0.97), 2), (trial(-50.0), 1)], 1),
    ],
    ids=[
        "metric",
        "effort",
        "equal within half a percent",
        "finished",
        "healthy",
        "the best beside a disaster",
        "no tie",
    ],
)
def test_ranking_prefers(trials, winner):
    assert ranked([Standing(trial=one, effort=effort) for one, effort in trials])[0] == winner


def standing(metric, effort=1, *, losses=(), findings=(), same_loss=True):
    return Standing(trial=replace(trial(metric, findings=findings), losses=losses), effort=effort, same_loss=same_loss)


FLAT, FALLING = (0.7,) * 20, (0.7,) * 10 + (0.4,) * 10


def test_where_no_metric_has_moved_yet_the_one_that_learns_is_ahead():
    assert ranked([standing(0.5, losses=FLAT), standing(0.5, 5, losses=FALLING)]) == [1, 0]
    other = standing(0.5, 5, losses=FALLING, same_loss=False)
    assert ranked([standing(0.5, losses=FLAT), other]) == [0, 1], "another loss says nothing"


def test_who_has_only_learnt_the_mean_faster_has_shown_nothing():
    """R2 of a regression: -7 and -0.1 are both worse than a constant, which the untreated training reaches."""
    slow, fast = standing(-7.0, losses=(9.0,) * 20), standing(-0.1, findings=("EG103",), losses=(2.0,) * 20)
    assert ranked([fast, slow]) == [0, 1]
    assert ranked([fast, slow], Floor(metric=0.005, loss=1.5)) == [1, 0]


def test_metrics_of_those_whose_loss_is_a_constants_are_all_the_same():
    flat = replace(standing(0.1, findings=("EG103",)), learns=False)
    other = replace(standing(-9.0), learns=False)
    assert ranked([flat, other]) == [1, 0], "fewer findings; R2 of -9 and of 0.1 are both nothing"
    assert ranked([flat, other, standing(0.2)])[0] == 2
    lucky = replace(standing(0.975, losses=(34.0,) * 20), learns=False)
    flats = [replace(standing(metric, losses=(200.0,) * 20), learns=False) for metric in (-9.0, -5.0)]
    learner = standing(0.86, losses=(3.0,) * 20)
    assert ranked([*flats, lucky, learner], Floor(metric=-8.3, loss=188.0))[0] == 3, "one lucky one lifts no other"


def test_of_those_that_learn_nothing_only_a_double_loss_is_behind_and_that_they_learn_nothing_is_no_finding():
    near = replace(standing(0.1, losses=(1.0,) * 20), learns=False)
    far = replace(standing(0.1, losses=(1.3,) * 20, findings=("EG804",)), learns=False)
    furthest = replace(standing(0.1, losses=(3.0,) * 20), learns=False)
    assert ranked([far, near, furthest]) == [0, 1, 2]
    assert ranked([furthest, near])[0] == 1
    learner = standing(0.1, losses=(0.9,) * 20)
    assert ranked([far, near, learner])[0] == 2


def test_among_those_that_have_shown_nothing_the_larger_change_has_more_hope_when_it_is_time():
    small, large = standing(0.1, 1), standing(0.1, 5)
    assert ranked([small, large], Floor(metric=0.2)) == [0, 1]
    assert ranked([small, large], Floor(metric=0.2), bold=True) == [1, 0]
    assert ranked([standing(0.9, 5), standing(0.9, 1)], Floor(metric=0.2), bold=True) == [1, 0], "both have"


def test_a_verdict_carries_the_mean_gain_and_its_interval():
    told = judge([sick(0.1), sick(0.2), sick(0.3)], [trial(0.9), trial(0.9), trial(0.9)], SICK, floors=[0.0] * 3)
    assert told.gain == pytest.approx(0.7)
    low, high = told.gain_interval
    assert 0.6 <= low < 0.7 < high <= 0.8


def test_without_a_finding_before_nothing_is_cured_only_improved():
    assert judge([trial(0.1)] * 3, [trial(0.9)] * 3, (), floors=[0.0] * 3).outcome == "improved"


def well(metric):
    return trial(metric, label="untreated")


def test_a_disease_of_some_seeds_is_cured_where_it_was_and_costs_nothing_where_it_was_not():
    before = [sick(0.5), well(0.84), sick(0.5)]
    assert verdict(before, [trial(0.85), trial(0.84), trial(0.86)]) == "cured"
    assert verdict(before, [trial(0.85), trial(0.70), trial(0.86)]) == "not cured"
    assert verdict([sick(0.5), well(0.84), well(0.84)], [trial(0.85), trial(0.84), trial(0.84)]) == "not cured", "one"
    everywhere = [trial(0.98), trial(0.99), trial(0.98)]
    assert verdict([sick(0.1), well(0.69), well(0.67)], everywhere) == "improved", "all gain"


def losing(metric, *losses):
    return replace(sick(metric), losses=losses)


def test_a_gain_no_larger_than_what_sick_trainings_differ_by_is_no_cure_with_three_seeds():
    """Untreated, the first three seeds reached 0.85 now and then: three more were all as good as the treated ones."""
    before, after = [sick(0.8), sick(0.667), sick(0.67)], [trial(0.817), trial(0.817), trial(0.82)]
    told = judge(before, after, SICK, floors=[0.33] * 3)
    assert told.outcome == "improved"
    assert "differs by as much from seed to seed" in told.message
    assert verdict([sick(0.66), sick(0.667), sick(0.67)], after) == "cured"
    assert verdict([sick(-3e5), sick(-2e6), sick(-0.9)], after) == "cured", "what is below a fresh model is the same"
    healthy_too = [trial(0.8, label="untreated"), sick(0.667), sick(0.67)]
    assert verdict(healthy_too, after) == "cured", "only the sick ones count"


def test_a_metric_that_is_missing_though_the_training_went_through_is_nothing_to_compare_with():
    missing = losing(None, 1.0, 0.9)
    told = judge([missing] * 3, [trial(0.3)] * 3, SICK, floors=[None] * 3)
    assert told.outcome == "not cured"
    diverged = losing(None, 1.0, float("nan"))
    assert judge([diverged] * 3, [trial(0.9)] * 3, SICK, floors=[0.1] * 3).outcome == "cured"


def test_seeds_that_all_give_the_same_training_are_one_seed():
    same = [replace(trial(0.9, seed=seed), losses=(1.0, 0.5)) for seed in range(3)]
    told = judge([sick(0.1)] * 3, same, SICK, floors=[0.1] * 3)
    assert told.outcome == "improved"
    assert "prove no more than one" in told.message
    others = [replace(one, losses=(1.0, 0.5 + seed)) for seed, one in enumerate(same)]
    assert judge([sick(0.1)] * 3, others, SICK, floors=[0.1] * 3).outcome == "cured"


def test_what_shuffled_targets_reach_too_is_no_gain():
    after = [trial(0.30), trial(0.29), trial(0.30)]
    before = [sick(0.25)] * 3
    assert judge(before, after, SICK, floors=[0.25] * 3).outcome == "cured"
    told = judge(before, after, SICK, floors=[0.25] * 3, control=[trial(0.28), trial(0.30), trial(0.27)])
    assert told.outcome == "not cured"
    assert "no better than the same training on shuffled targets" in told.message
    low = [trial(0.2), trial(0.21), trial(0.2)]
    assert judge(before, after, SICK, floors=[0.25] * 3, control=low).outcome == "cured"


def test_no_seed_is_sick_and_nothing_is_cured():
    assert verdict([well(0.5)] * 3, [trial(0.9)] * 3) == "improved"


def test_more_seeds_do_not_make_it_harder_to_show_the_same_gain():
    draw = random.Random(0)
    shown = dict.fromkeys((3, 5, 10, 20), 0)
    for _ in range(60):
        for count in shown:
            after = [trial(0.3 + draw.gauss(0.0, 0.03)) for _ in range(count)]
            shown[count] += verdict([sick(0.2)] * count, after) == "cured"
    assert shown[5] >= 40
    assert shown[20] >= shown[10] >= 50


def test_more_seeds_find_no_gain_where_there_is_none():
    draw = random.Random(0)
    found = 0
    for _ in range(100):
        before, after = ([0.25 + draw.gauss(0.0, 0.03) for _ in range(10)] for _ in range(2))
        found += verdict([sick(value) for value in before], [trial(value) for value in after]) != "not cured"
    assert found <= 3


def test_a_huge_metric_is_said_in_few_digits():
    assert len(judge([sick(1e300)] * 2, [trial(2e305)] * 2, SICK, floors=[0.0] * 2).message) < 300


def test_a_gain_of_a_quarter_of_the_metric_on_every_seed_is_one_however_unlike_they_are():
    assert verdict([sick(0.11)] * 3, [trial(0.50), trial(1.0), trial(1.0)]) == "cured"
    assert verdict([sick(0.11)] * 3, [trial(0.30), trial(1.0), trial(1.0)]) == "not cured"


def test_one_training_that_diverged_is_no_disease_of_two_seeds():
    diverged = replace(trial(None, symptom=6.0, findings=("EG101",)), losses=(float("nan"),))
    healthy = [trial(0.9), trial(0.9)]
    assert verdict([diverged, *healthy], [trial(0.9)] * 3) == "not cured"
    assert verdict([sick(0.1), trial(0.6), trial(0.7)], [trial(0.9)] * 3) == "improved"
    assert verdict([sick(0.1), sick(0.2), trial(0.9)], [trial(0.9)] * 3) == "cured"


def found(code, symptom):
    return (Finding(code=code, symptom=symptom, severity="critical", where=("loss",)),)


def test_a_symptom_without_a_size_is_given_none():
    """Rules of whole runs leave no size in a trial, and a rule that is or is not leaves zero."""
    for measured in ((), (("EG501", 0.0),)):
        before = [replace(sick(0.1), symptoms=measured, findings=("EG804",))] * 2
        after = [replace(trial(0.9), symptoms=measured)] * 2
        codes = (*found("EG804", "not learning"), *found("EG501", "softmax twice"))
        told = judge(before, after, codes, floors=[0.1] * 2)
        assert told.outcome == "cured"
        assert "symptom" not in told.message
        assert "decades" not in told.message
        assert told.symptoms_before == told.symptoms_after == (None, None)


def test_what_is_not_finite_is_said_to_be_and_not_so_many_decades():
    lost = replace(sick(None), symptoms=(("EG203", 38.5), ("EG101", 2.0)), losses=(float("nan"),))
    told = judge([lost] * 2, [trial(0.9)] * 2, (*SICK, *found("EG203", "non-finite loss")), floors=[0.1] * 2)
    assert "largest symptom not finite before, none after" in told.message
    assert told.symptoms_before == (math.inf, math.inf)
    some = replace(lost, symptoms=(("EG101", 2.0),))
    told = judge([lost, some], [trial(0.9, symptom=1.0)] * 2, (*SICK, *found("EG203", "x")), floors=[0.1] * 2)
    assert "not finite on 1 of 2 seeds, else 2.0 decades before, 1.0 decades after" in told.message


def test_a_treated_training_that_ended_before_it_was_measured_has_no_symptom_of_zero():
    gone = replace(trial(None), symptoms=())
    told = judge([sick(0.1)] * 2, [gone] * 2, SICK, floors=[0.1] * 2)
    assert "largest symptom 6.0 decades before, not measured after" in told.message
    assert told.symptoms_after == (None, None)


def test_a_verdict_carries_the_floor_and_names_it_where_only_the_floor_was_not_beaten():
    told = judge([sick(0.05)] * 2, [trial(0.11)] * 2, SICK, floors=[0.12] * 2)
    assert told.outcome == "not cured"
    assert told.metric_fresh == (0.12, 0.12)
    assert told.gain == pytest.approx(-0.01)
    assert "not clearly better than fresh models, untrained, which reach 0.120" in told.message
    failed = judge([losing(None, 1.0, float("nan"))] * 2, [trial(0.11)] * 2, SICK, floors=[0.12] * 2)
    assert "which reach 0.120" in failed.message


def test_a_floor_that_decides_nothing_is_not_in_the_message():
    for before, after, floor in ((0.5, 0.4, 0.45), (0.5, 0.4, 0.6), (0.05, 0.9, 0.12), (0.05, 0.9, None)):
        assert "fresh" not in judge([sick(before)] * 2, [trial(after)] * 2, SICK, floors=[floor] * 2).message
    lost = judge([sick(0.05)] * 2, [trial(0.9), trial(0.0)], SICK, floors=[0.12] * 2)
    assert lost.outcome == "not cured"
    assert "fresh" not in lost.message, "one seed beats it, and the other is worse than untreated"
