"""Every policy on every array library, and what all of them promise."""

from dataclasses import replace

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.clip import (
    ALL,
    AbstractPolicy,
    ByGlobalNorm,
    ByPercentile,
    BySigmaWindow,
    ByZScore,
    Decision,
    Signals,
    policy_of,
    total_norm,
)
from evengrad.nouns import SettingError

READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
COUNT = 7


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in READS, f"{func.name()} reads a value on the host"
        return func(*args, **(kwargs or {}))


def hard_norms(steps=200, count=COUNT, seed=3):
    rng = np.random.default_rng(seed)
    norms_TP = rng.lognormal(0, 0.4, (steps, count)).astype(np.float32)
    norms_TP[40] *= 30
    norms_TP[90, 2] *= 1e4
    norms_TP[5, 1], norms_TP[60, 0], norms_TP[61, 3] = np.nan, np.inf, np.nan
    norms_TP[10] = norms_TP[70] = 0
    norms_TP[:30, 6] = norms_TP[50:55, 5] = 0
    norms_TP[100, 4] = 1e19
    norms_TP[120] = 3e38
    norms_TP[140:] *= 1.7
    return norms_TP


def hard_losses(steps=200):
    losses_T = np.random.default_rng(4).normal(2, 0.1, steps).astype(np.float32)
    losses_T[[20, 80]] = np.nan
    losses_T[[45, 130]] = np.inf, 40.0
    losses_T[150:] -= 3
    return losses_T


@pytest.fixture(autouse=True)
def no_warnings_of_overflow():
    with np.errstate(over="ignore"):  # a norm above 3.4e38 is part of the drill
        yield


def ran(policy, signals, array, *, step=None, every=1):
    """Run a policy over the hard norms; `step` replaces it, as compiled."""
    norms_TP, losses_T = hard_norms()[::every], hard_losses()[::every]
    state, rows = policy.init(COUNT, like=array(norms_TP[0])), []
    lengths = {name: value.shape for name, value in state.items()}
    for norms_P, loss in zip(norms_TP, losses_T, strict=True):
        given = signals(COUNT, array)
        given = replace(given, loss=array(np.array([loss])))
        decision = (step or policy)(array(norms_P), state, given)
        state = decision.state
        assert {name: value.shape for name, value in state.items()} == lengths
        assert all("float32" in str(value.dtype) for value in (decision.norm, decision.scale, *state.values()))
        assert decision.norm.shape == decision.skip.shape == (1,)
        values = [decision.norm, decision.scale, *(state[key] for key in sorted(state))]
        rows.append(np.concatenate([np.asarray(decision.skip), *(np.asarray(value) for value in values)]))
    return np.array(rows)


@pytest.fixture
def on_numpy(policy, signals):
    return ran(policy, signals, np.asarray)


def test_numpy_and_the_strict_array_library_agree(policy, signals, on_numpy):
    np.testing.assert_array_equal(ran(policy, signals, array_api_strict.asarray), on_numpy)
    assert 3 <= on_numpy[:, 0].sum() < 40


def test_numpy_and_torch_agree(policy, signals, on_numpy):
    np.testing.assert_allclose(ran(policy, signals, torch.tensor), on_numpy, rtol=1e-6, atol=1e-6)


def test_numpy_and_jax_agree(policy, signals):
    wanted = ran(policy, signals, np.asarray, every=10)  # the bad steps are among them; not compiled it takes its time
    np.testing.assert_allclose(ran(policy, signals, jnp.asarray, every=10), wanted, rtol=1e-6, atol=1e-6)


def test_numpy_and_compiled_jax_agree(policy, signals, on_numpy):
    @jax.jit
    def compiled(norms_P, state, loss, lr, sizes_P, weight_norms_P):
        given = Signals(loss=loss, lr=lr, sizes_P=sizes_P, weight_norms_P=weight_norms_P)
        decision = policy(norms_P, state, given)
        return decision.norm, decision.scale, decision.skip, decision.state

    def step(norms_P, state, given):
        norm, scale, skip, state = compiled(norms_P, state, given.loss, given.lr, given.sizes_P, given.weight_norms_P)
        return Decision(norm=norm, scale=scale, skip=skip, state=state)

    np.testing.assert_allclose(ran(policy, signals, jnp.asarray, step=step), on_numpy, rtol=1e-6, atol=1e-6)


def test_every_policy_has_an_example(examples):
    assert {type(policy) for policy in examples} == set(ALL)


def test_scales_are_positive_and_one_for_all_or_one_per_parameter(policy, signals):
    given, state, shapes = signals(COUNT), policy.init(COUNT), set()
    for norms_P in hard_norms():
        decision = policy(norms_P, state, given)
        state = decision.state
        shapes.add(decision.scale.shape)
        assert np.isfinite(decision.scale).all()
        assert (decision.scale > 0).all()
        assert not decision.skip or (decision.scale == 1).all()
    assert shapes in ({(1,)}, {(COUNT,)})


def test_other_float_dtypes_are_taken_in_float32(policy, signals):
    wide = policy(np.array([1.0, 2.0]), policy.init(2), signals(2))
    narrow = policy(np.array([1.0, 2.0], dtype=np.float32), policy.init(2), signals(2))
    assert wide.norm.dtype == wide.scale.dtype == np.float32
    assert wide.norm == narrow.norm
    assert (wide.scale == narrow.scale).all()


def test_the_inputs_are_not_changed_and_the_answer_is_the_same_again(policy, signals):
    norms_TP, given = hard_norms()[:60], signals(COUNT, loss=2.0)
    state = policy.init(COUNT)
    for norms_P in norms_TP:
        before = {key: value.copy() for key, value in state.items()}
        copy = norms_P.copy()
        decision, again = policy(norms_P, state, given), policy(norms_P, state, given)
        np.testing.assert_array_equal(norms_P, copy)
        np.testing.assert_array_equal(decision.scale, again.scale)
        for key, value in before.items():
            np.testing.assert_array_equal(state[key], value)
            np.testing.assert_array_equal(decision.state[key], again.state[key])
        state = decision.state


def test_nothing_is_read_on_the_host(policy, signals):
    norms_P, given = torch.rand(5), signals(5, torch.tensor, loss=1.0)
    state = policy.init(5, like=norms_P)
    with NoReads():
        for _ in range(30):
            state = policy(norms_P, state, given).state


def test_a_state_that_went_through_a_checkpoint_goes_on_as_the_first_would_have(policy, signals):
    norms_TP, given = hard_norms(), signals(COUNT, loss=1.0)
    state = policy.init(COUNT)
    for norms_P in norms_TP[:95]:
        state = policy(norms_P, state, given).state
    loaded = {key: np.asarray(torch.tensor(value.tolist(), dtype=torch.float32)) for key, value in state.items()}
    for norms_P in norms_TP[95:]:
        first, second = policy(norms_P, state, given), policy(norms_P, loaded, given)
        np.testing.assert_array_equal(first.scale, second.scale)
        np.testing.assert_array_equal(first.skip, second.skip)
        state, loaded = first.state, second.state


def test_state_arrays_are_one_number_per_parameter_or_of_fixed_length(policy):
    lengths = [{key: len(value) for key, value in policy.init(count).items()} for count in (2, 3, 11)]
    for key, two in lengths[0].items():
        three, eleven = lengths[1][key], lengths[2][key]
        assert (two, three, eleven) == (2, 3, 11) or two == three == eleven


@pytest.mark.parametrize("seed", range(2))
def test_the_state_is_never_nan_whatever_comes(policy, signals, seed):
    rng = np.random.default_rng(seed)
    state, given = policy.init(2), signals(2)
    for norms_P in (10 ** rng.uniform(-44, 38.4, (250, 2))).astype(np.float32):
        loss = np.float32([rng.normal() * 10 ** rng.uniform(-30, 30)])
        given = replace(given, loss=loss)
        decision = policy(norms_P, state, given)
        state = decision.state
        assert np.isfinite(decision.scale).all()
        assert not any(np.isnan(value).any() for value in state.values())


@pytest.mark.parametrize("own", [ByZScore(), ByPercentile(30), BySigmaWindow(sigma=2.0, window=12)], ids=repr)
def test_decisions_without_a_threshold_do_not_depend_on_the_unit_of_the_norms(own):
    norms_TP = hard_norms()[:100]

    def decided(unit):
        state, rows = own.init(COUNT), []
        for norms_P in norms_TP:
            decision = own(norms_P * np.float32(unit), state)
            state = decision.state
            rows.append((float(decision.scale[0]), bool(decision.skip[0])))
        return rows

    assert decided(2.0**-40) == decided(1.0) == decided(2.0**30)
    assert len(set(decided(1.0))) > 1


@pytest.mark.parametrize("missing", ["sizes_P", "weight_norms_P"])
def test_a_policy_without_what_it_needs_says_what_is_missing(examples, signals, missing):
    needy = [policy for policy in examples if missing in policy.needs]
    assert needy
    given = signals(2)
    given = Signals(
        **{name: None if name == missing else getattr(given, name) for name in ("sizes_P", "weight_norms_P")}
    )
    for policy in needy:
        with pytest.raises(SettingError, match=rf"signals.{missing}: got None, want a number per parameter; hand it"):
            policy(np.ones(2, dtype=np.float32), policy.init(2), given)


@pytest.mark.parametrize("norm_type", [1.0, 1.5, 2.0, 4.0, float("inf")])
def test_the_total_is_torchs_own_norm_of_norms(norm_type):
    norms = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    wanted = float(torch.linalg.vector_norm(norms.double(), norm_type))
    assert float(total_norm(norms.numpy(), norm_type=norm_type)[0]) == pytest.approx(wanted, rel=1e-6)
    assert float(total_norm(norms, norm_type=norm_type)[0]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
def test_the_total_neither_overflows_nor_underflows(norm_type):
    for unit in (1e25, 1e-30, 1e-37):
        wanted = np.linalg.norm([3.0, 4.0], norm_type) * unit
        found = float(total_norm(np.array([3 * unit, 4 * unit], dtype=np.float32), norm_type=norm_type)[0])
        assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
def test_the_total_says_what_is_not_finite(norm_type):
    for bad in (np.nan, np.inf):
        found = float(total_norm(np.array([1e30, bad, 0.0], dtype=np.float32), norm_type=norm_type)[0])
        assert found == bad or np.isnan(found) == np.isnan(bad) == 1
    both = total_norm(np.array([np.inf, np.nan], dtype=np.float32), norm_type=norm_type)
    assert np.isnan(both[0])
    assert float(total_norm(np.zeros(3, dtype=np.float32), norm_type=norm_type)[0]) == 0.0


def test_a_clip_argument_is_a_policy_a_number_or_none():
    assert policy_of(None) == ByZScore()
    assert policy_of("adaptive") == policy_of(None)
    assert policy_of(2) == ByGlobalNorm(2.0)
    own = ByZScore(z=3.0)
    assert policy_of(own) is own


@pytest.mark.parametrize("clip", [True, "zclip", [1.0], ByZScore])
def test_any_other_clip_argument_is_refused(clip):
    with pytest.raises(
        SettingError, match=r"clip: got .*, want a policy \(ByBlockRms, ByGlobalNorm, .*, ZClip\), a positive number"
    ):
        policy_of(clip)


def test_policies_are_compared_by_settings_and_cannot_be_changed(policy):
    assert ByZScore() == ByZScore(z=2.5)
    assert isinstance(policy, AbstractPolicy)
    assert len({policy, policy}) == 1
    with pytest.raises((AttributeError, TypeError), match=r"cannot assign|immutable|object has no|super\(type"):
        policy.anything = 3.0
