"""ByTensorNorm against the formula of Keras and torch's clip_grad_norm_ on each tensor."""

import numpy as np
import pytest
import torch

from evengrad.clip import ByTensorNorm
from evengrad.nouns import SettingError


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 30.0])
def test_each_tensor_is_clipped_as_by_itself(max_norm):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator) * size for shape, size in [((3, 4), 1.0), ((5,), 9.0), ((), 0.1)]]
    norms_P = np.array([float(torch.linalg.vector_norm(grad.double())) for grad in grads], dtype=np.float32)
    scale_P = ByTensorNorm(max_norm)(norms_P, {}).scale
    for grad, norm, scale in zip(grads, norms_P, scale_P, strict=True):
        keras = grad.double().numpy() * max_norm / max(float(norm), max_norm)
        np.testing.assert_allclose(grad.numpy() * scale, keras, rtol=1e-6)
        parameter = torch.nn.Parameter(torch.zeros_like(grad))
        parameter.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_(parameter, max_norm)
        np.testing.assert_allclose(grad.numpy() * scale, parameter.grad.numpy(), rtol=1e-4)  # torch adds 1e-6
        assert scale == 1.0 or norm * scale == pytest.approx(max_norm, rel=1e-6)


def test_a_norm_at_the_threshold_is_left_alone():
    assert ByTensorNorm(2.0)(np.array([2.0, 2.0001], dtype=np.float32), {}).scale[0] == 1.0


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), float("inf"), None, True])
def test_a_threshold_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(SettingError, match=r"max_norm: got .*, want a positive number, finite"):
        ByTensorNorm(max_norm)
