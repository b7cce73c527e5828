"""Readings against the same numbers computed anew, in float64 with plain torch operations."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from evengrad.probe import probe

DOUBLE = {"rel": 1e-5, "abs": 1e-12}


def layers_of(model, loss, batch):
    return {layer.name: layer for layer in probe(model, loss, batch).readings[0].layers}


def double(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt().item()


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 12),
        nn.Tanh(),
        nn.Linear(12, 7),
        nn.Sigmoid(),
        nn.Linear(7, 3),
    )


def images(count=9):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(count, 2, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def test_every_number_of_a_network_is_what_float64_gives():
    model, (x, y) = net(), images()
    model[0].bias.data[1] = -100.0  # a dead channel
    model[3].weight.data *= 6  # drives some of the tanh units into saturation
    layers = layers_of(model, functional.cross_entropy, (x, y))
    twin, values, h = copy.deepcopy(model).double(), [], x.double()
    for module in twin:
        h = module(h)
        h.retain_grad()
        values.append(h)
    functional.cross_entropy(h, y).backward()
    assert list(layers) == [str(number) for number in range(8)]
    for name, value in zip(layers, values, strict=True):
        layer, data = layers[name], value.detach()
        assert layer.kind == type(twin[int(name)]).__name__
        assert layer.activation_rms == pytest.approx(rms(data), **DOUBLE)
        assert layer.activation_absmax == pytest.approx(data.abs().max().item(), **DOUBLE)
        assert layer.grad_rms == pytest.approx(rms(value.grad), **DOUBLE)
        assert layer.grad_norm == pytest.approx(value.grad.norm().item(), **DOUBLE)
        assert layer.zero_frac == pytest.approx((data == 0).double().mean().item(), **DOUBLE)
        assert layer.numel == data.numel()
        assert layer.weighted == (int(name) in {0, 3, 5, 7})
        assert layer.units * layer.observations == data.numel()
    for name in "0357":
        weight = twin[int(name)].weight
        assert layers[name].weight_norm == pytest.approx(weight.norm().item(), **DOUBLE)
        assert layers[name].weight_grad_norm == pytest.approx(weight.grad.norm().item(), **DOUBLE)
    assert layers["1"].dead_frac == pytest.approx((values[1] == 0).all(dim=(0, 2, 3)).double().mean().item())
    assert layers["1"].dead_frac >= 0.2
    assert (layers["1"].units, layers["1"].observations) == (5, 9 * 16)
    assert (layers["4"].units, layers["4"].observations) == (12, 9)
    tanh_slope, s = 1 - values[4] ** 2, values[6]
    assert layers["4"].saturated_frac == pytest.approx((tanh_slope < 0.05).double().mean().item(), **DOUBLE)
    assert layers["6"].saturated_frac == pytest.approx((4 * s * (1 - s) < 0.05).double().mean().item(), **DOUBLE)
    assert layers["4"].saturated_frac > 0
    assert {layer.nonlinearity for layer in layers.values()} == {None, "relu", "tanh", "sigmoid"}
    assert all(layers[name].saturated_frac is None for name in "012357")


def test_the_reading_holds_loss_and_gradient_norms_of_all_parameters():
    model, (x, y) = net(), images()
    record = probe(model, functional.cross_entropy, (x, y), step=7)
    twin = copy.deepcopy(model).double()
    loss = functional.cross_entropy(twin(x.double()), y)
    loss.backward()
    reading = record.readings[0]
    norms = [parameter.grad.norm().item() for parameter in twin.parameters()]
    assert (reading.step, record.dtype) == (7, "float32")
    assert reading.loss == pytest.approx(loss.item(), rel=1e-5)
    assert record.parameters == tuple(name for name, _ in model.named_parameters())
    assert reading.grad_norms == pytest.approx(norms, rel=1e-5)
    assert reading.total_norm == pytest.approx(math.sqrt(sum(norm**2 for norm in norms)), rel=1e-5)


def test_numbers_near_the_ends_of_float32_neither_overflow_nor_vanish():
    big, small = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    nn.init.constant_(big.weight, 3e25)
    nn.init.constant_(small.weight, 3e-25)
    one = layers_of(big, lambda out, _: out.sum() * 1e-30, (torch.ones(3, 2), torch.ones(1)))["(model)"]
    other = layers_of(small, lambda out, _: out.sum() * 1e-30, (torch.ones(3, 2), torch.ones(1)))["(model)"]
    assert one.activation_rms == pytest.approx(6e25, rel=1e-5)
    assert one.weight_norm == pytest.approx(6e25, rel=1e-5)
    assert other.activation_rms == pytest.approx(6e-25, rel=1e-5)
    assert one.grad_rms == other.grad_rms == pytest.approx(1e-30, rel=1e-5)


RECURRENT = [nn.RNN, nn.LSTM, nn.GRU]


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_profile_over_time_is_the_gradient_at_the_inputs(kind, batch_first, bidirectional):
    torch.manual_seed(0)
    model = kind(3, 5, num_layers=2, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(4, 11, 3) if batch_first else torch.randn(11, 4, 3)

    def loss(result, _):
        return result[0].select(1 if batch_first else 0, -1).square().sum()

    layer = layers_of(model, loss, (x, torch.zeros(1)))["(model)"]
    inputs = x.double().requires_grad_()
    twin = copy.deepcopy(model).double()
    result = twin(inputs)
    result[0].retain_grad()
    loss(result, None).backward()
    gradient = inputs.grad if not batch_first else inputs.grad.transpose(0, 1)
    assert len(layer.time_grad_rms) == 11
    assert layer.time_grad_rms == pytest.approx([rms(step) for step in gradient], rel=1e-5, abs=1e-9)
    assert layer.grad_rms == pytest.approx(rms(result[0].grad), rel=1e-5)
    assert layer.weight_grad_norm == pytest.approx(
        math.sqrt(sum(p.grad.norm().item() ** 2 for p in twin.parameters() if p.ndim >= 2)), rel=1e-5
    )
    assert layer.numel == result[0].numel()


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_packed_sequence_has_a_profile_over_the_steps_that_are_there(kind):
    torch.manual_seed(0)
    model, lengths = kind(3, 5), [7, 4, 4, 1]
    sequences = [torch.randn(length, 3) for length in lengths]

    def loss(result, _):
        return rnn.pad_packed_sequence(result[0])[0].square().sum()

    layer = layers_of(model, loss, (rnn.pack_sequence(sequences), torch.zeros(1)))["(model)"]
    leaves = [sequence.double().requires_grad_() for sequence in sequences]
    loss(copy.deepcopy(model).double()(rnn.pack_sequence(leaves)), None).backward()
    steps = [torch.stack([leaf.grad[t] for leaf in leaves if len(leaf) > t]) for t in range(7)]
    assert layer.time_grad_rms == pytest.approx([rms(step) for step in steps], rel=1e-5)


def test_a_recurrent_layer_behind_an_embedding_has_a_profile_too():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True)

        def forward(self, x):
            return self.rnn(self.embed(x))[0][:, -1]

    torch.manual_seed(0)
    model, x = Words(), torch.randint(0, 9, (6, 8))
    layers = layers_of(model, lambda out, _: out.square().sum(), (x, x))
    assert layers["embed"].grad_rms == pytest.approx(rms_of_rms(layers["rnn"].time_grad_rms), rel=1e-5)
    assert layers["embed"].weighted
    assert layers["embed"].input_finite


def rms_of_rms(values):
    return math.sqrt(sum(value * value for value in values) / len(values))


class Functional(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.inplace = nn.Linear(4, 6), nn.Linear(6, 6), inplace

    def forward(self, x):
        h = functional.relu(self.a(x), inplace=self.inplace)
        h = torch.tanh(self.b(h))
        return (h + 1).sigmoid() * functional.silu(h)


@pytest.mark.parametrize("inplace", [True, False])
def test_non_linearities_called_as_functions_are_layers(inplace):
    model, x = Functional(inplace), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    layers = layers_of(model, lambda out, _: functional.softplus(out).sum(), (x, x))
    assert list(layers) == ["a", "relu()", "b", "tanh()", "sigmoid()", "silu()"]
    assert [layer.nonlinearity for layer in layers.values()] == [None, "relu", None, "tanh", "sigmoid", "silu"]
    twin = copy.deepcopy(model).double()
    a = twin.a(x.double())
    h = a.relu()
    t = twin.b(h).tanh()
    for value in (a, h, t):
        value.retain_grad()
    out = (t + 1).sigmoid() * functional.silu(t)
    functional.softplus(out).sum().backward()
    for name, value in (("a", a), ("relu()", h), ("tanh()", t)):
        assert layers[name].activation_rms == pytest.approx(rms(value), rel=1e-5)
        assert layers[name].grad_rms == pytest.approx(rms(value.grad), rel=1e-5)
    assert layers["relu()"].zero_frac == pytest.approx((h == 0).double().mean().item())


def test_a_function_in_place_has_the_name_of_the_plain_one():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(4, 6)

        def forward(self, x):
            return torch.relu_(self.fc(x)).add(1).tanh_()

    layers = layers_of(InPlace(), lambda out, _: out.sum(), (torch.randn(5, 4), torch.zeros(1)))
    assert list(layers) == ["fc", "relu()", "tanh()"]
    assert layers["relu()"].zero_frac > 0


@pytest.mark.parametrize("inplace", [True, False])
def test_a_rectifier_in_place_hides_nothing_of_the_layer_before_it(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 2))
    x = torch.randn(8, 4)
    layers = layers_of(model, lambda out, _: out.square().sum(), (x, x))
    before = model[0](x)
    assert layers["0"].activation_rms == pytest.approx(rms(before), rel=1e-5)
    assert layers["0"].zero_frac == 0.0
    assert layers["1"].zero_frac == pytest.approx((before <= 0).double().mean().item())
    assert layers["0"].grad_rms < layers["1"].grad_rms


def test_a_module_called_three_times_has_three_readings():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model, x = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), shared), torch.randn(3, 4)
    layers = layers_of(model, lambda out, _: out.square().sum(), (x, x))
    assert list(layers) == ["0", "1", "0#2", "3", "0#3"]
    h = [x.double()]
    twin = copy.deepcopy(shared).double()
    for _ in range(3):
        h.append(twin(h[-1].tanh() if len(h) > 1 else h[-1]))
        h[-1].retain_grad()
    h[-1].square().sum().backward()
    for name, value in zip(("0", "0#2", "0#3"), h[1:], strict=True):
        assert layers[name].grad_rms == pytest.approx(rms(value.grad), rel=1e-5)
        assert layers[name].weight_grad_norm == pytest.approx(twin.weight.grad.norm().item(), rel=1e-5)


class ManyOutputs(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.fc, self.kind, self.scale = nn.Linear(3, 4), kind, nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        first, second = self.fc(x), x.sum() * self.scale
        index = torch.arange(3)
        return {"index": index, "a": first, "b": [second]} if self.kind is dict else (index, first, (second,))


@pytest.mark.parametrize("kind", [dict, tuple])
def test_of_several_outputs_the_first_floating_one_is_measured_and_all_count_as_finite_or_not(kind):
    torch.manual_seed(0)
    model, x = ManyOutputs(kind), torch.randn(5, 3)

    def loss(out, _):
        a, b = (out["a"], out["b"][0]) if kind is dict else (out[1], out[2][0])
        return a.sum() + b.sum()

    layers = layers_of(model, loss, (x, x))
    assert list(layers) == ["fc", "(model)"]
    assert layers["(model)"].numel == 20
    assert layers["(model)"].output_finite
    model.scale.data[0, 0] = math.inf
    assert not layers_of(model, loss, (x, x))["(model)"].output_finite
    assert layers_of(model, loss, (x, x))["fc"].output_finite


@pytest.mark.parametrize("mode", [True, False])
def test_attention_is_a_layer_with_weights(mode):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(mode)
    x = torch.randn(4, 5, 8)
    layers = layers_of(model, functional.mse_loss, (x, x))
    assert [name for name, layer in layers.items() if layer.weighted] == ["self_attn", "linear1", "linear2"]
    twin = copy.deepcopy(model).double()
    attended = twin.self_attn(x.double(), x.double(), x.double(), need_weights=False)[0]
    attended.retain_grad()
    h = twin.norm1(x.double() + attended)
    h = twin.norm2(h + twin.linear2(twin.linear1(h).relu()))
    functional.mse_loss(h, x.double()).backward()
    assert layers["self_attn"].activation_rms == pytest.approx(rms(attended), rel=1e-4)
    assert layers["self_attn"].grad_rms == pytest.approx(rms(attended.grad), rel=1e-4)
    weight_grad = twin.self_attn.in_proj_weight.grad.norm().item()
    assert layers["self_attn"].weight_grad_norm == pytest.approx(weight_grad, rel=1e-4)
    assert layers["relu()"].nonlinearity == "relu"


def test_a_sparse_gradient_of_an_embedding_is_measured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    twin = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    index = torch.tensor([[1, 1, 3], [1, 9, 9]])
    one, two = (probe(each, lambda out, _: out.square().sum(), (index, index)) for each in (model, twin))
    assert one.readings[0].grad_norms == pytest.approx(two.readings[0].grad_norms, rel=1e-6)
    assert one.readings[0].layers[0].weight_grad_norm == pytest.approx(one.readings[0].grad_norms[0], rel=1e-6)


def test_complex_weights_count_their_real_and_imaginary_parts():
    class Phase(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(3, 4, dtype=torch.complex64)

        def forward(self, x):
            return self.fc(x).abs()

    model, x = Phase(), torch.randn(5, 3, dtype=torch.complex64)
    record = probe(model, lambda out, _: out.square().sum(), (x, torch.zeros(1)))
    model.fc(x).abs().square().sum().backward()
    assert record.dtype == "complex64"
    norms = [torch.view_as_real(p.grad).double().norm().item() for p in model.parameters()]
    assert record.readings[0].grad_norms == pytest.approx(norms, rel=1e-5)
    assert record.readings[0].layers[0].activation_rms == pytest.approx(rms(torch.view_as_real(model.fc(x))), rel=1e-5)


def test_frozen_parts_have_activations_and_gradients_but_no_weight_gradient():
    model, (x, y) = net(), images()
    model[3].requires_grad_(requires_grad=False)
    model[0].requires_grad_(requires_grad=False)
    record = probe(model, functional.cross_entropy, (x, y))
    layers = {layer.name: layer for layer in record.readings[0].layers}
    assert layers["0"].grad_rms is None  # nothing before it is trained
    assert layers["0"].activation_rms > 0
    assert layers["3"].weight_grad_norm == layers["0"].weight_grad_norm == 0.0
    assert layers["3"].weight_norm == pytest.approx(model[3].weight.double().norm().item(), rel=1e-5)
    norms = dict(zip(record.parameters, record.readings[0].grad_norms, strict=True))
    assert {name for name, norm in norms.items() if norm == 0.0} == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_a_half_precision_model_is_measured_in_a_wider_type():
    model, (x, y) = net().bfloat16(), images()
    record = probe(model, functional.cross_entropy, (x.bfloat16(), y))
    assert record.dtype == "bfloat16"
    hidden = model[0](x.bfloat16())
    layer = record.readings[0].layers[0]
    assert layer.activation_rms == pytest.approx(rms(hidden), rel=1e-5)
    twin = copy.deepcopy(model)
    functional.cross_entropy(twin(x.bfloat16()), y).backward()
    norms = [p.grad.double().norm().item() for p in twin.parameters()]
    assert record.readings[0].grad_norms == pytest.approx(norms, rel=1e-5)
    assert all(norm > 0 for norm in norms)


class Branching(nn.Module):
    """Tied weights, an output nobody uses, and a parameter nobody uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.unused, self.side = nn.Linear(2, 2), nn.Linear(5, 3)

    def forward(self, x):
        h = self.embed(x)
        self.side(h)
        return self.head(h)


def test_tied_weights_count_once_and_what_is_not_reached_is_told_apart():
    record = probe(Branching(), lambda out, _: out.square().sum(), (torch.arange(7), torch.zeros(1)))
    assert record.parameters == ("embed.weight", "unused.weight", "unused.bias", "side.weight", "side.bias")
    assert record.readings[0].grad_norms[1:] == (0.0,) * 4
    layers = {layer.name: layer for layer in record.readings[0].layers}
    assert list(layers) == ["embed", "side", "head"]
    assert layers["side"].grad_rms is None
    assert layers["embed"].weight_grad_norm == layers["head"].weight_grad_norm == record.readings[0].grad_norms[0]
