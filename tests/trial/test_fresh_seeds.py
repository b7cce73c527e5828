"""The seeds of a proof, where a disease comes with some seeds only."""

import pytest

from evengrad.nouns import Finding, Record, Trial
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._fresh_seeds import FreshSeeds


class Untreated:
    """Trains nothing: a seed is sick or not, and each is trained once at the most."""

    def __init__(self, *sick):
        self.sick = sick
        self.trained = []

    def __call__(self, seed):
        assert seed not in self.trained
        self.trained.append(seed)
        findings = ("EG301",) if seed in self.sick else ()
        trial = Trial(
            label="untreated", stage="confirmation", seed=seed, steps=10, metric=0.5, findings=findings, losses=(1.0,)
        )
        return Course(trial=trial, record=Record(readings=()), findings=findings)


def paired(seeds, count, *, comes_and_goes=True, may_skip=True):
    before, left_out = [], []
    while len(before) < count:
        seed, known, skipped = seeds.for_pair(before, comes_and_goes=comes_and_goes, may_skip=lambda: may_skip)
        before.append(known if known is not None else seeds.train(seed))
        left_out += skipped
    return [one.trial.seed for one in before], left_out


def fresh(train, each=3):
    seeds = FreshSeeds(2, each, train)
    seeds.train = train
    return seeds


def test_of_a_disease_of_every_seed_the_next_seeds_are_taken_and_nothing_is_trained_for_it():
    train = Untreated(2, 3, 4)
    seeds = FreshSeeds(2, 3, train)
    assert [seeds.for_pair([], comes_and_goes=False, may_skip=lambda: True) for _ in range(3)] == [
        (2, None, []),
        (3, None, []),
        (4, None, []),
    ]
    assert train.trained == []


def test_a_proof_has_two_sick_pairs_where_every_third_seed_is_sick():
    assert paired(fresh(Untreated(4, 7, 10)), 3) == ([2, 4, 7], [3, 5, 6])


@pytest.mark.parametrize(
    ("sick", "pairs"), [([3], [3]), ([4, 5], [4, 5]), ([3, 5], [3, 5]), ([6, 8, 9], [2, 3, 4, 6, 8])]
)
def test_of_any_number_of_pairs_two_are_sick_or_the_only_one(sick, pairs):
    assert paired(fresh(Untreated(*sick), len(pairs)), len(pairs))[0] == pairs


def test_no_more_seeds_are_left_out_than_a_proof_has_pairs():
    seeds = fresh(Untreated())
    _, left_out = paired(seeds, 2)
    assert left_out == [3, 4, 5]


def test_without_room_for_it_no_seed_is_left_out():
    assert paired(fresh(Untreated(5, 6)), 3, may_skip=False) == ([2, 3, 4], [])


def test_what_was_looked_at_for_a_sick_seed_is_paired_and_not_trained_again():
    train = Untreated(4, 5, 6)
    seeds = fresh(train)
    found = seeds.sick()
    assert found is not None
    assert found.trial.seed == 4
    assert paired(seeds, 3) == ([2, 5, 6], [3])
    assert train.trained == [2, 3, 4, 5, 6]


def test_as_many_seeds_are_looked_at_for_a_sick_one_as_a_proof_has():
    train = Untreated(9)
    assert FreshSeeds(2, 3, train).sick() is None
    assert train.trained == [2, 3, 4]


def test_an_untreated_training_that_comes_to_nothing_ends_the_look_and_goes_into_its_pair():
    def lost(seed):
        return Failure(
            trial=Trial(label="untreated", stage="confirmation", seed=seed, steps=0, error="no end after 80 s")
        )

    seeds = FreshSeeds(2, 3, lost)
    assert seeds.sick() is None
    seed, known, skipped = seeds.for_pair([], comes_and_goes=True, may_skip=lambda: True)
    assert (seed, known.trial.error, skipped) == (3, "no end after 80 s", [])


def confirmed(sick_frac, left_out=(), pairs=3):
    """Confirm a treatment that makes each of some sick trainings good."""
    finding = Finding(code="EG301", symptom="dead units", severity="critical", where=("0",))
    confirmation = Confirmation(None, (finding,))
    for seed in range(pairs):
        sizes = {"label": "X()", "stage": "confirmation", "seed": seed, "steps": 10}
        before = Trial(metric=0.5, findings=("EG301",), losses=(1.0 + seed,), **sizes)
        after = Trial(metric=0.95, losses=(0.1 + seed,), **sizes)
        courses = [Course(trial=one, record=Record(readings=()), findings=()) for one in (before, after)]
        confirmation.add(*courses, (0.5, 0.5))
    confirmation.sick_frac = sick_frac
    confirmation.left_out += left_out
    return confirmation.verdict()


def test_three_good_trainings_are_no_cure_where_as_many_would_be_good_untreated_one_time_in_four():
    lucky = confirmed(1 / 3, [3, 5, 6])
    assert lucky.outcome == "improved"
    assert "33% were sick, so that 3 in a row that are not may be luck" in lucky.message
    assert "left out, as not sick untreated: seeds 3, 5, 6" in lucky.message
    assert confirmed(1 / 3, pairs=6).outcome == "cured"


def test_a_disease_of_every_second_seed_that_three_treated_trainings_have_not_is_cured():
    assert confirmed(0.5, [3]).outcome == "cured"
    assert "left out, as not sick untreated: seed 3" in confirmed(0.5, [3]).message
    assert "left out" not in confirmed(1.0).message
