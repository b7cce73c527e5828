"""A sampler is never in the way: not of the run, the model, its copies, compilers and transforms."""

import copy
import io
import random

import pytest
import torch
from sampled_models import CLOSE, MODELS, Tied, exact, is_close, sampled_once, vectors
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.probe import Sampler


def trained(name, *, sampled=True, autocast=False, steps=4):
    """Train a few steps, with an evaluation after each; give all that a step leaves behind."""
    torch.manual_seed(0)
    make, data = ALL[name]
    model, left = make(), []
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.05, momentum=0.9)
    sampler = Sampler(model)
    for step in range(steps):
        if sampled and step % 2:
            sampler.arm()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(data()).square().mean()
        loss.backward()
        if sampler.armed:
            readings = sampler.readings(sampler.packed().tolist())
            sampler.disarm()
            assert readings
        left += [loss.detach(), *(one.grad.clone() for one in model.parameters() if one.requires_grad)]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            left.append(model.eval()(data()))
        model.train()
    return [*left, *model.state_dict().values(), torch.get_rng_state(), torch.tensor(random.getstate()[1])]


class Everything(nn.Module):
    """Convolutions with batch norm, a recurrent part on data, attention in three spellings, dropout, functions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.rnn, self.gru = nn.LSTM(9, 6, 2, batch_first=True, dropout=0.2), nn.GRU(9, 6, bidirectional=True)
        self.cell, self.attention = nn.GRUCell(6, 6), nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        pictures = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        h = self.rnn(x[:, 0])[0] + self.gru(x[:, 1].transpose(0, 1))[0].transpose(0, 1)[..., :6]
        state = pictures
        for step in h.unbind(1):
            state = self.cell(step, state)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = h + functional.scaled_dot_product_attention(h, h, h, dropout_p=0.1, is_causal=True)
        weights = functional.dropout((h @ h.transpose(1, 2)).softmax(-1), 0.2)
        return self.drop(weights @ functional.gelu(h)).sum(1) + state * pictures


class FrozenEncoder(nn.Module):
    """Torch runs a frozen encoder in evaluation mode fused, with roundings of its own, unless there are hooks."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(requires_grad=False)
        self.head = nn.Linear(12, 6)

    def train(self, mode=True):
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x):
        return functional.relu(self.head(self.encoder(x)))


class Frozen(nn.Module):
    """A frozen recurrent part whose output the model takes out of the graph by itself."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 6).requires_grad_(requires_grad=False), nn.Linear(6, 6)

    def forward(self, x):
        return self.head(torch.from_numpy(self.rnn(x)[0].float().numpy()))


SPECIAL = {
    "everything": (Everything, lambda: torch.randn(4, 3, 8, 9)),
    "frozen encoder": (FrozenEncoder, lambda: torch.randn(4, 5, 12)),
    "frozen recurrent": (Frozen, vectors),
}
ALL = MODELS | SPECIAL


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_sampled_run_is_equal_to_the_bit(name, autocast):
    plain = trained(name, sampled=False, autocast=autocast)
    sampled = trained(name, autocast=autocast)
    assert len(plain) == len(sampled)
    assert all(torch.equal(one, other) for one, other in zip(plain, sampled, strict=True))


def test_a_frozen_encoder_in_evaluation_mode_is_not_read_and_what_follows_is():
    torch.manual_seed(0)
    model = FrozenEncoder().train()
    names = [layer.name for layer in sampled_once(model, torch.sum, torch.randn(4, 5, 12))]
    assert names == ["head"]
    model.encoder.requires_grad_()
    names = [layer.name for layer in sampled_once(model, torch.sum, torch.randn(4, 5, 12))]
    assert names[0] == "encoder.layers.0.self_attn"
    assert names[-2:] == ["head", "relu()"]


class Waits(TorchDispatchMode):
    """Fails on what would wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), f"{function} waits for the device"
        assert "nonzero" not in str(function)
        return function(*args, **(kwargs or {}))


def test_packing_does_not_wait_and_takes_few_operations_however_many_layers():
    class Counting(Waits):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return super().__torch_dispatch__(function, types, args, kwargs)

    counts = []
    for depth in (3, 90):
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)), nn.Tanh())
        sampler = Sampler(model)
        sampled_once(model, torch.sum, vectors(), sampler)
        sampler.arm()
        with Waits():
            model(vectors()).sum().backward()
            with Counting() as mode:
                sampler.packed()
        counts.append(mode.count)
    assert counts[0] == counts[1] < 60


def hooks(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_nothing_is_attached_before_and_after():
    model = Tied()

    class Gives(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.weight

    model.gives = Gives()
    model.register_forward_hook(lambda module, args, out: out * module.gives(out))
    before = hooks(model)
    sampler = Sampler(model)
    assert hooks(model) == before
    sampler.arm()
    sampler.arm()
    assert sum(hooks(model)) > sum(before) + 4
    model(vectors()).sum().backward()
    sampler.disarm()
    assert hooks(model) == before
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    sampler.disarm()
    assert not sampler.armed


def test_copies_and_pickles_of_an_armed_model_have_hooks_that_do_nothing():
    model = nn.Sequential(nn.Linear(6, 6))
    sampler = Sampler(model)
    sampler.arm()
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied(vectors()).sum().backward()
    torch.load(file, weights_only=False)(vectors()).sum().backward()
    assert sampler.readings(sampler.packed().tolist()) == ()
    assert sampler.packed().shape == (0,)


def transformed():
    """Give a model, its loss as a function of parameters and input, and the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def loss(values, x):
        return torch.func.functional_call(model, values, (x,)).sum()

    return model, loss, {name: value.detach() for name, value in model.named_parameters()}


def test_calls_under_vmap_are_left_alone():
    model, loss, parameters = transformed()
    x, sampler = vectors(), Sampler(model)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    wanted = each(parameters, x)
    for _ in range(2):
        sampler.arm()
        found = each(parameters, x)
        each(parameters, x)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert sampler.readings(sampler.packed().tolist()) == ()
        assert sampler.layout.size == 9 * 2  # a row for each of the two layers, used again and again
    few = x[:2]  # as wide as the rows that were handed back
    wanted = exact(model, torch.sum, few)
    found = sampled_once(model, torch.sum, few, sampler)
    assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))


def test_a_training_by_torch_func_is_read_as_any_other():
    model, loss, parameters = transformed()
    x, sampler = vectors(), Sampler(model)
    wanted = torch.func.grad(loss)(parameters, x)
    sampler.arm()
    found = torch.func.grad(loss)(parameters, x)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    layers = sampler.readings(sampler.packed().tolist())
    sampler.disarm()
    assert all(is_close(one, other, **CLOSE) for one, other in zip(layers, exact(model, torch.sum, x), strict=True))
