"""Every policy on every array library, and what all of them promise."""

import array_api_strict
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.clip import ALL, AbstractPolicy, ByGlobalNorm, ByZScore, policy_of, total_norm
from evengrad.nouns import SettingError

EXAMPLES = (
    ByGlobalNorm(1.5),
    ByGlobalNorm(float("inf")),
    ByZScore(),
    ByZScore(z=1.0, decay=0.9, warmup_steps=3, std_floor=0.1),
    ByZScore(std_floor=0.0, warmup_steps=25, published=True),
)
READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in READS, f"{func.name()} reads a value on the host"
        return func(*args, **(kwargs or {}))


def hard_norms(steps=200, count=7, seed=3):
    rng = np.random.default_rng(seed)
    norms_TP = rng.lognormal(0, 0.4, (steps, count)).astype(np.float32)
    norms_TP[40] *= 30
    norms_TP[90, 2] *= 1e4
    norms_TP[5, 1], norms_TP[60, 0], norms_TP[61, 3] = np.nan, np.inf, np.nan
    norms_TP[10] = norms_TP[70] = 0
    norms_TP[100, 4] = 1e19
    return norms_TP


def ran(policy, norms_TP, array):
    state = policy.init(norms_TP.shape[1], like=array(norms_TP[0]))
    rows = []
    for norms_P in norms_TP:
        decision = policy(array(norms_P), state)
        state = decision.state
        values = [decision.norm, decision.scale, *(state[key] for key in sorted(state))]
        assert all(value.shape == (1,) and "float32" in str(value.dtype) for value in values)
        assert decision.skip.shape == (1,)
        rows.append([float(decision.skip[0]), *(float(value[0]) for value in values)])
    return np.array(rows)


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
def test_three_array_libraries_agree(policy):
    norms_TP = hard_norms()
    numpy = ran(policy, norms_TP, np.asarray)
    strict = ran(policy, norms_TP, array_api_strict.asarray)
    on_torch = ran(policy, norms_TP, torch.tensor)
    np.testing.assert_allclose(strict, numpy, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(on_torch, numpy, rtol=1e-6, atol=1e-6)
    assert 0 < numpy[:, 0].sum() < 10


def test_every_policy_has_an_example_here():
    assert {type(policy) for policy in EXAMPLES} == set(ALL)


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("when", [0, 2, 50])
def test_a_bad_step_is_skipped_and_leaves_the_state_equal_to_the_bit(policy, bad, when):
    norms_TP = np.abs(np.random.default_rng(0).normal(1, 0.1, (51, 3))).astype(np.float32)
    state = policy.init(3)
    for norms_P in norms_TP[:when]:
        state = policy(norms_P, state).state
    before = {key: value.copy() for key, value in state.items()}
    decision = policy(np.array([1.0, abs(bad), 2.0], dtype=np.float32), state)
    assert bool(decision.skip[0])
    assert not np.isfinite(decision.norm[0])
    assert float(decision.scale[0]) == 1.0
    assert {key: value.tobytes() for key, value in decision.state.items()} == {
        k: v.tobytes() for k, v in before.items()
    }
    after, unharmed = policy(norms_TP[when], decision.state), policy(norms_TP[when], before)
    assert float(after.scale[0]) == float(unharmed.scale[0])


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
def test_a_step_of_zeros_is_neither_clipped_nor_skipped(policy):
    decision = policy(np.zeros(4, dtype=np.float32), policy.init(4))
    assert (float(decision.norm[0]), float(decision.scale[0]), bool(decision.skip[0])) == (0.0, 1.0, False)


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
def test_the_inputs_are_not_changed(policy):
    norms_P, state = np.array([1.0, 2.0], dtype=np.float32), policy.init(2)
    copies = {key: value.copy() for key, value in state.items()}
    policy(norms_P, state)
    assert norms_P.tolist() == [1.0, 2.0]
    assert all(np.array_equal(state[key], copies[key]) for key in state)


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
def test_nothing_is_read_on_the_host(policy):
    norms_P = torch.rand(5)
    state = policy.init(5, like=norms_P)
    with NoReads():
        for _ in range(30):
            state = policy(norms_P, state).state


@pytest.mark.parametrize("policy", EXAMPLES, ids=repr)
def test_other_float_dtypes_are_taken_in_float32(policy):
    wide = policy(np.array([1.0, 2.0]), policy.init(2))
    narrow = policy(np.array([1.0, 2.0], dtype=np.float32), policy.init(2))
    assert wide.norm.dtype == wide.scale.dtype == np.float32
    assert wide.norm == narrow.norm


def test_the_total_is_torchs_own_norm_of_norms():
    norms = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    wanted = float(torch.linalg.vector_norm(norms.double()))
    assert float(total_norm(norms.numpy())[0]) == pytest.approx(wanted, rel=1e-6)
    assert float(total_norm(norms)[0]) == pytest.approx(wanted, rel=1e-6)


def test_the_total_neither_overflows_nor_underflows():
    assert float(total_norm(np.array([3e25, 4e25], dtype=np.float32))[0]) == pytest.approx(5e25, rel=1e-6)
    assert float(total_norm(np.array([3e-30, 4e-30], dtype=np.float32))[0]) == pytest.approx(5e-30, rel=1e-6)


def test_a_clip_argument_is_a_policy_a_number_or_none():
    assert policy_of(None) == ByZScore()
    assert policy_of(2) == ByGlobalNorm(2.0)
    own = ByZScore(z=3.0)
    assert policy_of(own) is own


@pytest.mark.parametrize("clip", [True, "zclip", [1.0], ByZScore])
def test_any_other_clip_argument_is_refused(clip):
    with pytest.raises(
        SettingError, match=r"clip: got .*, want a policy \(ByGlobalNorm, ByZScore\), a positive number"
    ):
        policy_of(clip)


def test_policies_are_compared_by_settings_and_cannot_be_changed():
    assert ByZScore() == ByZScore(z=2.5)
    assert issubclass(ByZScore, AbstractPolicy)
    with pytest.raises(AttributeError, match="cannot assign"):
        ByZScore().z = 3.0
