"""What follows from what a search has found, whether it came to its end or not."""

import pytest
from searched_tasks import task

from evengrad.nouns import Finding, Record, Trial
from evengrad.trial._case import Case
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._course import Course
from evengrad.trial._found import Found
from evengrad.trial._rungs import rungs_of
from evengrad.trial._terms import Terms


def course(label, metric, seed=0):
    trial = Trial(label=label, seed=seed, steps=24, stage="confirmation", metric=metric, losses=(1.0,))
    return Course(trial=trial, record=Record(readings=()), findings=())


SICK = (Finding(code="EG101", symptom="vanishing", severity="critical", where=()),)


def found(*pairs, unchecked=False, findings=(), **settings):
    confirmation = Confirmation(None, ())
    confirmation.unchecked = unchecked
    for seed, (before, after) in enumerate(pairs):
        confirmation.add(course("untreated", before, seed), course("norm", after, seed), (0.1, 0.1))
    case = Case(scout=course("untreated", 0.2), findings=findings, seeds=(0, 1))
    terms = Terms(task=task(), rungs=rungs_of(24), seeds=2, seed=0)
    return Found(terms=terms, case=case, confirmations=(confirmation,), **settings)


def test_a_proof_that_had_all_its_pairs_holds_though_the_search_was_interrupted_later():
    whole = found((0.2, 0.9), (0.2, 0.8), interrupted=True)
    assert whole.verdict().outcome == "improved"
    assert whole.verdict() == found((0.2, 0.9), (0.2, 0.8)).verdict()
    assert whole.winner() is whole.confirmations[0]


@pytest.mark.parametrize(
    "cut",
    [
        found((0.2, 0.9), interrupted=True),
        found((0.2, 0.9), (0.2, 0.8), unchecked=True, interrupted=True),
        found((0.2, 0.2), (0.2, 0.2), findings=SICK, interrupted=True),
        found(interrupted=True),
    ],
    ids=["a pair is missing", "its control is missing", "others had their turn still", "no pair"],
)
def test_what_was_not_proved_until_an_interruption_is_neither_cured_nor_given_up(cut):
    assert cut.verdict().said == "interrupted"
    assert cut.winner() is None


def test_of_finalists_the_one_that_helped_evenly_is_the_best_whenever_it_had_its_turn():
    uneven, even, useless = (
        found(*pairs).confirmations[0]
        for pairs in ([(0.2, 0.9), (0.2, 0.5)], [(0.2, 0.8), (0.2, 0.8)], [(0.2, 0.2), (0.2, 0.2)])
    )
    for order in ((uneven, even, useless), (useless, even, uneven)):
        several = Found(terms=found().terms, case=found().case, confirmations=order)
        assert several.best() is even


def test_without_an_untreated_training_the_verdict_says_why_there_is_none():
    lost = Found(terms=found().terms, lost="no end after 80 s")
    assert lost.verdict().outcome == "not cured"
    assert lost.verdict().message == "the untreated training came to nothing: no end after 80 s"
