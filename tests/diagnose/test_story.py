"""Findings of one run as one story: what is the root, what follows, in which order."""

import itertools

import pytest

from evengrad.diagnose import rules
from evengrad.diagnose._families import BRINGS, FAMILIES, GIVEN
from evengrad.diagnose._story import told_as_a_story, without_idle_causes
from evengrad.nouns import Finding


def finding(code, family, first=0, severity="critical"):
    return Finding(code=code, symptom="", severity=severity, where=("0",), when=(first, 99), family=family)


def story(*findings):
    return [(one.code, one.follows) for one in told_as_a_story(findings)]


def test_a_consequence_stands_below_its_root_whatever_came_in_first():
    parts = finding("A", "init-large"), finding("B", "exploding-depth"), finding("C", "non-finite", 3)
    wanted = [("A", ()), ("B", ("A",)), ("C", ("A",))]
    for order in itertools.permutations(parts):
        assert story(*order) == wanted


def test_what_was_there_before_is_no_consequence():
    assert story(finding("A", "lr-high", 50), finding("B", "dead", 0)) == [("B", ()), ("A", ())]
    assert story(finding("A", "lr-high", 50), finding("B", "dead", 60)) == [("A", ()), ("B", ("A",))]
    assert story(finding("A", "exploding-depth", 0), finding("B", "lr-high", 0)) == [("A", ()), ("B", ("A",))]


def test_what_is_given_with_the_data_precedes_whatever_the_steps_do():
    assert story(finding("A", "input-scale", 80), finding("B", "dead", 0)) == [("A", ()), ("B", ("A",))]


def test_critical_roots_come_first_each_with_what_follows_from_it():
    found = story(
        finding("A", "input-scale", severity="warning"),
        finding("B", "labels"),
        finding("C", "target-scale", severity="warning"),
        finding("D", "dead", 5),
    )
    assert found == [("B", ()), ("D", ("B", "A", "C")), ("A", ()), ("C", ())]


def test_an_unknown_family_neither_explains_nor_is_explained():
    assert story(finding("A", ""), finding("B", "bad-data")) == [("B", ()), ("A", ())]


def test_no_finding_is_lost_or_told_twice_for_any_pair_of_families():
    for one, two in itertools.product(FAMILIES, FAMILIES):
        told = story(finding("A", one, 2), finding("B", two, 1))
        assert sorted(code for code, _ in told) == ["A", "B"]
        assert told[0][1] == ()


def test_every_family_that_is_named_is_known_and_every_rule_has_one():
    named = {*BRINGS, *GIVEN, *(family for brought in BRINGS.values() for family in brought)}
    assert named <= set(FAMILIES)
    assert set(BRINGS) == set(FAMILIES)
    assert {rule.family for rule in rules.ALL} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_but_non_finite_numbers_brings_itself_about(family):
    assert (family in BRINGS[family]) == (family == "non-finite")


def test_non_finite_numbers_are_one_root_the_one_seen_first_and_a_gradient_after_its_loss():
    seen = finding("EG201", "non-finite", 6), finding("EG202", "non-finite", 5), finding("EG203", "non-finite", 5)
    for order in itertools.permutations(seen):
        assert story(*order) == [("EG203", ()), ("EG202", ("EG203",)), ("EG201", ("EG203",))]
    assert story(finding("EG201", "non-finite", 6), finding("EG202", "non-finite", 5))[0] == ("EG202", ())


@pytest.mark.parametrize(
    "family", ["exploding-depth", "exploding-time", "lr-high", "spike", "non-finite", "divergence"]
)
def test_weights_that_are_too_small_blow_nothing_up(family):
    assert story(finding("A", "init-small"), finding("B", family, 5)) == [("A", ()), ("B", ())]
    assert story(finding("A", "init-large"), finding("B", family, 5)) == [("A", ()), ("B", ("A",))]


def test_one_batch_that_throws_the_weights_stands_before_the_learning_rate():
    assert story(finding("A", "lr-high", 99), finding("B", "spike", 99)) == [("B", ()), ("A", ("B",))]
    assert story(finding("A", "lr-high", 98), finding("B", "spike", 99)) == [("A", ()), ("B", ("A",))]
    assert story(finding("A", "norm-drift", 99), finding("B", "lr-high", 99)) == [("B", ()), ("A", ("B",))]


def test_units_alike_before_the_first_step_were_drawn_so():
    assert story(finding("A", "init-small", 9), finding("B", "collapsed", 0)) == [("B", ()), ("A", ("B",))]
    assert story(finding("A", "init-small", 9), finding("B", "collapsed", 1)) == [("A", ()), ("B", ("A",))]


def test_what_would_only_matter_as_a_cause_is_left_out_where_it_explains_nothing():
    def kept(*findings):
        return [(one.code, one.follows) for one in without_idle_causes(told_as_a_story(findings), {"C", "D"})]

    harm = finding("H", "plateau", 5)
    assert kept(harm, finding("C", "init-small")) == [("C", ()), ("H", ("C",))]
    assert kept(harm, finding("C", "spike", 7)) == [("H", ())]
    # a cause of nothing but another idle cause explains nothing either
    assert kept(harm, finding("C", "spike", 7), finding("D", "lr-high", 8)) == [("H", ())]
    # and one that explains something keeps what follows from it
    assert kept(harm, finding("C", "init-large"), finding("D", "lr-high", 8)) == [
        ("C", ()),
        ("H", ("C",)),
        ("D", ("C",)),
    ]
