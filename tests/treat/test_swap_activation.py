"""Activations that are swapped wherever they stand, and those that must not be."""

import copy
import pickle

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn import functional

from evengrad.nouns import TreatmentError
from evengrad.treat import Combined, Reinitialize, SwapActivation


def test_a_function_between_layers_is_swapped(models):
    model, x = models["functional"](), torch.randn(4, 6)
    treated = SwapActivation(to="silu").treat(model, batch_input=x)
    expected = model.last(functional.silu(model.middle(functional.silu(model.first(x)))))
    assert torch.equal(treated.subject(x), expected)
    assert treated.changes == ("forward (Functional): relu, tanh replaced by modules, silu",)
    assert type(treated.subject) is type(model)
    assert torch.equal(pickle.loads(pickle.dumps(treated.subject))(x), expected)
    assert torch.equal(pasted(treated.code, model)(x), expected)


def test_what_is_pasted_survives_a_copy(models):
    model, x = models["functional"](), torch.randn(4, 6)
    by_hand = pasted(SwapActivation(to="silu").treat(model, batch_input=x).code, model)
    other, before = copy.deepcopy(by_hand), by_hand(x)
    other.first.weight.data.zero_()
    assert torch.equal(by_hand(x), before)
    assert not torch.equal(other(x), before)


def test_without_a_batch_functions_are_not_swapped_and_the_error_asks_for_one(models):
    with pytest.raises(TreatmentError, match="give batch_input"):
        SwapActivation(to="silu").treat(models["functional"]())


def test_a_second_swap_finds_what_the_first_one_put_in(models):
    model, x = models["functional"](), torch.randn(4, 6)
    both = Combined((SwapActivation(to="silu"), SwapActivation(to="elu")))
    treated = both.treat(model, batch_input=x)
    expected = model.last(functional.elu(model.middle(functional.elu(model.first(x)))))
    assert torch.equal(treated.subject(x), expected)
    assert torch.equal(pasted(treated.code, model)(x), expected)


def test_weights_are_scaled_for_a_function_that_was_swapped(models):
    model, x = models["functional"](), torch.randn(4, 6)
    treated = Combined((SwapActivation(to="selu"), Reinitialize())).treat(model, batch_input=x)
    assert any("gain 1 for the selu that follows" in change for change in treated.changes)


class Squeezed(nn.Module):
    """Squeeze and excitation, with the gate in a sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)
        self.gate = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, x):
        x = self.act(self.first(x))
        return self.last(x * self.gate(x.mean((2, 3)))[:, :, None, None])


class Cell(nn.Module):
    """An LSTM by hand, with functions."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.mid = nn.Linear(6 + 5, 20), nn.Linear(4, 2), nn.Linear(5, 4)

    def forward(self, x):
        h = c = torch.zeros_like(x[:, 0, :5])
        for step in range(3):
            i, f, o, g = self.inner(torch.cat([x[:, step], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(torch.tanh(self.mid(h)))


class Update(nn.Module):
    """A gate that is used as `z` and as `1 - z`, modules as attributes."""

    def __init__(self):
        super().__init__()
        self.z, self.n, self.mid, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.sigmoid, self.tanh, self.act = nn.Sigmoid(), nn.Tanh(), nn.ReLU()

    def forward(self, x):
        z = self.sigmoid(self.z(x))
        x = (1 - z) * self.tanh(self.n(x)) + z * x
        return self.head(self.act(self.mid(x)))


class Attention(nn.Module):
    """Attention by hand, linear attention with feature maps, a gated feed-forward part, and one plain one."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.w1, self.w3, self.w2, self.up, self.down = (nn.Linear(6, 6) for _ in range(8))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        x = x + (q @ k.transpose(-1, -2)).softmax(-1) @ v
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        x = x + q @ (k.transpose(-1, -2) @ v)
        x = x + self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return x + self.down(functional.gelu(self.up(x)))


@pytest.mark.parametrize(
    ("kind", "shape", "swapped"),
    [
        (Squeezed, (2, 3, 8, 8), {"act", "gate.1"}),
        (Cell, (4, 3, 6), {"call_tanh_6"}),
        (Update, (4, 6), {"act"}),
        (Attention, (4, 3, 6), {"call_gelu"}),
    ],
)
def test_gates_feature_maps_and_attention_weights_stay(kind, shape, swapped):
    model, x = kind(), torch.randn(shape)
    treated = SwapActivation(to="leaky_relu").treat(model, batch_input=x).subject
    assert {name for name, module in treated.named_modules() if isinstance(module, nn.LeakyReLU)} == swapped
    assert treated(x).shape == model(x).shape


def test_what_is_only_scaled_is_no_gate():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.gamma = nn.Parameter(torch.ones(6))

        def forward(self, x):
            x = self.gamma * torch.tanh(self.first(x))
            return self.last(functional.dropout(torch.sigmoid(self.second(x)), 0.1, self.training) / 0.5)

    treated = SwapActivation(to="relu").treat(Scaled(), batch_input=torch.randn(4, 6)).subject
    assert {name for name, module in treated.named_modules() if isinstance(module, nn.ReLU)} == {
        "call_tanh",
        "call_sigmoid",
    }


def test_an_output_function_stays():
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return torch.tanh(self.last(torch.tanh(self.first(x))))

    treated = SwapActivation(to="relu").treat(Bounded(), batch_input=torch.randn(4, 6)).subject
    assert [name for name, _ in treated.named_children()] == ["first", "last", "call_tanh"]


class WrittenOut(nn.Module):
    """A gelu written out: the tanh inside is no activation by itself."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.045 * x**3)))


def test_an_activation_of_ones_own_in_a_forward_is_swapped_when_a_batch_shows_where_it_is():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(6, 6), WrittenOut(), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    treated = SwapActivation(to="relu").treat(Own(), batch_input=torch.randn(4, 6))
    assert treated.changes == ("act: WrittenOut replaced by relu",)
    with pytest.raises(TreatmentError, match="SwapActivation"):
        SwapActivation(to="relu").treat(Own())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prelu_has_one_parameter_that_the_optimizer_of_the_treated_task_holds(task, dtype):
    from dataclasses import replace

    task = replace(task, model=Half(dtype), train=lambda: [(torch.randn(8, 6).to(dtype), torch.zeros(8, 1).to(dtype))])
    treated = SwapActivation(to="prelu").treat_task(task)
    model = treated.subject.model()
    slopes = [module.weight for module in model.modules() if isinstance(module, nn.PReLU)]
    assert [(slope.shape, slope.dtype) for slope in slopes] == [((1,), dtype)] * 4
    held = {id(each) for group in treated.subject.optimizer(model).param_groups for each in group["params"]}
    assert {id(slope) for slope in slopes} <= held


class Half:
    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self):
        layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
        return nn.Sequential(*layers, nn.Linear(6, 1)).to(self.dtype)


def test_selu_comes_with_its_own_initialisation_and_dropout():
    model = nn.Sequential(
        nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4)
    )
    treated = SwapActivation(to="selu").treat(model)
    for index, fan_in in ((0, 512), (3, 256)):
        layer = treated.subject[index]
        assert float(layer.weight.detach().var()) * fan_in == pytest.approx(1.0, rel=0.05)
        assert not layer.bias.any()
    assert torch.equal(treated.subject[5].weight, model[5].weight)
    assert isinstance(treated.subject[2], nn.AlphaDropout)
    assert treated.subject[2].p == 0.1
    assert treated.changes == (
        "1, 4: relu replaced by selu",
        "0, 3: weights drawn anew for the selu, LeCun normal; bias zero",
        "2: dropout replaced by alpha dropout",
    )
    out = treated.subject.train()[:5](torch.randn(2000, 512)).detach()
    assert float(out.mean().abs()) < 0.1  # mean 0 and variance 1 are the fixed point of Klambauer et al. 2017
    assert float(out.var()) == pytest.approx(1.0, rel=0.2)


def test_weights_that_are_tied_are_not_drawn_for_a_selu(models):
    model = models["tied"]()
    model.inner.weight = nn.Parameter(torch.randn(8, 8))
    model.other = nn.Linear(8, 8)
    model.other.weight = model.inner.weight
    treated = SwapActivation(to="selu").treat(model, batch_input=torch.randint(10, (4,))).subject
    assert torch.equal(treated.inner.weight, model.inner.weight)


@pytest.mark.parametrize("before", ["relu", "gelu", nn.ReLU(), functional.silu])
@pytest.mark.parametrize("to", ["relu", "gelu", "tanh"])
def test_a_transformer_layer_gets_another_activation_in_both_paths(before, to):
    if to == before or (to == "relu" and isinstance(before, nn.ReLU)):
        return
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=before, batch_first=True)
    x = torch.randn(4, 3, 8)
    treated = SwapActivation(to=to).treat(layer, batch_input=x)
    expected = nn.TransformerEncoderLayer(8, 2, 16, 0.0, getattr(torch, to, functional.gelu), batch_first=True)
    if to != "tanh":
        expected = nn.TransformerEncoderLayer(8, 2, 16, 0.0, to, batch_first=True)
    expected.load_state_dict(layer.state_dict())
    for net in (treated.subject, pasted(treated.code, layer)):
        torch.testing.assert_close(net.train()(x), expected.train()(x))
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), expected.eval()(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_stack_of_transformer_layers_with_padding_still_runs_in_evaluation_mode():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(4, 3, 8)
    padding = torch.tensor([[False, False, True]] * 4)
    treated = SwapActivation(to="tanh").treat(model, batch_input={"src": x, "src_key_padding_mask": padding})
    for net in (treated.subject, pasted(treated.code, model)):
        with torch.no_grad():
            out = net.eval()(x, src_key_padding_mask=padding)
            torch.testing.assert_close(out[:, :2], net(x[:, :2]))


def test_a_decoder_layer_gets_another_activation():
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    treated = SwapActivation(to="silu").treat(layer, batch_input=(torch.randn(2, 3, 8), torch.randn(2, 3, 8)))
    assert isinstance(treated.subject.activation, nn.SiLU)
    assert treated.changes == ("(model): feed-forward activation replaced by silu",)
