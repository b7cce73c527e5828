"""A probe changes nothing: not the model, not the random state, not the training around it."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.nouns import LossError, ModelError
from evengrad.probe import left_as_found, probe
from evengrad.probe._parameter_norms import ParameterNorms
from evengrad.probe._watch import Watch


class Everything(nn.Module):
    """Dropout, running statistics, power iterations, random numbers of three kinds, and shared memory."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        self.old = nn.utils.spectral_norm(nn.Linear(6, 6))
        self.norm, self.drop, self.rnn = nn.BatchNorm1d(6), nn.Dropout(0.3), nn.LSTM(6, 6, batch_first=True)
        self.calm = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)).eval()
        self.frozen, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen.requires_grad_(requires_grad=False)
        self.register_buffer("mask", torch.ones(1, 1).expand(6, 6))
        self.register_buffer("mean", torch.zeros(6), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("count", torch.tensor(0))
        self.fails = False

    def forward(self, x):
        h = self.norm(torch.relu(self.old(self.first(x)))) * (random.random() + np.random.rand() + 1)
        self.mean.mul_(0.9).add_(h.detach().mean(0))
        self.count = self.count + 1
        self.nothing = h.detach().sum()
        h = self.rnn(self.drop(h)[:, None].expand(-1, 5, -1))[0][:, -1]
        if self.fails:
            self.calm.train()
            raise RuntimeError("on purpose")
        return self.last(self.frozen(self.calm(h)) @ self.mask)


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def hooks(model):
    return [
        (type(module).__name__, name, len(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if "hook" in name and isinstance(value, dict)
    ]


def tensor_hooks(model):
    return [len(parameter._backward_hooks or ()) for parameter in model.parameters()]


def snapshot(model):
    tensors = [*model.parameters(), *(buffer for m in model.modules() for buffer in m._buffers.values())]
    return {
        "content": [None if tensor is None else tensor.detach().clone() for tensor in tensors],
        "objects": [id(tensor) for tensor in tensors],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "grad objects": [id(p.grad) for p in model.parameters()],
        "requires grad": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "modules": [id(module) for module in model.modules()],
        "hooks": hooks(model),
        "tensor hooks": tensor_hooks(model),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [repr(part) for part in np.random.get_state()],
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for what, value in before.items():
        same = all(map(equal, value, after[what])) if isinstance(value, list) else equal(value, after[what])
        assert same, what
        assert not isinstance(value, list) or len(value) == len(after[what]), what


def equal(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


@pytest.fixture
def model():
    random.seed(0)
    np.random.seed(0)
    model = Everything()
    x, y = data()
    functional.cross_entropy(model(x), y).backward()
    model.first.parametrizations.weight.original.grad = None
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_a_probe_leaves_a_model_as_found_to_the_bit(model, training, grad_mode):
    model.train(training)
    model.calm.eval()
    with torch.set_grad_enabled(grad_mode):
        before = snapshot(model)
        record = probe(model, functional.cross_entropy, data())
        assert_same(before, snapshot(model))
    assert record.readings[0].total_norm > 0


def raises(output, target):
    raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("fails", "loss", "error"),
    [
        (True, functional.cross_entropy, ModelError),
        (False, raises, LossError),
        (False, lambda output, target: output, LossError),
        (False, lambda output, target: output.sum().detach(), LossError),
    ],
)
def test_a_probe_that_raises_leaves_a_model_as_found_to_the_bit(model, fails, loss, error):
    model.fails = fails
    before = snapshot(model)
    with pytest.raises(error, match=r"on purpose|scalar tensor|without a graph"):
        probe(model, loss, data())
    assert_same(before, snapshot(model))


def test_the_snapshot_of_these_tests_sees_an_ordinary_forward(model):
    before = snapshot(model)
    x, y = data()
    model.calm.train()
    model.register_forward_hook(lambda *_: None)
    functional.cross_entropy(model(x), y).backward()
    after = snapshot(model)
    changed = {what for what in before if not _same(before[what], after[what])}
    assert changed == {"content", "objects", "grads", "grad objects", "modes", "hooks", "torch", "python", "numpy"}


def _same(a, b):
    return all(map(equal, a, b)) if isinstance(a, list) else equal(a, b)


def test_the_block_restores_what_the_block_changed(model):
    before = snapshot(model)
    with left_as_found(model):
        model.eval()
        model.zero_grad()
        model.norm.running_mean.fill_(3)
        model.count = torch.tensor(9)
        torch.rand(3)
        assert not _same(before["content"], snapshot(model)["content"])
    assert_same(before, snapshot(model))


def trained(steps, *, probing):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Everything()
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-2)
    losses = []
    for step in range(steps):
        if probing:
            probe(model, functional.cross_entropy, data(), step=step)
        x, y = data()
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        if probing:
            probe(model, functional.cross_entropy, data())
        loss.backward()
        if probing:
            probe(model, functional.cross_entropy, data())
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_twenty_steps_with_probes_between_give_the_same_weights_to_the_bit():
    watched, with_probe = trained(20, probing=True)
    plain, without = trained(20, probing=False)
    assert with_probe == without
    assert len(set(without)) == 20
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_a_compiled_model_is_not_compiled_again_after_a_probe():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    model = torch.compile(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), backend=backend)
    x, y = data()
    before = model(x)
    count = len(graphs)
    assert count >= 1
    probe(model, functional.cross_entropy, (x, y))
    assert torch.equal(model(x), before)
    assert len(graphs) == count
    torch.compiler.reset()


class Syncs(TorchDispatchMode):
    """Count the operations that read a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
        }
        return func(*args, **(kwargs or {}))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.norm, self.last = nn.GRU(4, 6, batch_first=True), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.rnn(x[:, None].expand(-1, 9, -1))[0][:, -1]
        return self.last(functional.hardtanh(torch.sigmoid(self.norm(h))).relu())


def test_nothing_is_read_on_the_host_before_the_readings_are_asked_for():
    model, (x, y) = Plain(), data()
    with Syncs() as without:
        functional.cross_entropy(model(x), y).backward()
    with Syncs() as syncs:
        with Watch(model) as watch:
            loss = functional.cross_entropy(model(x), y)
        parameters = [*model.parameters(), *watch.inputs]
        found = torch.autograd.grad(loss, parameters)
    assert syncs.count == without.count
    assert syncs.count == 0
    with syncs:
        readings = watch.readings(ParameterNorms(model.parameters(), dict(zip(parameters, found, strict=True))))
    assert [layer.name for layer in readings] == ["rnn", "norm", "sigmoid()", "hardtanh()", "relu()", "last"]
    assert all(layer.grad_rms > 0 for layer in readings)
    assert syncs.count <= 10 * len(readings)  # .tolist() of one tensor, not one transfer for each statistic


def test_copies_of_the_model_are_not_bound_to_the_probe():
    model = Plain()
    probe(model, functional.cross_entropy, data())
    twin = copy.deepcopy(model)
    assert hooks(twin) == hooks(model)
    assert sum(count for _, _, count in hooks(model)) == 0
