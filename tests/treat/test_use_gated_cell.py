"""Gated cells in the place of plain ones: the same interface, fresh weights, more gradient through time."""

import copy
import pickle

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from evengrad.nouns import TreatmentError
from evengrad.treat import UseGatedCell


class Net(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.rnn = nn.RNN(5, 7, batch_first=True, **how)
        self.head = nn.Linear(7 * (2 if how.get("bidirectional") else 1), 2)

    def forward(self, x, hx=None):
        self.rnn.flatten_parameters()
        output, state = self.rnn(x, hx)
        assert state.shape[-1] == self.rnn.hidden_size
        return self.head(output), state


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(5, 7), nn.Linear(7, 2)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 7)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def all_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


SETTINGS = [{}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}, {"bias": False}, {"nonlinearity": "relu"}]


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("how", SETTINGS)
def test_what_goes_in_and_comes_out_has_the_shape_that_it_had(kind, how):
    model, x = Net(**how), torch.randn(4, 6, 5)
    hx = torch.randn(model.rnn.num_layers * (2 if model.rnn.bidirectional else 1), 4, 7)
    treated = UseGatedCell(kind=kind).treat(model, batch_input=x)
    for changed in (treated.subject, pasted(treated.code, model)):
        for args in ((x,), (x, hx)):
            assert [part.shape for part in changed(*args)] == [part.shape for part in model(*args)]
        for name in ("input_size", "hidden_size", "num_layers", "dropout", "bidirectional", "bias", "batch_first"):
            assert getattr(changed.rnn, name) == getattr(model.rnn, name)
    assert not torch.equal(treated.subject(x, hx)[0], treated.subject(x)[0])  # the given state counts


def test_the_layer_computes_what_torchs_own_computes():
    model, x, hx = Net(num_layers=2), torch.randn(4, 6, 5), torch.randn(2, 4, 7)
    gru = UseGatedCell().treat(model).subject
    own = nn.GRU(5, 7, num_layers=2, batch_first=True)
    own.load_state_dict(gru.rnn.state_dict())
    all_equal(gru.rnn(x, hx), own(x, hx))
    lstm = UseGatedCell(kind="lstm").treat(model).subject
    own = nn.LSTM(5, 7, num_layers=2, batch_first=True)
    own.load_state_dict(lstm.rnn.layer.state_dict())
    output, (hidden, _) = own(x, (hx, torch.zeros_like(hx)))
    all_equal(lstm.rnn(x, hx), (output, hidden))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_packed_sequences_stay_packed(kind):
    model = nn.ModuleDict({"rnn": nn.RNN(5, 7)})
    packed = pack_sequence([torch.randn(length, 5) for length in (3, 6, 2)], enforce_sorted=False)
    treated = UseGatedCell(kind=kind).treat(model)
    for changed in (treated.subject, pasted(treated.code, model)):
        for args in ((packed,), (packed, torch.randn(1, 3, 7))):
            output, state = changed["rnn"](*args)
            assert isinstance(output, PackedSequence)
            assert output.data.shape == (11, 7)
            assert state.shape == (1, 3, 7)


def test_cells_in_a_loop_become_gated_cells():
    model, x = Loop(), torch.randn(4, 6, 5)
    treated = UseGatedCell().treat(model, batch_input=x)
    assert treated.changes == ("cell: RNNCell replaced by GRUCell, weights drawn anew",)
    for changed in (treated.subject, pasted(treated.code, model)):
        assert type(changed.cell) is nn.GRUCell
        assert changed(x).shape == (4, 2)


def test_a_cell_has_no_place_for_a_second_state():
    with pytest.raises(TreatmentError, match="use kind='gru'"):
        UseGatedCell(kind="lstm").treat(Loop())
    both = nn.ModuleDict({"layer": nn.RNN(3, 3), "cell": nn.RNNCell(3, 3)})
    treated = UseGatedCell(kind="lstm").treat(both)
    assert any(change.startswith("cell: left as they are") for change in treated.changes)
    assert type(treated.subject["cell"]) is nn.RNNCell


@pytest.mark.parametrize("model", [nn.LSTM(3, 3), nn.RNN(3, 3), nn.Linear(3, 3)])
def test_a_model_without_a_plain_recurrent_layer_inside_is_refused(model):
    with pytest.raises(TreatmentError, match="plain recurrent layer inside it"):
        UseGatedCell().treat(model)


def test_recurrent_weights_are_orthogonal_for_each_gate_and_the_forget_gate_is_open():
    lstm = UseGatedCell(kind="lstm").treat(Net(), seed=1).subject.rnn
    gru = UseGatedCell().treat(Net(), seed=1).subject.rnn
    for layer, gates in ((lstm, 4), (gru, 3)):
        for gate in layer.weight_hh_l0.detach().chunk(gates):
            torch.testing.assert_close(gate @ gate.T, torch.eye(7), rtol=0, atol=1e-5)
    assert lstm.bias_ih_l0.chunk(4)[1].eq(1).all()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_precision_and_mode_are_kept(kind, dtype, training):
    model = Net().to(dtype).train(training)
    treated = UseGatedCell(kind=kind).treat(model)
    for changed in (treated.subject, pasted(treated.code, model)):
        assert all(value.dtype == dtype for value in changed.parameters())
        assert all(module.training is training for module in changed.modules())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_hooks_and_shared_layers_go_over(kind):
    layer, seen = nn.RNN(5, 5), []
    layer.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    model = nn.ModuleDict({"first": layer, "second": layer})
    treated = UseGatedCell(kind=kind).treat(model)
    for changed in (treated.subject, pasted(treated.code, model)):
        assert changed["first"] is changed["second"]
        changed["first"](torch.randn(3, 2, 5))
    assert seen == [type(treated.subject["first"]).__name__] * 2


def test_weights_that_are_computed_are_left():
    model = nn.ModuleDict({"rnn": nn.utils.parametrizations.weight_norm(nn.RNN(3, 3), "weight_hh_l0")})
    with pytest.raises(TreatmentError, match="plain recurrent layer"):
        UseGatedCell().treat(model)


def test_a_forward_that_needs_the_plain_layer_is_refused_with_a_batch():
    class Reads(Net):
        def forward(self, x):
            return self.head(torch.tanh(x @ self.rnn.weight_ih_l0.T))

    with pytest.raises(TreatmentError, match="changed model was run"):
        UseGatedCell().treat(Reads(), batch_input=torch.randn(2, 3, 5))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_copy_can_be_made_and_sent_to_another_process(kind):
    changed, x = UseGatedCell(kind=kind).treat(Net()).subject, torch.randn(2, 3, 5)
    for again in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        all_equal(again(x), changed(x))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_more_gradient_reaches_the_first_of_sixty_steps(kind):
    def reaching(model):
        x = (0.1 * torch.randn(4, 60, 5)).requires_grad_()
        model(x)[0][:, -1].sum().backward()
        return (x.grad[:, 0].norm() / x.grad[:, -1].norm()).log10().item()

    for seed in range(3):
        torch.manual_seed(seed)
        model = Net()  # torch's own start: uniform, far from orthogonal
        treated = UseGatedCell(kind=kind).treat(model, seed=seed, batch_input=torch.zeros(1, 60, 5))
        assert reaching(treated.subject) > reaching(model) + 1.5
