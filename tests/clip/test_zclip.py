"""ZClip against the published algorithm in plain Python floats, in all its modes, and without its deaths."""

import itertools
import math
import statistics

import numpy as np
import pytest

from evengrad.clip import ByZScore, ZClip
from evengrad.nouns import SettingError


class Published:
    """The reference implementation's arithmetic, arXiv:2504.02507, on norms."""

    def __init__(self, **settings):
        self.set = {
            "alpha": 0.97, "z_thresh": 2.5, "max_grad_norm": 1.0, "eps": 1e-6, "warmup_steps": 25, "mode": "zscore",
            "clip_option": "adaptive_scaling", "clip_factor": 1.0, "skip_update_on_spike": False, **settings,
        }  # fmt: skip
        self.buffer, self.mean, self.var = [], None, None

    def threshold(self, norm):
        z, std = self.set["z_thresh"], math.sqrt(self.var) if self.var >= 0 else math.nan
        if self.set["mode"] == "percentile":
            return self.mean + z * std if norm > self.mean + z * std else None
        score = (norm - self.mean) / (std + self.set["eps"])
        if not score > z:
            return None
        if self.set["clip_option"] == "mean":
            return self.mean
        return (self.mean + z * std / (score / z)) * self.set["clip_factor"]

    def scale(self, norm):
        most = self.set["max_grad_norm"]
        if self.mean is None:
            self.buffer.append(norm)
            if len(self.buffer) >= self.set["warmup_steps"]:
                self.mean = sum(self.buffer) / len(self.buffer)
                self.var = sum((one - self.mean) ** 2 for one in self.buffer) / len(self.buffer)
            return 1.0 if most is None else min(1.0, most / (norm + 1e-6))
        found = self.threshold(norm)
        value = norm if found is None else found
        bound = value if most is None else min(value, most)
        if found is None or not self.set["skip_update_on_spike"]:
            alpha = self.set["alpha"]
            self.mean = alpha * self.mean + (1 - alpha) * value
            self.var = alpha * self.var + (1 - alpha) * (value - self.mean) ** 2
        return bound / (norm + 1e-6) if norm > bound else 1.0


def ran(norms, **settings):
    policy = ZClip(**settings)
    state, scales = policy.init(1), []
    for norm in norms:
        decision = policy(np.array([norm], dtype=np.float32), state)
        state = decision.state
        scales.append(float(decision.scale[0]))
    return scales, float(state["mean"][0]), float(state["var"][0])


def norms_with_spikes(seed, steps=300):
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(0.3, 0.3, steps) * np.linspace(2, 1, steps)
    norms[rng.integers(30, steps, 8)] *= rng.uniform(5, 500, 8)
    return [float(norm) for norm in norms.astype(np.float32)]


MODES = [{"mode": "percentile"}, {"clip_option": "mean"}, {}, {"clip_factor": 0.8}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("most", [None, 1.0, 4.0])
@pytest.mark.parametrize("skip", [False, True])
def test_scales_mean_and_variance_are_the_published_ones(seed, mode, most, skip):
    settings = {**mode, "max_grad_norm": most, "skip_update_on_spike": skip}
    norms, reference = norms_with_spikes(seed), Published(**settings)
    scales, mean, var = ran(norms, **settings)
    np.testing.assert_allclose(scales, [reference.scale(norm) for norm in norms], rtol=2e-6)
    np.testing.assert_allclose([mean, var], [reference.mean, reference.var], rtol=3e-6)
    assert sum(scale < 1 for scale in scales) >= 5


@pytest.mark.parametrize("settings", [{"alpha": 0.9, "z_thresh": 1.5}, {"warmup_steps": 1}, {"warmup_steps": 60}])
def test_other_settings_are_followed_too(settings):
    settings = {**settings, "max_grad_norm": None}
    norms, reference = norms_with_spikes(7), Published(**settings)
    scales, mean, var = ran(norms, **settings)
    np.testing.assert_allclose(scales, [reference.scale(norm) for norm in norms], rtol=2e-6)
    np.testing.assert_allclose([mean, var], [reference.mean, reference.var], rtol=3e-6)


def test_the_defaults_are_the_published_ones():
    published = Published().set
    assert {name: getattr(ZClip(), name) for name in published} == published


def test_the_statistics_after_the_warm_up_are_average_and_population_variance():
    norms = norms_with_spikes(2)[:25]
    _, mean, var = ran(norms)
    assert mean == pytest.approx(statistics.fmean(norms), rel=1e-6)
    assert var == pytest.approx(statistics.pvariance(norms), rel=1e-6)


def test_one_nan_ends_the_published_clipping_and_not_ours():
    norms = [*norms_with_spikes(0)[:100], math.nan, *[1.0] * 20, 1e4]
    reference = Published(max_grad_norm=None)
    assert [reference.scale(norm) for norm in norms][-1] == 1.0
    assert math.isnan(reference.mean)
    scales, mean, _ = ran(norms, max_grad_norm=None)
    assert scales[-1] * 1e4 < 3
    assert math.isfinite(mean)


def test_one_infinity_ends_the_published_clipping_in_the_warm_up_and_not_ours():
    norms = [1.0, math.inf, *[1.0 + 0.01 * step for step in range(40)], 1e4]
    reference = Published(max_grad_norm=None)
    assert [reference.scale(norm) for norm in norms][-1] == 1.0
    assert ran(norms, max_grad_norm=None)[0][-1] * 1e4 < 3


def test_a_warm_up_of_zeros_freezes_the_published_formula_and_not_ours():
    norms = [*[0.0] * 25, *[1.0, 1.1] * 100]
    reference = Published(max_grad_norm=None)
    assert max([reference.scale(norm) for norm in norms][25:]) == 0.0
    assert min(ran(norms, max_grad_norm=None)[0][50:]) > 0.5


def test_a_rise_for_good_is_clipped_for_good_as_published_and_accepted_by_the_default():
    norms = [float(norm) for norm in np.abs(np.random.default_rng(0).normal(1, 0.1, 600)) * ([1] * 200 + [10] * 400)]
    assert max(ran(norms, max_grad_norm=None)[0][300:]) < 0.2
    policy = ByZScore()
    state = policy.init(1)
    for norm in norms:
        decision = policy(np.array([norm], dtype=np.float32), state)
        state = decision.state
    assert float(decision.scale[0]) == 1.0


def test_spikes_leave_no_trace_when_asked():
    norms = norms_with_spikes(1)[:100]
    for spike, mode in itertools.product([50.0, 1e6], MODES[:3]):
        settings = {**mode, "skip_update_on_spike": True, "max_grad_norm": None}
        assert ran([*norms, spike], **settings)[1:] == ran(norms, **settings)[1:]


def test_a_huge_norm_in_the_warm_up_does_not_end_the_clipping_for_good():
    scales, mean, var = ran([1.0, 9e17] + [1.0] * 3000 + [100.0], warmup_steps=5, max_grad_norm=None)
    assert math.isfinite(var)
    assert scales[-1] < 0.5
    assert mean == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("when", [10, 60])
def test_norms_that_cannot_be_squared_leave_no_trace(when):
    norms = norms_with_spikes(4)[:100]
    assert ran([*norms[:when], 1e19, *norms[when:]])[1:] == ran(norms)[1:]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.0}, r"alpha: got 1.0, want a number in \(0, 1\)"),
        ({"alpha": float("nan")}, r"alpha: got nan, want a number in \(0, 1\)"),
        ({"z_thresh": 0}, "z_thresh: got 0, want a positive number"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: got -1.0, want a positive number"),
        ({"eps": -1e-6}, "eps: got -1e-06, want 0 or a positive number"),
        ({"eps": False}, "eps: got False, want 0 or a positive number"),
        ({"warmup_steps": 0}, "warmup_steps: got 0, want a positive whole number"),
        ({"mode": "Zscore"}, "mode: got 'Zscore', want 'zscore' or 'percentile'"),
        ({"clip_option": "max"}, "clip_option: got 'max', want 'adaptive_scaling' or 'mean'"),
        ({"clip_factor": 0.0}, "clip_factor: got 0.0, want a positive number"),
        ({"skip_update_on_spike": 1}, "skip_update_on_spike: got 1, want True or False"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        ZClip(**settings)
