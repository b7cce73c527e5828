"""BySmoothNorm against its formula in plain Python floats."""

import math
from itertools import pairwise

import numpy as np
import pytest

from evengrad.clip import BySmoothNorm
from evengrad.nouns import SettingError

FORMS = {
    "hyperbolic": lambda norm, bound: bound / (bound + norm),
    "tanh": lambda norm, bound: bound / norm * math.tanh(norm / bound),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bound", [1e-3, 1.0, 300.0])
def test_scales_are_those_of_the_formula(form, bound):
    for norm in np.logspace(-30, 30, 241).astype(np.float32):
        scale = BySmoothNorm(bound, form=form)(norm.reshape(1), {}).scale[0]
        wanted = FORMS[form](float(norm), bound)
        assert scale == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_norm_that_is_let_through_rises_and_stays_below_the_bound(form):
    norms = np.linspace(0.01, 6, 300, dtype=np.float32)
    through = [float(norm * BySmoothNorm(2.0, form=form)(norm.reshape(1), {}).scale[0]) for norm in norms]
    assert all(low < high for low, high in pairwise(through))
    assert through[-1] < 2.0


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_norms_and_the_smallest_bounds_do_not_overflow(form):
    for norm, bound in [(3e38, 1e-37), (3e38, 1e38), (1e-45, 1e38), (1e-45, 1e-37)]:
        decision = BySmoothNorm(bound, form=form)(np.array([norm], dtype=np.float32), {})
        assert np.isfinite(decision.scale[0])
        assert not bool(decision.skip[0])


def test_other_settings_are_refused():
    with pytest.raises(SettingError, match="max_norm: got inf, want a positive number, finite"):
        BySmoothNorm(float("inf"))
    with pytest.raises(SettingError, match="form: got 'arctan', want 'hyperbolic' or 'tanh'"):
        BySmoothNorm(1.0, form="arctan")
