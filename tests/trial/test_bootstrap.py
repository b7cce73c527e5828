"""The interval of a mean, against listing every resample by hand and against a known distribution."""

import random
from itertools import product

import numpy as np
import pytest

from evengrad.trial._bootstrap import interval_of_mean


def by_hand(values):
    means = np.array([np.mean(resample) for resample in product(values, repeat=len(values))])
    return np.quantile(means, 0.025, method="lower"), np.quantile(means, 0.975, method="higher")


@pytest.mark.parametrize("values", [[0.3], [0.1, 0.4], [0.2, 0.25, 0.9], [-1.0, 0.0, 2.0, 5.0]])
def test_few_numbers_are_listed_and_agree_with_quantiles_of_all_resamples(values):
    assert interval_of_mean(values) == pytest.approx(by_hand(values))


def test_many_numbers_give_nearly_the_interval_of_the_normal_distribution():
    draw = random.Random(1)
    values = [draw.gauss(0.0, 1.0) for _ in range(400)]
    low, high = interval_of_mean(values)
    deviation = np.std(values) / 20
    assert low == pytest.approx(np.mean(values) - 1.96 * deviation, abs=0.2 * deviation)
    assert high == pytest.approx(np.mean(values) + 1.96 * deviation, abs=0.2 * deviation)


def test_the_same_numbers_give_the_same_interval():
    values = [0.1 * number for number in range(12)]
    assert interval_of_mean(values) == interval_of_mean(values)
