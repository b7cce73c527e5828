"""ByGlobalNorm against torch's own clip_grad_norm_."""

import numpy as np
import pytest
import torch

from evengrad.clip import ByGlobalNorm
from evengrad.nouns import SettingError


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1.0, 7.0, 1e6])
def test_scale_and_norm_are_those_of_clip_grad_norm(max_norm):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(shape, requires_grad=True) for shape in [(3, 4), (5,), ()]]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = [parameter.grad.clone() for parameter in parameters]
    norms_P = np.array([np.linalg.norm(grad.double().numpy()) for grad in before], dtype=np.float32)
    decision = ByGlobalNorm(max_norm)(norms_P, {})
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert float(decision.norm[0]) == pytest.approx(float(norm), rel=1e-6)
    for parameter, grad in zip(parameters, before, strict=True):
        np.testing.assert_allclose(float(decision.scale[0]) * grad.numpy(), parameter.grad.numpy(), rtol=1e-6)


def test_an_infinite_threshold_never_clips():
    assert float(ByGlobalNorm(float("inf"))(np.array([1e18], dtype=np.float32), {}).scale[0]) == 1.0


@pytest.mark.parametrize("max_norm", [0, 0.0, -1.0, float("nan"), "1", None, True])
def test_a_threshold_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(SettingError, match=r"max_norm: got .*, want a positive number"):
        ByGlobalNorm(max_norm)


@pytest.mark.parametrize("norm_type", [1.0, float("inf"), 0, "2"])
def test_another_norm_is_refused_by_saying_what_is_supported(norm_type):
    with pytest.raises(SettingError, match=r"norm_type: got .*, want 2.0; only the Euclidean norm is supported"):
        ByGlobalNorm(1.0, norm_type=norm_type)
