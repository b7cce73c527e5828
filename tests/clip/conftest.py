"""One or more examples of every policy, and what they are handed."""

import numpy as np
import pytest

from evengrad.clip import (
    ByBlockRms,
    ByGlobalNorm,
    ByMovingAverage,
    ByPercentile,
    ByPolyakStep,
    BySigmaWindow,
    BySmoothNorm,
    ByTensorNorm,
    ByWeightNorm,
    ByZScore,
    Chain,
    NormalizedGradient,
    Signals,
    SkipNonFinite,
    ZClip,
)

EXAMPLES = (
    ByBlockRms(0.2),
    ByGlobalNorm(1.5),
    ByGlobalNorm(float("inf")),
    ByGlobalNorm(1.5, norm_type=1.0),
    ByGlobalNorm(1.5, norm_type=3.5),
    ByGlobalNorm(1.5, norm_type=float("inf")),
    ByMovingAverage(),
    ByMovingAverage(max_norm=4.0, max_ratio=1.2, decay=0.9, warmup_steps=5, rewarm_steps=8),
    ByMovingAverage(warmup_steps=20, rewarm_steps=None),
    ByPercentile(),
    ByPercentile(80.5, window=40),
    ByPolyakStep(),
    ByPolyakStep(c=0.1),
    BySigmaWindow(),
    BySigmaWindow(sigma=2.0, window=10, std_floor=0.0),
    BySmoothNorm(2.0),
    BySmoothNorm(2.0, form="tanh"),
    ByTensorNorm(1.0),
    ByWeightNorm(0.5),
    ByZScore(),
    ByZScore(z=1.0, decay=0.9, warmup_steps=3, std_floor=0.1),
    Chain(ByTensorNorm(1.2), ByZScore(z=0.5), BySigmaWindow(window=20), ByGlobalNorm(2.0)),
    NormalizedGradient(2.0),
    SkipNonFinite(),
    ZClip(),
    ZClip(max_grad_norm=None, clip_option="mean", warmup_steps=5, skip_update_on_spike=True),
    ZClip(max_grad_norm=3.0, mode="percentile", z_thresh=1.0, clip_factor=0.7),
    ZClip(max_grad_norm=None, clip_factor=0.7, z_thresh=1.5),
)


@pytest.fixture
def examples():
    return EXAMPLES


@pytest.fixture(params=EXAMPLES, ids=[f"{type(one).__name__}{place}" for place, one in enumerate(EXAMPLES)])
def policy(request):
    return request.param


@pytest.fixture
def signals():
    """Make what any policy may ask for, for `count` parameters: the second has no weights but zeros."""

    def made(count, array=np.asarray, loss=float("nan")):
        weights = np.random.default_rng(5).lognormal(0, 1, count).astype(np.float32)
        weights[1:2] = 0
        sizes = np.arange(1, count + 1, dtype=np.float32) ** 2
        losses = np.array([loss], dtype=np.float32)
        lr = np.array([0.3], dtype=np.float32)
        return Signals(loss=array(losses), lr=array(lr), sizes_P=array(sizes), weight_norms_P=array(weights))

    return made
