"""The gradient cut through time: against torch's own layer and against truncation written by hand."""

import copy
import pickle

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from evengrad.nouns import TreatmentError
from evengrad.treat import TruncateBackprop

KINDS = {
    "rnn": lambda **how: nn.RNN(5, 7, num_layers=2, **how),
    "gru": lambda **how: nn.GRU(5, 7, **how),
    "lstm": lambda **how: nn.LSTM(5, 7, num_layers=2, **how),
    "projected": lambda **how: nn.LSTM(5, 7, proj_size=3, **how),
}


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.rnn = layer

    def forward(self, *args, **kwargs):
        self.rnn.flatten_parameters()
        return self.rnn(*args, **kwargs)


@pytest.fixture(params=sorted(KINDS))
def make(request):
    return KINDS[request.param]


def truncated(model, steps, batch=None):
    return TruncateBackprop(steps=steps).treat(model, batch_input=batch)


def both(treated, model):
    return treated.subject, pasted(treated.code, model)


def flat(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, torch.nn.utils.rnn.PackedSequence):
        return [pad_packed_sequence(output)[0]]
    return [tensor for part in output for tensor in flat(part)]


def states_of(layer, *shape):
    number = 2 if isinstance(layer, nn.LSTM) else 1
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][:number]
    made = tuple(torch.randn(layer.num_layers, *shape, size) for size in sizes)
    return made if number == 2 else made[0]


@pytest.mark.parametrize("steps", [1, 3, 4, 10, 11])
@pytest.mark.parametrize("batch_first", [True, False])
def test_outputs_and_last_states_are_those_of_torchs_layer(make, steps, batch_first):
    model, x = Around(make(batch_first=batch_first)), torch.randn(10, 10, 5)
    hx = states_of(model.rnn, 10)
    for changed in both(truncated(model, steps), model):
        for args in ((x,), (x, hx)):
            for one, two in zip(flat(changed(*args)), flat(model(*args)), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_sequence_without_a_batch_dimension_works(make):
    model, x = Around(make(batch_first=True)), torch.randn(9, 5)
    for changed in both(truncated(model, 4), model):
        for args in ((x,), (x, states_of(model.rnn))):
            for one, two in zip(flat(changed(*args)), flat(model(*args)), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [(9, 7, 4, 2, 2), (3, 9, 6, 6, 1), (4, 4), (1, 3, 2)])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_packed_sequences_give_what_torchs_layer_gives(make, lengths, steps):
    model = Around(make())
    packed = pack_sequence([torch.randn(length, 5) for length in lengths], enforce_sorted=False)
    hx = states_of(model.rnn, len(lengths))
    for changed in both(truncated(model, steps), model):
        for args in ((packed,), (packed, hx)):
            for one, two in zip(flat(changed(*args)), flat(model(*args)), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def by_hand(layer, x, hx, steps):
    outputs = []
    for start in range(0, len(x), steps):
        if start:
            hx = tuple(state.detach() for state in hx) if isinstance(hx, tuple) else hx.detach()
        output, hx = layer(x[start : start + steps], hx)
        outputs.append(output)
    return torch.cat(outputs), hx


def test_gradients_are_those_of_a_truncated_loop_written_by_hand(make):
    model, x = Around(make()), torch.randn(10, 3, 5)
    hx = states_of(model.rnn, 3)
    changed = truncated(model, 4).subject
    weighing = torch.randn(10, 3, model.rnn.proj_size or 7) if isinstance(model.rnn, nn.LSTM) else torch.randn(10, 3, 7)
    (changed(x, hx)[0] * weighing).sum().backward()
    (by_hand(model.rnn, x, hx, 4)[0] * weighing).sum().backward()
    for one, two in zip(changed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    full = copy.deepcopy(model)
    full.zero_grad()
    (full(x, hx)[0] * weighing).sum().backward()
    assert not torch.allclose(full.rnn.weight_hh_l0.grad, model.rnn.weight_hh_l0.grad, rtol=1e-3)


def reaches_back(model, x, packed=False):
    leaf = x.clone().requires_grad_()
    into = pack_sequence([leaf]) if packed else leaf.unsqueeze(1)
    output = model(into)[0]
    (output.data if packed else output)[-1].sum().backward()
    return [bool(step.any()) for step in leaf.grad]


@pytest.mark.parametrize("packed", [True, False])
def test_no_gradient_reaches_further_back_than_the_chunk(make, packed):
    model, x = Around(make()), torch.randn(10, 5)
    assert all(reaches_back(model, x, packed))
    for changed in both(truncated(model, 4), model):
        assert reaches_back(changed, x, packed) == [False] * 8 + [True] * 2


def test_the_state_that_the_caller_gives_keeps_its_gradient(make):
    model, x = Around(make()), torch.randn(6, 1, 5)
    hx = states_of(model.rnn, 1)
    first = hx[0] if isinstance(hx, tuple) else hx
    first.requires_grad_()
    truncated(model, 4).subject(x, hx)[0][2].sum().backward()
    assert first.grad.any()


class Net(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 7, batch_first=True, **how), nn.Linear(7 * (1 + self.both(how)), 2)

    @staticmethod
    def both(how):
        return how.get("bidirectional", False)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def test_what_a_forward_reads_of_the_layer_is_there_and_a_copy_can_be_made():
    changed = truncated(Net(), 2, torch.randn(4, 3, 5)).subject
    assert changed.rnn.hidden_size == 7
    assert changed.rnn.weight_hh_l0 is changed.rnn.layer.weight_hh_l0
    with pytest.raises(AttributeError, match="nonsense"):
        _ = changed.rnn.nonsense
    x = torch.randn(4, 3, 5)
    for again in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert torch.equal(again(x), changed(x))


def test_a_sequence_that_is_short_enough_already_is_refused():
    with pytest.raises(TreatmentError, match="at most 3 steps, want more than 3"):
        truncated(Net(), 3, torch.randn(4, 3, 5))
    assert truncated(Net(), 2, torch.randn(4, 3, 5)).changes == ("rnn: the gradient flows back 2 steps",)


def test_a_layer_in_both_directions_is_refused_or_left():
    with pytest.raises(TreatmentError, match="in one direction"):
        truncated(Net(bidirectional=True), 2, torch.randn(4, 3, 5))
    mixed = nn.ModuleDict({"one": nn.GRU(3, 3), "both": nn.GRU(3, 3, bidirectional=True)})
    treated = truncated(mixed, 2)
    assert treated.changes[:2] == ("one: the gradient flows back 2 steps", "both: left as they are, bidirectional")
    assert type(treated.subject["both"]) is nn.GRU


def test_a_cell_in_a_loop_is_refused_with_what_to_do():
    with pytest.raises(TreatmentError, match="detach the state of cells"):
        truncated(nn.ModuleList([nn.GRUCell(3, 3)]), 2)


def test_a_layer_is_not_wrapped_twice():
    once = truncated(Net(), 2).subject
    with pytest.raises(TreatmentError, match="recurrent layer"):
        truncated(once, 1)


def test_a_shared_layer_is_shared_still():
    layer = nn.GRU(4, 4)
    model = nn.ModuleDict({"first": layer, "second": layer})
    for changed in both(truncated(model, 2), model):
        assert changed["first"] is changed["second"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_theirs(dtype):
    model = Net().to(dtype)
    assert truncated(model, 2).subject(torch.randn(4, 3, 5, dtype=dtype)).dtype == dtype
