"""How far candidates are trained: never for more than what was promised."""

import pytest

from evengrad.trial._rungs import FEWEST_STEPS, cost, rungs_of


@pytest.mark.parametrize("steps", [1, 2, 7, 22, 60, 100, 440, 1800, 100_000])
def test_choosing_costs_three_trainings_at_most(steps):
    rungs = rungs_of(steps)
    most = 3 * steps if steps >= 2 * FEWEST_STEPS else 4 * steps
    assert rungs.most_steps <= most + 3
    assert list(rungs.lengths) == sorted(rungs.lengths)
    assert list(rungs.places) == sorted(rungs.places, reverse=True)
    assert rungs.lengths[-1] <= steps


def test_the_cost_counts_each_step_once_and_the_last_few_on_two_seeds():
    # twelve for 10, four of them for 30 more, two refinements for 40, and four on another seed for 40
    assert cost((10, 40, 80), (12, 4, 2), 2) == 12 * 10 + 4 * 30 + 2 * 40 + 4 * 40
    # or two for 200 more and on another seed for 40, which is dearer
    assert cost((10, 40, 240), (12, 4, 2), 0) == 12 * 10 + 4 * 30 + 2 * 200 + 2 * 40


def test_an_allowance_is_kept_where_one_candidate_fits():
    rungs = rungs_of(1000, 800)
    assert rungs.most_steps <= 800
    assert rungs.places[0] >= 1
