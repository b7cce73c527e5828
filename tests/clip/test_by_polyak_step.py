"""ByPolyakStep against its formula, and where it has nothing to say."""

import numpy as np
import pytest

from evengrad.clip import ByPolyakStep, ByZScore, Chain, Signals
from evengrad.nouns import SettingError


def given(loss, lr=0.1):
    return Signals(loss=np.array([loss], dtype=np.float32), lr=np.array([lr], dtype=np.float32))


def scale(norm, loss, lr=0.1, c=1.0, state=None):
    policy = ByPolyakStep(c=c)
    decision = policy(np.array([norm], dtype=np.float32), state or policy.init(1), given(loss, lr))
    return float(decision.scale[0])


@pytest.mark.parametrize("seed", range(20))
def test_the_step_promises_at_most_the_loss(seed):
    rng = np.random.default_rng(seed)
    norm, loss, lr, c = (float(np.float32(10 ** rng.uniform(-2, 2))) for _ in range(4))
    assert scale(norm, loss, lr, c) == pytest.approx(min(1.0, loss / (c * lr * norm**2)), rel=1e-5)


def test_one_step_of_descent_on_a_parabola_never_overshoots_the_minimum_by_more_than_it_was_away():
    for lr in (0.01, 1.0, 3.0, 100.0):
        x = 5.0
        for _ in range(50):
            loss, grad = x * x / 2, x
            x -= lr * scale(abs(grad), loss, lr) * grad
            assert abs(x) <= 5.0
        assert abs(x) < 5.0 * (0.61 if lr == 0.01 else 0.01)


@pytest.mark.parametrize(("loss", "lr"), [(np.nan, 0.1), (np.inf, 0.1), (2.0, 0.0), (2.0, -1.0)])
def test_without_a_loss_or_a_rate_of_plain_descent_nothing_is_bounded(loss, lr):
    assert scale(1e6, loss, lr) == 1.0
    policy = ByPolyakStep()
    decision = policy(np.array([1e6], dtype=np.float32), policy.init(1))
    assert float(decision.scale[0]) == 1.0


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_not_positive_ends_it_for_good(loss):
    policy = ByPolyakStep()
    norms_P = np.array([100.0], dtype=np.float32)
    first = policy(norms_P, policy.init(1), given(1.0))
    assert float(first.scale[0]) < 1
    below = policy(norms_P, first.state, given(loss))
    assert float(below.scale[0]) == 1.0
    assert float(policy(norms_P, below.state, given(1.0)).scale[0]) == 1.0


def test_after_another_policy_it_sees_what_that_lets_through():
    policy = Chain(ByZScore(), ByPolyakStep())
    state = policy.init(1)
    norms = (1.0, 1.0, 1e6)
    for norm in norms:
        decision = policy(np.array([norm], dtype=np.float32), state, given(2.0, 1.0))
        state = decision.state
    let_through = float(decision.scale[0]) * 1e6
    assert let_through == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_setting_out_of_range_is_refused(c):
    with pytest.raises(SettingError, match=r"c: got .*, want a positive number"):
        ByPolyakStep(c=c)
