"""Gates of recurrent modules against a loop in float64, and the gradient at their input, time step by time step."""

import copy

import pytest
import torch
from sampled_models import sampled_once
from torch import nn
from torch.nn.utils import rnn

from evengrad.probe import Sampler, probe

CLOSE = {"rel": 1e-5, "abs": 1e-9}


def last(result):
    return result[0] if isinstance(result[0], torch.Tensor) else result[0].data


def both(model, x, loss):
    exact = probe(model, lambda output, _: loss(output), (x, torch.zeros(1))).readings[0].layers
    return exact, sampled_once(model, loss, x)


def run(module, x, layer=0, suffix=""):
    """All gates of one layer, time first, and its outputs: shapes (steps, samples, gates, units) and as torch gives."""
    steps, size = x.shape[0], module.hidden_size
    h = x.new_zeros(x.shape[1], getattr(module, "proj_size", 0) or size)
    c = x.new_zeros(x.shape[1], size)
    weights = [
        getattr(module, f"{name}_l{layer}{suffix}").double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    gates, outputs = [], []
    for t in range(steps) if not suffix else reversed(range(steps)):
        a, b = x[t] @ weights[0].t() + weights[2], h @ weights[1].t() + weights[3]
        if isinstance(module, nn.LSTM):
            i, f, g, o = (a + b).chunk(4, -1)
            gates.append(torch.stack([i.sigmoid(), f.sigmoid(), o.sigmoid()], 1))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            if module.proj_size:
                h = h @ getattr(module, f"weight_hr_l{layer}{suffix}").double().t()
        else:
            r, z = ((a + b).chunk(3, -1)[k].sigmoid() for k in (0, 1))
            gates.append(torch.stack([r, z], 1))
            n = (a.chunk(3, -1)[2] + r * b.chunk(3, -1)[2]).tanh()
            h = (1 - z) * n + z * h
        outputs.append(h)
    if suffix:
        gates.reverse()
        outputs.reverse()
    return torch.stack(gates).detach(), torch.stack(outputs).detach()


def measured(gates):
    """Of gates of shape (observations, gates, units)."""
    stuck = ((gates < 0.01) | (gates > 0.99)).all(0)
    return stuck.double().mean(-1).tolist(), gates.mean((0, 2)).tolist()


SHAPES = {
    "plain": {},
    "batch first": {"batch_first": True},
    "both directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3},
    "dropout that is off": {"num_layers": 2, "dropout": 0.5},
}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("shape", SHAPES)
def test_gates_are_those_of_a_loop_in_float64(kind, shape):
    torch.manual_seed(0)
    module = kind(3, 5, **SHAPES[shape])
    module.bias_ih_l0.data[:2] = 30.0  # two units whose first gate stays open
    if shape == "dropout that is off":
        module.dropout = 0.0
    x = 3 * torch.randn(6, 2, 3)
    twin, hidden = copy.deepcopy(module).double(), x.double()
    for layer in range(module.num_layers):
        gates, outputs = run(twin, hidden, layer)
        hidden = outputs
    several = module.num_layers > 1
    gates = (gates[1:5] if several else gates[1:]).flatten(0, 1)
    if module.bidirectional:
        gates = torch.cat([gates, run(twin, x.double(), suffix="_reverse")[0][:-1].flatten(0, 1)], -1)
    stuck, mean = measured(gates)
    given = x.transpose(0, 1) if module.batch_first else x
    for layers in both(module, given, lambda result: last(result).square().sum()):
        assert layers[0].gate_mean == pytest.approx(mean, **CLOSE)
        assert layers[0].gate_stuck_frac == pytest.approx(stuck)
    assert several or stuck[0] == 0.4 or module.bidirectional


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_gates_of_a_projecting_lstm_are_those_of_a_loop():
    torch.manual_seed(0)
    module, x = nn.LSTM(3, 5, proj_size=2), torch.randn(6, 2, 3)
    gates, _ = run(copy.deepcopy(module).double(), x.double())
    for layers in both(module, x, lambda result: last(result).square().sum()):
        assert layers[0].gate_mean == pytest.approx(measured(gates[1:].flatten(0, 1))[1], **CLOSE)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gates_of_a_packed_sequence_are_of_the_steps_that_are_there(kind):
    torch.manual_seed(0)
    module, lengths = kind(3, 5), [6, 4, 1]
    sequences = [torch.randn(length, 3) for length in lengths]
    found = []
    for sequence in sequences:
        gates, _ = run(copy.deepcopy(module).double(), sequence.double().unsqueeze(1))
        found.append(gates[1:].flatten(0, 1))
    packed = rnn.pack_sequence(sequences)
    for layers in both(module, packed, lambda result: last(result).square().sum()):
        assert layers[0].gate_mean == pytest.approx(measured(torch.cat(found))[1], **CLOSE)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_long_sequences_are_sampled_at_few_steps_of_few_samples(kind):
    torch.manual_seed(0)
    module, x = kind(3, 5), torch.randn(100, 40, 3)
    gates, _ = run(copy.deepcopy(module).double(), x.double())
    mean = measured(gates.flatten(0, 1))[1]
    for layers in both(module, x, lambda result: last(result).square().sum()):
        assert layers[0].gate_mean == pytest.approx(mean, rel=0.1)
        assert layers[0].gate_mean != pytest.approx(mean, rel=1e-9)


class Unrolled(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 5)

    def forward(self, x):
        state = None
        for step in x:
            state = self.cell(step) if state is None else self.cell(step, state)
        return state if isinstance(state, torch.Tensor) else state[0]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_gates_of_a_cell_are_those_of_its_call_and_not_of_every_call_of_a_long_loop(kind):
    torch.manual_seed(0)
    model, x = Unrolled(kind), torch.randn(20, 2, 3)
    module = (nn.LSTM if kind is nn.LSTMCell else nn.GRU)(3, 5)
    module.load_state_dict({f"{name}_l0": value for name, value in model.cell.state_dict().items()})
    gates, _ = run(module.double(), x.double())
    exact, sampled = both(model, x, torch.sum)
    for layers, every in ((exact, 1), (sampled, 8)):
        assert len(layers) == 20
        for step, layer in enumerate(layers):
            wanted = measured(gates[step])[1] if step % every == 0 else ()
            assert layer.gate_mean == pytest.approx(wanted, **CLOSE)


def unknown():
    yield "dropout between layers", nn.LSTM(3, 5, 2, dropout=0.5), torch.randn(6, 2, 3)
    yield "several layers in both directions", nn.GRU(3, 5, 2, bidirectional=True), torch.randn(6, 2, 3)
    yield "one step", nn.LSTM(3, 5), torch.randn(1, 2, 3)
    yield "no gates", nn.RNN(3, 5), torch.randn(6, 2, 3)
    packed = rnn.pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    yield "packed in both directions", nn.LSTM(3, 5, bidirectional=True), packed
    yield "parametrized", nn.utils.parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0"), torch.randn(6, 2, 3)


@pytest.mark.parametrize("number", range(6))
def test_gates_that_cannot_be_told_are_left_out(number):
    torch.manual_seed(0)
    name, module, x = list(unknown())[number]
    for layers in both(module, x, lambda result: last(result).square().sum()):
        assert layers[0].gate_mean == layers[0].gate_stuck_frac == (), name


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_a_sampler_reads_the_gradient_through_time_as_the_exact_probe(kind, batch_first, packed):
    torch.manual_seed(0)
    module = kind(3, 5, batch_first=batch_first)
    x = rnn.pack_sequence([torch.randn(n, 3) for n in (7, 4, 1)]) if packed else torch.randn(6, 7, 3)
    exact, sampled = both(module, x, lambda result: last(result).square().sum())
    assert len(exact[0].time_grad_rms) == (7 if packed or batch_first else 6)
    assert sampled[0].time_grad_rms == pytest.approx(exact[0].time_grad_rms, rel=1e-6)
    sampler = Sampler(module)
    sampler.arm()
    (512 * last(module(x)).square().sum()).backward()
    found = sampler.readings(sampler.packed().tolist(), loss_scale=512.0)
    assert found[0].time_grad_rms == pytest.approx(exact[0].time_grad_rms, rel=1e-5)


def test_an_input_that_has_a_gradient_of_its_own_is_left_as_it_is():
    torch.manual_seed(0)
    seen = []

    class Own(nn.LSTM):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    module, x = Own(3, 5), torch.randn(4, 2, 3, requires_grad=True)
    sampled_once(module, lambda result: last(result).sum(), x)
    assert seen[0] is x
    assert not x._backward_hooks


def test_no_gradient_is_asked_for_where_none_is_wanted():
    torch.manual_seed(0)
    module, x, seen = nn.LSTM(3, 5), torch.randn(4, 2, 3), []
    module.register_forward_hook(lambda module, args, result: seen.append((args[0], result[0])))
    sampler = Sampler(module)
    sampler.arm()
    with torch.no_grad():
        module(x)
    with torch.inference_mode():
        module(x)
    module.eval()(x)
    module.train().requires_grad_(requires_grad=False)
    module(x)
    torch.utils.checkpoint.checkpoint(module.requires_grad_(), x, use_reentrant=False)
    sampler.disarm()
    module(x)
    assert [one is x for one, _ in seen] == [True, True, False, True, True, True]  # evaluation mode may be trained in
    assert [result.requires_grad for _, result in seen] == [False, False, True, False, True, True]
