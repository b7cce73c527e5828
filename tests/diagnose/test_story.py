"""Findings of one run as one story: what is the root, what follows, in which order."""

import itertools

import pytest

from evengrad.diagnose import rules
from evengrad.diagnose._families import BRINGS, FAMILIES, GIVEN
from evengrad.diagnose._story import told_as_a_story
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
def test_no_family_brings_itself_about(family):
    assert family not in BRINGS[family]
