"""Dead units over a window of sampled steps."""

import pytest
import torch
from sampled_models import sampled_once, vectors
from torch import nn
from torch.nn import functional

from evengrad.probe import Sampler


def rectified(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.act = nn.Linear(6, 40), kind

        def forward(self, x):
            return self.act(self.fc(x)).sum(1)

    return Model()


KINDS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "function": functional.relu,
    "method": torch.Tensor.relu,
    "relu6 function": functional.relu6,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_dead_that_was_zero_for_every_sample_of_the_last_ten_steps(kind):
    model = rectified(KINDS[kind])
    model.fc.bias.data -= 1.2
    model.fc.bias.data[:3] = -100.0
    sampler, alive = Sampler(model), []
    for step in range(14):
        x = torch.randn(2 + step % 3, 6)
        alive.append((model.fc(x) > 0).any(0))
        layer = sampled_once(model, torch.sum, x, sampler)[1]
        window = torch.stack(alive[-10:]).any(0)
        assert layer.dead_frac == pytest.approx(1 - window.double().mean().item(), abs=1e-12)
        assert layer.observations == sum(2 + one % 3 for one in range(max(0, step - 9), step + 1))
        assert layer.units == 40
    assert 3 / 40 <= layer.dead_frac < (~alive[0]).double().mean()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_are_alive_by_any_of_their_places(layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 50, 3), nn.ReLU()).to(memory_format=layout)
    model[0].bias.data -= 1.5
    x = torch.randn(3, 3, 9, 9).to(memory_format=layout)
    layer = sampled_once(model, torch.sum, x)[1]
    wanted = (model(x) == 0).all(dim=(0, 2, 3)).double().mean().item()
    assert 0 < wanted < 1
    assert layer.dead_frac == pytest.approx(wanted, abs=1e-12)
    assert layer.observations == 3 * 49


def test_the_last_element_of_a_large_output_counts():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1000, 100))

        def forward(self, x):
            return functional.relu(self.weight + x)

    x = torch.zeros(1000, 100)
    x[-1, -1] = 1e-30
    layers = sampled_once(Last(), torch.sum, x)
    assert layers[0].dead_frac == pytest.approx(0.99)
    assert layers[0].zero_frac == 1.0 or layers[0].zero_frac > 0.999


def test_the_window_begins_anew_with_another_number_of_units_and_counts_a_step_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    sampler = Sampler(model)
    for _ in range(3):
        layer = sampled_once(model, torch.sum, vectors(), sampler)[1]
    assert layer.observations == 27
    model[0].weight = nn.Parameter(torch.randn(5, 6))
    model[0].bias = nn.Parameter(torch.randn(5))
    sampler.arm()
    model(vectors()).sum().backward()
    for _ in range(2):
        layer = sampler.readings(sampler.packed().tolist())[1]
        assert (layer.observations, layer.units) == (9, 5)
    sampler.disarm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_unit_lives_by_the_smallest_number_of_its_kind_and_by_what_is_not_finite(dtype):
    smallest = torch.finfo(dtype).smallest_normal
    x = torch.tensor([[0.0, smallest, 0.0, float("nan"), float("inf")], [0.0, 0.0, -1.0, 0.0, 1.0]], dtype=dtype)
    model = nn.Sequential(nn.ReLU())
    layer = sampled_once(model, lambda out: out[:, :3].sum(), x.requires_grad_())[0]
    assert layer.dead_frac == pytest.approx(0.4)
