"""Readings of what is not a plain stack of layers: broken numbers, masks, parametrizations, compiled parts, experts."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe import probe


def layers_of(model, loss, batch):
    return {layer.name: layer for layer in probe(model, loss, batch).readings[0].layers}


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt().item()


class Log(nn.Module):
    def forward(self, x):
        return torch.log(x)


def test_the_module_that_makes_nan_is_the_one_with_finite_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Log(), nn.Linear(4, 4), nn.ReLU(inplace=True))
    batch = torch.randn(8, 4), torch.zeros(1)
    layers = layers_of(model, lambda out, _: out.sum(), batch)
    seen = [(layer.input_finite, layer.output_finite) for layer in layers.values()]
    assert seen == [(True, True), (True, False), (False, False), (False, False)]
    values = model[1](model[0](batch[0]))
    assert layers["1"].activation_rms == pytest.approx(rms(values[values.isfinite()]), rel=1e-5)


@pytest.mark.parametrize("inplace", [True, False])
def test_nan_made_between_modules_is_not_blamed_on_the_function_after_it(inplace):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return functional.relu(self.fc(x).log(), inplace=inplace)

    torch.manual_seed(0)
    layers = layers_of(Between(), lambda out, _: out.sum(), (torch.randn(8, 4), torch.zeros(1)))
    assert not layers["relu()"].input_finite


def test_the_first_non_finite_gradient_on_the_way_back_is_seen():
    class Root(nn.Module):
        def forward(self, x):
            return x.abs().sqrt()

    model = nn.Sequential(nn.Linear(2, 2), Root(), nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    record = probe(model, lambda out, _: out.sum(), (torch.ones(3, 2), torch.zeros(1)))
    assert [layer.grad_finite for layer in record.readings[0].layers] == [False, True, True]
    assert all(layer.output_finite for layer in record.readings[0].layers)
    assert [math.isfinite(norm) for norm in record.readings[0].grad_norms] == [False, False, True, True]


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x, mask):
        return self.layer(x, src_mask=mask)


def test_an_additive_mask_of_minus_infinities_is_no_bad_input():
    model, mask = Causal(), nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    layers = layers_of(model, functional.mse_loss, ((x, mask), x))
    assert all(layer.input_finite and layer.output_finite for layer in layers.values())
    model.layer.self_attn.in_proj_weight.data.fill_(3e38)
    attention = layers_of(model, functional.mse_loss, ((x, mask), x))["layer.self_attn"]
    assert (attention.input_finite, attention.output_finite) == (True, False)


@pytest.mark.parametrize(
    ("module", "shape", "units"),
    [
        (nn.Linear(6, 7), (2, 3, 5, 6), 7),
        (nn.Conv1d(6, 7, 1), (2, 6, 5), 7),
        (nn.Conv2d(6, 7, 1), (2, 6, 5, 4), 7),
        (nn.BatchNorm2d(6), (2, 6, 5, 4), 6),
        (nn.LayerNorm(6), (2, 5, 6), 6),
        (nn.GRU(6, 7), (2, 5, 6), 7),
        (nn.Linear(6, 7), (6,), 7),
    ],
)
def test_units_are_channels_of_a_convolution_and_features_of_all_else(module, shape, units):
    model = nn.Sequential(module)
    layer = layers_of(model, lambda out, _: sum_of(out), (torch.randn(shape), torch.zeros(1)))["0"]
    assert layer.units == units
    assert layer.units * layer.observations == layer.numel


def sum_of(out):
    return out[0].sum() if isinstance(out, tuple) else out.sum()


def test_dead_units_behind_a_dense_layer_on_a_grid_are_its_features():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5), nn.ReLU())
    model[0].bias.data[0] = -100.0
    model[3].bias.data[:2] = -100.0
    layers = layers_of(model, lambda out, _: out.sum(), (torch.rand(8, 3, 6), torch.zeros(1)))
    assert (layers["1"].units, layers["1"].dead_frac) == (4, pytest.approx(0.25))
    assert (layers["4"].units, layers["4"].dead_frac) == (5, pytest.approx(0.4))


@pytest.mark.parametrize(
    ("module", "slope", "name"),
    [
        (nn.Sigmoid(), lambda x: 4 * x.sigmoid() * (1 - x.sigmoid()), "sigmoid"),
        (nn.Tanh(), lambda x: 1 - x.tanh() ** 2, "tanh"),
        (nn.Softsign(), lambda x: (1 + x.abs()) ** -2, "softsign"),
        (nn.Hardtanh(), lambda x: (x.abs() < 1).double(), "hardtanh"),
        (nn.Hardsigmoid(), lambda x: (x.abs() < 3).double(), "hardsigmoid"),
    ],
)
def test_saturation_is_a_slope_below_a_twentieth_of_the_largest(module, slope, name):
    x = torch.linspace(-9, 9, 400).reshape(20, 20)
    first = nn.Linear(20, 20, bias=False)
    nn.init.eye_(first.weight)
    layer = layers_of(nn.Sequential(first, module), lambda out, _: out.sum(), (x, x))["1"]
    assert layer.nonlinearity == name
    assert layer.saturated_frac == pytest.approx((slope(x.double()) < 0.05).double().mean().item())
    small = layers_of(nn.Sequential(first, module), lambda out, _: out.sum(), (x * 0, x))["1"]
    assert small.saturated_frac == 0.0


def test_a_clamp_with_bounds_of_its_own_is_not_called_saturated():
    class Clamp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 3), nn.Hardtanh(0.0, 20.0)

        def forward(self, x):
            return functional.hardtanh(functional.hardtanh(self.act(self.fc(x)), -5, 5), max_val=2.0)

    layers = layers_of(Clamp(), lambda out, _: out.sum(), (torch.randn(4, 3), torch.zeros(1)))
    assert list(layers) == ["fc", "act"]
    assert layers["act"].nonlinearity is None


def test_a_compiled_model_has_the_names_and_numbers_of_the_plain_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    batch = torch.randn(9, 2, 6, 6), torch.randint(0, 3, (9,))
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    assert probe(compiled, functional.cross_entropy, batch) == probe(model, functional.cross_entropy, batch)
    model[3] = torch.compile(model[3], backend="eager")
    names = [layer.name for layer in probe(model, functional.cross_entropy, batch).readings[0].layers]
    assert names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_parametrized_layer_is_one_layer_with_weights(wrap):
    torch.manual_seed(0)
    model, x = nn.Sequential(wrap(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2)), torch.randn(5, 4)
    layers = layers_of(model, lambda out, _: out.square().sum(), (x, x))
    assert [(name, layer.weighted) for name, layer in layers.items()] == [("0", True), ("1", False), ("2", True)]
    model.eval()
    layer = layers_of(model, lambda out, _: out.square().sum(), (x, x))["0"]
    assert layer.activation_rms == pytest.approx(rms(model[0](x)), rel=1e-5)
    model(x).square().sum().backward()
    originals = [p.grad.norm().item() for p in model[0].parametrizations.parameters() if p.ndim >= 2]
    assert layer.weight_grad_norm == pytest.approx(math.hypot(*originals), rel=1e-4)


def test_what_a_checkpointed_part_computes_again_is_no_second_call():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
            self.saving = True

        def part(self, x):
            return functional.relu(self.a(x))

        def forward(self, x):
            h = torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False) if self.saving else self.part(x)
            return self.b(h)

    model, x = Checkpointed(), torch.randn(5, 4)
    saving = probe(model, lambda out, _: out.square().sum(), (x, x))
    model.saving = False
    assert saving == probe(model, lambda out, _: out.square().sum(), (x, x))
    assert [layer.name for layer in saving.readings[0].layers] == ["a", "relu()", "b"]


def test_an_expert_that_gets_no_sample_is_no_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = layers_of(model, lambda out, _: out.sum() + model[0].weight.sum(), (torch.ones(1, 4), torch.zeros(1)))
    assert layers["0"].observations == 1

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.one(x).sum() + self.other(x[:0]).sum()

    layers = layers_of(Routed(), lambda out, _: out, (torch.ones(3, 4), torch.zeros(1)))
    assert (layers["other"].numel, layers["other"].observations, layers["other"].dead_frac) == (0, 0, 0.0)
    assert layers["other"].output_finite
    assert layers["other"].grad_norm in (None, 0.0)


def test_a_mapping_is_spread_over_keywords_and_a_tuple_over_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(3, 2)

        def forward(self, left, right):
            return self.fc(left - 2 * right)

    model, a, b = Two(), torch.randn(4, 3), torch.randn(4, 3)
    expected = functional.mse_loss(model(a, b), torch.ones(4, 2)).item()
    for data in ((a, b), {"right": b, "left": a}):
        assert probe(model, functional.mse_loss, (data, torch.ones(4, 2))).readings[0].loss == pytest.approx(expected)
