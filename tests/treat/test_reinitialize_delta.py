"""Delta-orthogonal convolutions: norms of images, groups, fewer outputs than inputs, the pasted code."""

import pytest
import torch
from pasted_code import pasted
from torch import nn

from evengrad.nouns import SettingError
from evengrad.treat import Reinitialize


def drawn(model, **settings):
    return Reinitialize(scheme="delta_orthogonal", gain=1.0, **settings).treat(model, seed=3)


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(6, 6, 5, padding=2), (3, 6, 20)),
    "2d": (lambda: nn.Conv2d(6, 6, 3, padding=1), (3, 6, 9, 9)),
    "3d": (lambda: nn.Conv3d(4, 4, 3, padding=1), (2, 4, 5, 5, 5)),
    "wider": (lambda: nn.Conv2d(6, 10, 3, padding=1), (3, 6, 9, 9)),
    "groups": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3), (3, 6, 9, 9)),
    "dilated": (lambda: nn.Conv2d(6, 6, 3, padding=2, dilation=2), (3, 6, 9, 9)),
    "oblong": (lambda: nn.Conv2d(6, 6, (1, 5), padding=(0, 2)), (3, 6, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 6, 3, padding=1), (3, 6, 9, 9)),
    "transposed groups": (lambda: nn.ConvTranspose2d(6, 12, 3, padding=1, stride=2, groups=2), (3, 6, 9, 9)),
}


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
def test_a_convolution_keeps_the_norm_of_an_image(name):
    make, shape = CONVOLUTIONS[name]
    model, image = nn.Sequential(make()), torch.randn(shape)
    treated = drawn(model)
    for changed in (treated.subject, pasted(treated.code, model)):
        assert changed(image).norm().item() == pytest.approx(image.norm().item(), rel=1e-5)
        assert not changed[0].bias.any()


def test_a_hundred_convolutions_keep_the_norm_that_he_normal_ones_do_not():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(100)))
    image = torch.randn(1, 8, 12, 12)
    norms = {
        scheme: Reinitialize(scheme=scheme, gain=1.0).treat(model).subject(image).norm() / image.norm()
        for scheme in ("delta_orthogonal", "he")
    }
    assert norms["delta_orthogonal"].item() == pytest.approx(1.0, rel=1e-4)
    assert abs(norms["he"].log10().item()) > 1


def test_fewer_outputs_than_inputs_keep_as_many_directions():
    layer = drawn(nn.Sequential(nn.Conv2d(8, 3, 3, padding=1))).subject[0]
    centre = layer.weight.detach()[:, :, 1, 1]
    torch.testing.assert_close(centre @ centre.T, torch.eye(3), rtol=0, atol=1e-5)
    assert layer.weight.count_nonzero() == centre.count_nonzero()


def test_the_gain_is_that_of_what_follows_and_dense_layers_are_orthogonal():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 16))
    treated = Reinitialize(scheme="delta_orthogonal").treat(model, batch_input=torch.randn(2, 4, 4, 4))
    centre, dense = treated.subject[0].weight.detach()[:, :, 1, 1], treated.subject[3].weight.detach()
    torch.testing.assert_close(centre @ centre.T, 2 * torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(dense @ dense.T, torch.eye(16), rtol=0, atol=1e-5)
    assert "at the centre of the kernel" in treated.changes[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_drawn_too(dtype):
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1)).to(dtype)
    treated = drawn(model)
    for changed in (treated.subject, pasted(treated.code, model)):
        centre = changed[0].weight.detach()[:, :, 1, 1].double()
        torch.testing.assert_close(centre @ centre.T, torch.eye(6).double(), rtol=0, atol=0.03)


@pytest.mark.parametrize("settings", [{"recurrent_gain": 0.0}, {"forget_bias": "long"}, {"forget_bias": float("nan")}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        Reinitialize(**settings)
