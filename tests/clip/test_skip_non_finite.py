"""SkipNonFinite against torch's isfinite."""

import math

import numpy as np
import pytest
import torch

from evengrad.clip import SkipNonFinite


@pytest.mark.parametrize("norms", [[1.0, 2.0], [1e19, 1e19], [0.0], [math.nan], [1.0, math.inf], [math.inf, math.nan]])
def test_a_step_is_skipped_exactly_when_a_norm_is_not_finite(norms):
    decision = SkipNonFinite()(np.array(norms, dtype=np.float32), {})
    assert bool(decision.skip[0]) is not bool(torch.tensor(norms).isfinite().all())
    assert decision.scale.tolist() == [1.0]
