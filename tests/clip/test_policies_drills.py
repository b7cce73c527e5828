"""Steps that are not finite, and gradients of 0, under every policy."""

import numpy as np
import pytest

LARGE = np.float32(3e38)
BAD = {
    "NaN": [1.0, np.nan, 2.0],
    "infinity": [1.0, np.inf, 2.0],
    "both": [np.inf, 1.0, np.nan],
    "an overflow of finite norms": [LARGE, LARGE, LARGE],
}
WHEN = {"first": 0, "warm-up": 2, "steady": 130}


@pytest.fixture(autouse=True)
def no_warnings_of_overflow():
    with np.errstate(over="ignore"):
        yield


def bits(state):
    return {key: value.tobytes() for key, value in state.items()}


def healthy(steps):
    return np.abs(np.random.default_rng(0).normal(1, 0.1, (steps, 3))).astype(np.float32)


def after(policy, norms_TP, given):
    state = policy.init(norms_TP.shape[1])
    for norms_P in norms_TP:
        state = policy(norms_P, state, given).state
    return state


def is_infinity_norm(policy):
    return getattr(policy, "norm_type", 2.0) == float("inf")


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("when", WHEN)
def test_a_bad_step_is_skipped_and_leaves_no_trace(policy, signals, bad, when):
    if bad == "an overflow of finite norms" and is_infinity_norm(policy):
        bad = "infinity"  # the largest element does not overflow
    given, norms_TP = signals(3, loss=2.0), healthy(WHEN[when] + 1)
    state = after(policy, norms_TP[:-1], given)
    decision = policy(np.array(BAD[bad], dtype=np.float32), state, given)
    assert bool(decision.skip[0])
    assert not np.isfinite(decision.norm[0])
    assert (decision.scale == 1).all()
    assert bits(decision.state) == bits(state)
    recovered = policy(norms_TP[-1], decision.state, given)
    assert not bool(recovered.skip[0])
    assert np.isfinite(recovered.scale).all()


@pytest.mark.parametrize("when", WHEN)
def test_a_step_of_zeros_is_neither_clipped_nor_skipped_and_leaves_no_trace(policy, signals, when):
    given = signals(3)
    state = after(policy, healthy(WHEN[when]), given)
    decision = policy(np.zeros(3, dtype=np.float32), state, given)
    assert (float(decision.norm[0]), bool(decision.skip[0])) == (0.0, False)
    assert (decision.scale == 1).all()
    assert bits(decision.state) == bits(state)


@pytest.mark.parametrize(
    "absent",
    [slice(0, 1), slice(0, 150), slice(5, 130)],
    ids=["the first step", "late", "early for long"],
)
def test_a_tensor_that_had_no_gradient_is_not_frozen(policy, signals, absent):
    norms_TP = healthy(330)
    norms_TP[absent, 1] = 0
    given, state, passed, others = signals(3), policy.init(3), [], []
    for norms_P in norms_TP:
        decision = policy(norms_P, state, given)
        state = decision.state
        scale_P = np.broadcast_to(decision.scale, (3,))
        assert np.isfinite(scale_P).all()
        assert all(np.isfinite(value).all() or np.isinf(value).any() for value in state.values())
        passed.append(0.0 if decision.skip else scale_P[1] * norms_P[1])
        others.append(0.0 if decision.skip else scale_P[2] * norms_P[2])
    assert np.median(passed[-100:]) > 5e-3
    assert np.median(others[-100:]) > 1e-2


def test_a_model_whose_gradients_were_all_zero_at_first_is_not_frozen(policy, signals):
    norms_TP = healthy(300)
    norms_TP[:40] = 0
    given, state, passed = signals(3), policy.init(3), []
    for norms_P in norms_TP:
        decision = policy(norms_P, state, given)
        state = decision.state
        passed.append(0.0 if decision.skip else float(np.max(decision.scale * norms_P)))
    assert np.median(passed[-100:]) > 1e-2


def test_a_gradient_that_began_tiny_is_let_through_in_the_end(policy, signals):
    norms_TP = healthy(1350)
    norms_TP[:150, 1] *= 1e-12
    given, state, passed = signals(3), policy.init(3), []
    for norms_P in norms_TP:
        decision = policy(norms_P, state, given)
        state = decision.state
        passed.append(0.0 if decision.skip else np.broadcast_to(decision.scale, (3,))[1] * norms_P[1])
    as_published = getattr(policy, "rewarm_steps", 1) is None or getattr(policy, "clip_factor", 1) < 1
    if as_published and getattr(policy, "mode", "zscore") == "zscore":
        assert np.median(passed[-100:]) < 1e-3  # AdaGC, for tens of thousands of steps; ZClip with a factor, for good
    else:
        assert np.median(passed[-100:]) > 5e-3
