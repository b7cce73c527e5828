"""Chain against its policies one by one."""

import math

import numpy as np
import pytest

from evengrad.clip import (
    ByBlockRms,
    ByGlobalNorm,
    ByPercentile,
    BySigmaWindow,
    ByTensorNorm,
    ByWeightNorm,
    ByZScore,
    Chain,
    Signals,
)
from evengrad.nouns import SettingError


def test_a_later_policy_sees_what_the_earlier_let_through():
    norms_P = np.array([3.0, 40.0, 0.5], dtype=np.float32)
    decision = Chain(ByTensorNorm(4.0), ByGlobalNorm(2.5))(norms_P, {})
    within = np.array([3.0, 4.0, 0.5])
    np.testing.assert_allclose(decision.scale * norms_P, within * 2.5 / (np.linalg.norm(within) + 1e-6), rtol=1e-6)
    assert decision.norm[0] == pytest.approx(np.linalg.norm(norms_P))


def test_the_order_counts():
    norms_P = np.array([3.0, 40.0], dtype=np.float32)
    one, other = (
        Chain(*policies)(norms_P, {}).scale
        for policies in [(ByTensorNorm(4.0), ByGlobalNorm(2.5)), (ByGlobalNorm(2.5), ByTensorNorm(4.0))]
    )
    assert not np.allclose(one, other)


def test_each_policy_has_its_own_state():
    chain, alone = Chain(ByZScore(), ByGlobalNorm(1.0), ByZScore()), ByZScore()
    state, own = chain.init(1), alone.init(1)
    assert sorted(state) == [f"{place}.{name}" for place in (0, 2) for name in ("mean", "seen", "var")]
    for norm in np.random.default_rng(0).lognormal(1, 1, 50).astype(np.float32):
        state, own = chain(norm.reshape(1), state).state, alone(norm.reshape(1), own).state
    assert all(state[f"0.{name}"] == own[name] for name in own)
    assert state["2.mean"][0] <= 1.0 < state["0.mean"][0]


def test_states_of_more_than_ten_policies_are_not_mixed_up():
    chain = Chain(*(ByZScore(decay=0.5 + place / 100) for place in range(12)))
    state = chain.init(1)
    for norm in (1.0, 2.0, 2.5, 2.0):
        state = chain(np.array([norm], dtype=np.float32), state).state
    alone = ByZScore(decay=0.51)
    own = alone.init(1)
    for norm in (1.0, 2.0, 2.5, 2.0):
        own = alone(np.array([norm], dtype=np.float32), own).state
    assert all(state[f"1.{name}"] == own[name] for name in own)


def test_a_skip_of_one_is_a_skip_of_all_and_only_the_one_remembers_it():
    chain = Chain(ByPercentile(50, window=8), BySigmaWindow(window=8), ByZScore())
    state = chain.init(1)
    for norm in np.random.default_rng(0).normal(1, 0.02, 20).astype(np.float32):
        state = chain(norm.reshape(1), state).state
    chain = Chain(ByZScore(z=100.0), BySigmaWindow(window=8), ByZScore())
    state = {**state, "0.mean": state["2.mean"], "0.var": state["2.var"], "0.seen": state["2.seen"]}
    state.pop("0.history")
    decision = chain(np.array([2.0], dtype=np.float32), state)
    assert bool(decision.skip[0])
    assert decision.scale[0] == 1.0
    changed = {name for name in state if decision.state[name].tobytes() != state[name].tobytes()}
    assert changed == {"1.norms"}


def test_a_step_that_is_skipped_has_the_scale_one_whatever_the_others_wanted():
    chain = Chain(BySigmaWindow(window=4), ByGlobalNorm(0.1))
    state, found = chain.init(1), []
    for norm in (1.0, 1.1, 0.9, 1.0, 50.0):
        decision = chain(np.array([norm], dtype=np.float32), state)
        state = decision.state
        found.append((bool(decision.skip[0]), float(decision.scale[0])))
    assert found[-1] == (True, 1.0)
    assert found[-2] == (False, pytest.approx(0.1, rel=1e-5))


def test_it_needs_what_any_of_them_needs():
    assert Chain(ByBlockRms(), BySigmaWindow()).needs == {"sizes_P", "loss"}
    assert Chain(ByZScore()).needs == frozenset()
    chain = Chain(ByWeightNorm(), ByBlockRms())
    given = Signals(sizes_P=np.ones(2, dtype=np.float32), weight_norms_P=np.ones(2, dtype=np.float32))
    decision = chain(np.array([1.0, 0.001], dtype=np.float32), {}, given)
    np.testing.assert_allclose(decision.scale, [0.01, 1.0], rtol=1e-6)


def test_it_wants_the_norm_that_they_want():
    assert Chain(ByGlobalNorm(1.0, norm_type=1), ByGlobalNorm(2.0, norm_type=1.0)).norm_type == 1.0
    assert Chain(ByZScore(), ByGlobalNorm(1.0)).norm_type == 2.0
    with pytest.raises(SettingError, match="Chain: got policies for the norms 2 and inf, want one norm_type for all"):
        Chain(ByZScore(), ByGlobalNorm(1.0, norm_type=math.inf))


def test_what_is_no_policy_is_refused():
    with pytest.raises(SettingError, match=r"Chain: got 1.0, want policies; .* give the guard a list"):
        Chain(ByZScore(), 1.0)
    with pytest.raises(SettingError, match="Chain: got no policy, want at least one"):
        Chain()


def test_it_is_shown_as_it_is_made_and_compared_by_its_policies():
    chain = Chain(ByTensorNorm(1.0), ByGlobalNorm(2.0))
    assert repr(chain) == "Chain(ByTensorNorm(max_norm=1.0), ByGlobalNorm(max_norm=2.0, norm_type=2.0))"
    assert chain == Chain(ByTensorNorm(1.0), ByGlobalNorm(2.0)) != Chain(ByGlobalNorm(2.0), ByTensorNorm(1.0))
    inner = Chain(chain, ByZScore())
    assert inner.init(1).keys() == {"1.mean", "1.seen", "1.var"}
