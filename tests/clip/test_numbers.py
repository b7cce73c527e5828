"""Policies on plain numbers, as the host runs them, against the same lines on NumPy."""

import math

import numpy as np
import pytest

from evengrad import clip
from evengrad.clip import (
    AbstractPolicy,
    Decision,
    Number,
    Signals,
    Vector,
    decides_by_numbers,
    number_signals,
    number_state,
    total_norm,
)

QUICK = (
    clip.ByGlobalNorm(1.5),
    clip.ByGlobalNorm(1.5, norm_type=1.0),
    clip.ByGlobalNorm(1.5, norm_type=3.0),
    clip.ByGlobalNorm(1.5, norm_type=math.inf),
    clip.ByZScore(),
    clip.ByZScore(z=1.0, decay=0.9, warmup_steps=3, std_floor=0.1),
    clip.ZClip(),
    clip.ZClip(mode="percentile", max_grad_norm=None, warmup_steps=3),
    clip.BySmoothNorm(2.0),
    clip.BySmoothNorm(2.0, form="tanh"),
    clip.NormalizedGradient(),
    clip.SkipNonFinite(),
    clip.Chain(clip.ByZScore(), clip.ByGlobalNorm(1.5)),
    clip.ByPolyakStep(),
    clip.Chain(clip.ByZScore(), clip.ByPolyakStep(c=0.1)),
)
GIVEN = Signals(loss=np.array([0.7], dtype=np.float32), lr=np.array([0.3], dtype=np.float32))
NOT = (clip.ByTensorNorm(1.0), clip.ByPercentile(), clip.BySigmaWindow(), clip.ByMovingAverage(), clip.ByWeightNorm())


def hard_norms(count, steps=300, seed=3):
    rng = np.random.default_rng(seed)
    norms_TP = rng.lognormal(0, 0.4, (steps, count)).astype(np.float32)
    norms_TP[40] *= 30
    norms_TP[90, 0] *= 1e4
    norms_TP[5, -1], norms_TP[60, 0], norms_TP[61, 0] = np.nan, np.inf, np.nan
    norms_TP[10] = norms_TP[70] = 0
    norms_TP[100, 0] = 1e19
    norms_TP[101] = 1e-25
    return norms_TP


@pytest.mark.parametrize("policy", QUICK, ids=repr)
@pytest.mark.parametrize("count", [1, 7, 300])
def test_numbers_decide_as_numpy_does(policy, count):
    assert decides_by_numbers(policy)
    state, numbers = policy.init(count), number_state(policy.init(count))
    largest = dict.fromkeys(state, 0.0)  # what float32 has rounded off a variance after a spike stays for a while
    for norms_P in hard_norms(count):
        with np.errstate(all="ignore"):
            plain = policy(norms_P, state, GIVEN)
        quick = policy(Vector(norms_P), numbers, number_signals(0.7, 0.3))
        state, numbers = plain.state, number_state(quick.state)
        assert bool(quick.skip[0]) == bool(plain.skip[0])
        np.testing.assert_allclose(float(quick.norm[0]), float(plain.norm[0]), rtol=2e-6)
        np.testing.assert_allclose(float(quick.scale[0]), float(plain.scale[0]), rtol=1e-5)
        for name, value in state.items():
            largest[name] = max(largest[name], float(value[0]))
            atol = 1e-6 * largest[name]
            np.testing.assert_allclose(float(numbers[name][0]), float(value[0]), rtol=2e-5, atol=atol)
            assert numbers[name].value == float(np.float32(numbers[name].value))  # a checkpoint keeps it to the bit


@pytest.mark.parametrize("policy", NOT, ids=repr)
def test_a_policy_with_a_number_for_each_parameter_or_a_window_stays_on_arrays(policy):
    assert not decides_by_numbers(policy)


class Unusual(AbstractPolicy):
    """Uses what plain numbers do not have."""

    def init(self, count, *, like=None):
        return {}

    def __call__(self, norms_P, state, signals=None):
        norm = total_norm(norms_P)
        return Decision(norm=norm, scale=norm.__array_namespace__().atan(norm), skip=norm < 0, state=state)


class Different(AbstractPolicy):
    """Decides by what kind of array it is given."""

    def init(self, count, *, like=None):
        return {}

    def __call__(self, norms_P, state, signals=None):
        norm = total_norm(norms_P)
        factor = 0.5 if isinstance(norms_P, np.ndarray) else 1.0
        return Decision(norm=norm, scale=norm * 0.0 + factor, skip=~(norm < 1e18), state=state)


@pytest.mark.parametrize("policy", [Unusual(), Different()], ids=["unusual", "different"])
def test_a_policy_that_does_not_run_on_numbers_or_not_alike_stays_on_arrays(policy):
    assert not decides_by_numbers(policy)


def test_numbers_divide_by_zero_and_overflow_as_arrays_do():
    one, zero = Number(1.0), Number(0.0)
    assert float(one / zero) == math.inf
    assert float(-one / zero) == -math.inf
    assert math.isnan(float(zero / zero))
    assert math.isnan(float(Number(math.nan) / zero))
    assert float(2.0 / zero) == math.inf
    assert float(Number(1e300) ** 2.0) == math.inf
    assert float(Number(1e300) * 1e300) == math.inf


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_bad_norm_is_seen_wherever_it_stands(count, bad, place):
    norms_P = np.ones(count, dtype=np.float32)
    norms_P[place] = bad
    total = float(total_norm(Vector(norms_P)))
    assert not math.isfinite(total)
    assert math.isnan(total) == math.isnan(bad)
