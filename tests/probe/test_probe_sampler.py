"""Samples of a real training: equal to the exact probe where they are whole, and near it elsewhere."""

from functools import partial

import pytest
import torch
from sampled_models import CLOSE, MODELS, Passing, exact, is_close, sampled_once, saturating, vectors
from torch import nn

from evengrad.nouns import SettingError
from evengrad.probe import Sampler


@pytest.mark.parametrize("name", ["convolutions", "lstm", "tied", "checkpointed", "parametrized", "saturating"])
def test_small_layers_are_read_as_by_the_exact_probe(name):
    torch.manual_seed(0)
    make, data = (saturating, vectors) if name == "saturating" else MODELS[name]
    model, x = make(), data()
    if name == "saturating":
        x = 30 * x  # so that something saturates
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.LSTM):
            module.dropout = module.p = 0.0
    sampler = Sampler(model)
    for _ in range(3):  # rows are used again
        x = x[torch.randperm(len(x))]
        wanted = exact(model, lambda out: out.square().sum(), x)
        found = sampled_once(model, lambda out: out.square().sum(), x, sampler)
        assert [layer.name for layer in found] == [layer.name for layer in wanted]
        assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))
    if name == "saturating":
        assert any(layer.saturated_frac for layer in found)


WIDE = {
    "contiguous": lambda x: x,
    "turned": lambda x: x.transpose(0, 1),
    "every other": lambda x: x[:, ::2],
    "repeated": lambda x: x[:, :1].expand(-1, 300),
}


@pytest.mark.parametrize("layout", WIDE)
@pytest.mark.parametrize("seed", range(3))
def test_estimates_of_large_layers_are_within_5_percent(layout, seed):
    torch.manual_seed(seed)
    size = (5_000, 300) if layout == "repeated" else (400, 300)
    x = torch.randn(size, requires_grad=True).relu()
    pull = torch.randn(WIDE[layout](x).shape)
    model = nn.Sequential(Passing(WIDE[layout]))
    found = sampled_once(model, lambda out: (out * pull).sum(), x)[0]
    y = WIDE[layout](x)
    assert found.numel == y.numel() > 16 * 4096 // 2
    assert found.activation_rms == pytest.approx(y.square().mean().sqrt().item(), rel=0.05)
    assert found.zero_frac == pytest.approx(0.5, rel=0.05)
    assert found.grad_rms == pytest.approx(1.0, rel=0.05)
    assert 3 < found.activation_absmax <= y.max()


def test_what_lies_between_the_elements_is_not_sampled_whatever_was_there_before():
    junk = torch.full((100, 200), 1e9)
    junk[:, ::2] = 1.0
    cut = torch.full((100, 150), 1e9)
    cut[:, 10:110] = 1.0
    shapes = [torch.ones(100, 100), junk[:, ::2], torch.ones(100, 1).expand(100, 100), cut[:, 10:110]]
    model = nn.Sequential(Passing(None), nn.Identity())
    sampler = Sampler(model)
    weight = torch.ones((), requires_grad=True)
    for value in shapes:
        model[0].change = partial(Scaled.apply, value)
        layers = sampled_once(model, torch.sum, weight, sampler)
        assert [layer.activation_absmax for layer in layers] == [1.0, 1.0]
        assert [layer.activation_rms for layer in layers] == [1.0, 1.0]


class Scaled(torch.autograd.Function):
    """Gives a tensor as it lies in memory, with a graph."""

    @staticmethod
    def forward(ctx, value, weight):
        return value.detach()

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient.sum()


def test_the_gradient_is_that_of_the_output_and_not_of_its_neighbours():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = Passing(lambda parts: parts[1])

        def forward(self, x):
            parts = x.unbind(1)
            return parts[0] * 5 + self.second(parts) * 2

    x = torch.randn(7, 2, requires_grad=True)
    assert sampled_once(Halves(), torch.sum, x)[0].grad_rms == pytest.approx(2.0)


def test_a_recurrent_module_of_which_only_the_state_is_used_has_no_gradient_at_its_output():
    class State(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[1][0])

    torch.manual_seed(0)
    model, x = State(), torch.randn(4, 3, 6)
    found, wanted = sampled_once(model, torch.sum, x), exact(model, torch.sum, x)
    assert found[0].grad_rms is None
    assert found[1].grad_rms == pytest.approx(1.0)
    assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))


def test_blocks_reach_from_the_beginning_to_the_end():
    x = torch.arange(100_000.0, requires_grad=True)
    found = sampled_once(nn.Sequential(nn.Identity()), torch.sum, x)[0]
    places = torch.cat([torch.arange(256) + block * ((100_000 - 256) // 15) for block in range(16)]).double()
    assert found.activation_rms == pytest.approx(places.square().mean().sqrt().item(), rel=1e-6)
    assert found.activation_absmax == places.max() >= 99_985


@pytest.mark.parametrize("count", [1, 16, 17, 4095, 4096, 4097, 5000])
def test_widths_at_the_edges_count_every_element_once(count):
    x = torch.ones(count)
    x[: count // 2] = 0.0
    found = sampled_once(nn.Sequential(nn.Identity()), lambda out: 3 * out.sum(), x.requires_grad_())[0]
    tolerance = 1e-6 if count <= 4096 else 0.15
    assert found.zero_frac == pytest.approx((count // 2) / count, abs=tolerance)
    assert found.activation_rms == pytest.approx((1 - (count // 2) / count) ** 0.5, abs=tolerance)
    assert found.grad_rms == pytest.approx(3.0)  # the gradient of a sum is one number, repeated


def test_shapes_may_change_from_step_to_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 30))
    sampler = Sampler(model)
    for count in (10, 9, 200, 3, 100, 1, 10, 9):
        x = torch.randn(count, 6) - 1.0
        wanted = exact(model, lambda out: out.square().sum(), x)
        found = sampled_once(model, lambda out: out.square().sum(), x, sampler)
        limits = CLOSE if count * 30 <= 4096 else {"rel": 0.1}
        assert all(is_close(one, other, **limits) for one, other in zip(found[:2], wanted[:2], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_of_output_and_gradient_and_of_what_comes_after(bad):
    torch.manual_seed(0)
    spoil = Passing(lambda x: torch.cat([x[:, :5], x[:, 5:] * bad], dim=1))
    model = nn.Sequential(nn.Linear(6, 6), spoil, nn.Linear(6, 6))
    x = vectors()
    found = sampled_once(model, torch.sum, x)
    assert [layer.output_finite for layer in found] == [True, False, False]
    assert [layer.input_finite for layer in found] == [True, True, False]
    assert [layer.grad_finite for layer in found] == [False, True, True]
    values = model[1](model[0](x)).detach()
    assert found[1].activation_rms == pytest.approx(values[values.isfinite()].square().mean().sqrt().item(), rel=1e-5)
    x[0, 0] = bad
    assert not sampled_once(model, torch.sum, x)[0].input_finite


def test_float64_and_complex_layers_keep_their_range():
    x = torch.full((3, 4), 1e200, dtype=torch.float64, requires_grad=True)
    found = sampled_once(nn.Sequential(nn.Identity()), lambda out: out.sum() * 1e-300, x)[0]
    assert found.activation_rms == pytest.approx(1e200)
    assert (found.grad_rms, found.output_finite) == (pytest.approx(1e-300), True)
    z = torch.full((3, 4), 3 + 4j, requires_grad=True)
    found = sampled_once(nn.Sequential(nn.Identity()), lambda out: out.abs().sum(), z)[0]
    assert (found.numel, found.activation_absmax) == (12, 4.0)
    assert found.activation_rms == pytest.approx(12.5**0.5)


def test_what_a_sample_cannot_tell_lets_no_rule_speak():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh())
    nn.init.constant_(model[0].bias, -100.0)
    layers = sampled_once(model, torch.sum, vectors())
    assert [(layer.dead_frac, layer.observations) for layer in layers] == [(0, 0), (1.0, 9), (0, 0), (0, 0)]
    assert all(layer.weight_norm is layer.weight_grad_norm is None for layer in layers)


def test_numbers_may_be_read_after_the_next_step_was_packed():
    torch.manual_seed(0)
    model, sampler = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), None
    sampler = Sampler(model)
    first = sampled_once(model, torch.sum, vectors(), sampler)
    layout = sampler.layout
    sampler.arm()
    model(torch.randn(2, 6)).sum().backward()
    early = sampler.packed().tolist()
    early_layout = sampler.layout
    assert len(sampled_once(model, torch.sum, torch.randn(90, 6), sampler)) == 2
    assert sampler.readings(early, early_layout)[0].numel == 12
    assert first[0].numel == 54
    assert layout.size == len(early)
    with pytest.raises(SettingError, match=r"numbers: got 3 numbers, want the \d+ of the layout"):
        sampler.readings([1.0, 2.0, 3.0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_a_cuda_device_and_the_numbers_are_those_of_the_cpu():
    torch.manual_seed(0)
    model, x = saturating(), torch.randn(2000, 6)
    wanted = sampled_once(model, torch.sum, x)
    model, x = model.cuda(), x.cuda()
    sampler = Sampler(model)
    for _ in range(2):
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler.arm()
            model(x).sum().backward()
            numbers = sampler.packed()
            sampler.disarm()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert numbers.is_cuda
        found = sampler.readings(numbers.tolist())
        assert all(is_close(one, other, rel=1e-3) for one, other in zip(found, wanted, strict=True))
