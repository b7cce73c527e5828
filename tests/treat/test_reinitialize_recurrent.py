"""Recurrent weights at the edge of stability: gains, gates that remember, networks written by hand, and data."""

import math

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from evengrad.nouns import TreatmentError
from evengrad.treat import Reinitialize


def drawn(model, batch=None, **settings):
    return Reinitialize(**settings).treat(model, seed=3, batch_input=batch)


def both(treated, model):
    return treated.subject, pasted(treated.code, model)


def radius(weight):
    return torch.linalg.eigvals(weight.detach().double()).abs().max().item()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("gain", [None, 0.9])
def test_the_spectral_radius_of_each_gate_is_the_gain(kind, gain):
    model = nn.Sequential(kind(4, 9))
    for changed in both(drawn(model, recurrent_gain=gain), model):
        weight = next(value for key, value in changed.named_parameters() if "weight_hh" in key)
        for gate in weight.chunk(weight.shape[0] // 9):
            assert radius(gate) == pytest.approx(gain or 1.0, rel=1e-4)


def test_the_identity_of_a_relu_layer_has_the_gain_too():
    model = nn.Sequential(nn.RNN(4, 6, nonlinearity="relu"))
    for changed in both(drawn(model, recurrent_gain=0.5), model):
        assert torch.equal(changed[0].weight_hh_l0, 0.5 * torch.eye(6))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("number", [1.0, 2.5, -1.0, 0])
def test_the_gate_that_keeps_the_state_has_the_bias_that_was_asked_for(kind, number):
    model, gates = nn.Sequential(kind(4, 6)), 4 if kind is nn.LSTM else 3
    for changed in both(drawn(model, torch.randn(50, 2, 4), forget_bias=number), model):
        blocks = changed[0].bias_ih_l0.chunk(gates)
        assert blocks[1].eq(float(number)).all()
        assert not any(block.any() for index, block in enumerate(blocks) if index != 1)
        assert not changed[0].bias_hh_l0.any()


class Sequences(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.rnn = layer

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("settings", [{"forget_bias": "chrono"}, {}])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_with_a_batch_gates_remember_times_spread_evenly_up_to_the_length(kind, settings):
    model, gates = Sequences(kind(2, 400, batch_first=True)), 4 if kind is nn.LSTM else 3
    treated = drawn(model, torch.randn(1, 41, 2), **settings)
    assert "to remember up to 41 steps" in treated.changes[0]
    for changed in both(treated, model):
        blocks = changed.rnn.bias_ih_l0.detach().chunk(gates)
        times = blocks[1].exp()
        assert 1.0 <= times.min() < 2.0
        assert 39.0 < times.max() < 40.01
        assert times.mean().item() == pytest.approx(20.5, rel=0.1)  # of a uniform one from 1 to 40
        if gates == 4:
            assert torch.equal(blocks[0], -blocks[1])


def test_the_length_of_packed_sequences_and_the_calls_of_a_cell_are_counted():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(2, 5)

        def forward(self, x):
            state = None
            for step in x:
                state = self.cell(step, state)
            return state[0]

    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 5)

        def forward(self, *sequences):
            return self.rnn(input=pack_sequence(sequences, enforce_sorted=False))[1]

    assert "up to 13 steps" in drawn(Packs(), (torch.randn(9, 2), torch.randn(13, 2))).changes[0]
    assert "up to 7 steps" in drawn(Loop(), torch.randn(7, 3, 2)).changes[0]


def test_chrono_without_a_batch_is_refused():
    with pytest.raises(TreatmentError, match="how long the sequences are"):
        drawn(nn.Sequential(nn.GRU(2, 3)), forget_bias="chrono")


def test_layers_without_biases_are_drawn_and_nothing_is_said_of_biases():
    model = nn.Sequential(nn.LSTM(2, 3, bias=False))
    treated = drawn(model)
    assert "bias" not in treated.changes[0]
    assert pasted(treated.code, model)[0].weight_hh_l0.shape == (12, 3)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_gradients_reach_the_first_of_two_hundred_steps(kind):
    for seed in range(3):
        model = Sequences({"gru": nn.GRU, "lstm": nn.LSTM}[kind](5, 64, batch_first=True))
        x = torch.randn(4, 200, 5)
        lost = []
        for settings in ({}, {"forget_bias": 1.0}):
            treated = Reinitialize(**settings).treat(model, seed=seed, batch_input=x).subject
            leaf = x.clone().requires_grad_()
            treated(leaf)[:, -1].sum().backward()
            lost.append(math.log10(leaf.grad[:, -1].norm() / leaf.grad[:, 0].norm()))
        assert lost[0] < 2.5 < lost[1] - 2


class ByHand(nn.Module):
    """A recurrent network of dense layers, as one writes it."""

    def __init__(self, act=torch.tanh, hidden=8):
        super().__init__()
        self.into, self.over, self.head = nn.Linear(3, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self.act = act

    def forward(self, x):
        state = x.new_zeros(x.shape[0], self.over.out_features)
        for step in x.unbind(1):
            state = self.act(self.into(step) + self.over(state))
        return self.head(state)


class Joined(nn.Module):
    """The tutorial's cell: one dense layer of the input and the state side by side."""

    def __init__(self, state_first):
        super().__init__()
        self.cell, self.head, self.state_first = nn.Linear(11, 8), nn.Linear(8, 2), state_first

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 8)
        for step in x.unbind(1):
            state = torch.tanh(self.cell(torch.cat((state, step) if self.state_first else (step, state), 1)))
        return self.head(state)


def test_a_dense_layer_that_is_fed_back_is_orthogonal():
    model = ByHand()
    treated = drawn(model, torch.randn(4, 6, 3))
    assert any(change.startswith("over: fed back into itself") for change in treated.changes)
    for changed in both(treated, model):
        weight = changed.over.weight.detach()
        torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=0, atol=1e-5)
        assert not changed.over.bias.any()
    assert any(change.startswith("into") and "fed back" not in change for change in treated.changes)


def test_a_dense_layer_that_is_fed_back_through_a_relu_is_the_identity():
    model = ByHand(torch.relu)
    for changed in both(drawn(model, torch.randn(4, 6, 3)), model):
        assert torch.equal(changed.over.weight, torch.eye(8))
    for changed in both(drawn(model, torch.randn(4, 6, 3), recurrent_gain=0.5), model):
        assert torch.equal(changed.over.weight, 0.5 * torch.eye(8))


@pytest.mark.parametrize("state_first", [True, False])
def test_the_columns_of_the_state_are_orthogonal_beside_those_of_the_input(state_first):
    model = Joined(state_first)
    for changed in both(drawn(model, torch.randn(4, 6, 3)), model):
        weight = changed.cell.weight.detach()
        state, step = (weight[:, :8], weight[:, 8:]) if state_first else (weight[:, 3:], weight[:, :3])
        torch.testing.assert_close(state @ state.T, torch.eye(8), rtol=0, atol=1e-5)
        assert step.std().item() == pytest.approx((2 / 19) ** 0.5, rel=0.4)


def test_a_layer_that_is_used_often_but_not_on_its_own_output_is_an_ordinary_one():
    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(torch.stack([torch.tanh(self.each(step)) for step in x.unbind(1)]).sum(0))

    changes = drawn(Each(), torch.randn(4, 6, 3)).changes
    assert not any("fed back" in change for change in changes)


def test_a_layer_that_is_fed_back_through_a_sigmoid_gets_the_gain_of_a_sigmoid(models):
    changes = drawn(models["shared"](), torch.randn(4, 6)).changes
    assert any(change.startswith("first: fed back") and "gain 4;" in change for change in changes)


@pytest.mark.parametrize("scheme", ["he", "xavier"])
def test_a_scheme_that_was_asked_for_is_kept_for_layers_that_are_fed_back(scheme):
    changes = drawn(ByHand(), torch.randn(4, 6, 3), scheme=scheme).changes
    assert not any("fed back" in change for change in changes)


def test_broken_weights_do_not_hide_that_a_layer_is_fed_back():
    model = ByHand()
    model.over.weight.data.fill_(float("nan"))
    assert any("over: fed back" in change for change in drawn(model, torch.randn(4, 6, 3)).changes)


class Mixed(nn.Module):
    """Dense layers around a recurrent one, and an output that is no tensor."""

    def __init__(self, kind):
        super().__init__()
        self.into, self.act = nn.Linear(5, 16), nn.Tanh()
        self.rnn, self.head = kind(16, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        output, state = self.rnn(self.act(self.into(100 * x)))
        return {"scores": self.head(output), "rest": (state, None)}


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_data_driven_scaling_works_around_recurrent_layers_and_with_any_output(kind):
    x = torch.randn(16, 7, 5)
    treated = drawn(Mixed(kind), x, data_driven=True).subject
    seen = {}
    for name in ("into", "head"):
        getattr(treated, name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    treated(x)
    assert all(output.std(correction=0).item() == pytest.approx(1.0, abs=0.03) for output in seen.values())
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind]
    assert all(radius(gate) == pytest.approx(1.0, rel=1e-4) for gate in treated.rnn.weight_hh_l0.chunk(gates))


def test_data_driven_scaling_leaves_a_layer_that_is_fed_back_orthogonal():
    treated = drawn(ByHand(), torch.randn(16, 6, 3), data_driven=True).subject
    assert radius(treated.over.weight) == pytest.approx(1.0, rel=1e-4)
