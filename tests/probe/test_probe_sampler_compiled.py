"""Compiled models run eagerly where they are sampled, and nothing is compiled anew for that."""

import copy
import pickle

import pytest
import torch
from sampled_models import sampled_once, vectors
from torch import nn
from torch.nn import functional

from evengrad.probe import Sampler, is_compiled

# torch's own: it looks at `.grad` of an intermediate tensor when it traces a function that is given one.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.block = nn.Linear(6, 6), nn.BatchNorm1d(6), Block()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.block(self.drop(self.norm(functional.relu(self.first(x)))))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.act = nn.Linear(6, 6), nn.Tanh()

    def forward(self, x):
        return self.act(self.inner(x))


NAMES = ["first", "relu()", "norm", "drop", "block.inner", "block.act"]


class Counting:
    """A backend that runs what it is given as it is, and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def wrapped(model, backend):
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    return compiled, compiled


def method(model, backend):
    model.compile(backend=backend, fullgraph=True)
    return model, model


def wrapped_part(model, backend):
    model.block = torch.compile(model.block, backend=backend, fullgraph=True)
    return model, model


def method_part(model, backend):
    model.block.compile(backend=backend, fullgraph=True)
    return model, model


def around(model, backend):
    """The sampler is handed the plain model."""
    return model, torch.compile(model, backend=backend, fullgraph=True)


def around_part(model, backend):
    """As before, in something that holds it."""
    return model, torch.compile(nn.Sequential(model), backend=backend, fullgraph=True)


WAYS = {way.__name__: way for way in (wrapped, method, wrapped_part, method_part, around, around_part)}


def trained(way, *, sampled, steps=7):
    """Train some steps; give what they leave behind, what was read, and how often it was compiled after each."""
    torch._dynamo.reset()
    backend = Counting()
    handed, called = way(Net(), backend)
    optimizer = torch.optim.SGD(handed.parameters(), lr=0.05, momentum=0.9)
    sampler, left, names, counts = Sampler(handed), [], [], []
    torch.manual_seed(1)
    for step in range(steps):
        if step in sampled:
            sampler.arm()
        loss = called(vectors()).square().mean()
        loss.backward()
        if sampler.armed:
            names.append([layer.name for layer in sampler.readings(sampler.packed().tolist())])
            sampler.disarm()
        optimizer.step()
        optimizer.zero_grad()
        left += [loss.detach()]
        counts.append(backend.count)
    return [*left, *handed.state_dict().values()], names, counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampled", [(0, 3, 5), (2, 3, 6)])
def test_a_compiled_model_is_read_at_every_sampled_step_and_compiled_once(way, sampled):
    plain, _, once = trained(WAYS[way], sampled=())
    found, names, counts = trained(WAYS[way], sampled=sampled)
    assert names == [NAMES] * 3
    assert counts[-1] == once[-1] >= 1
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_a_model_that_is_wrapped_after_the_first_step_was_begun_is_read_from_the_second_one_on():
    torch._dynamo.reset()
    backend, model = Counting(), Net()
    sampler = Sampler(model)
    sampler.arm()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(vectors()).sum().backward()
    names = [[layer.name for layer in sampler.readings(sampler.packed().tolist())]]
    sampler.disarm()
    for _ in range(3):
        compiled(vectors())
    count = backend.count
    for _ in range(2):
        sampler.arm()
        compiled(vectors()).sum().backward()
        names += [[layer.name for layer in sampler.readings(sampler.packed().tolist())]]
        sampler.disarm()
        compiled(vectors())
    assert names == [[], NAMES, NAMES]
    assert backend.count == count <= 2


@pytest.mark.parametrize("armed", [True, False])
def test_a_compiled_step_that_calls_a_compiled_model_goes_on_as_it_was(armed):
    torch._dynamo.reset()
    backend, model = Counting(), Net()
    model.compile(backend=backend, fullgraph=True)
    step = torch.compile(lambda x: model(x).sum(), backend=backend, fullgraph=True)
    sampler = Sampler(model)
    if armed:
        sampler.arm()
    step(vectors()).backward()
    assert sampler.packed().numel() == 0
    sampler.disarm()
    with torch.compiler.set_stance("force_eager"):
        sampler.arm()
        step(vectors()).backward()
        assert [layer.name for layer in sampler.readings(sampler.packed().tolist())] == NAMES
        sampler.disarm()


def test_an_evaluation_in_a_step_that_is_sampled_is_compiled():
    torch._dynamo.reset()
    backend, model = Counting(), Net()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    sampler = Sampler(compiled)
    sampler.arm()
    model.eval()
    with torch.no_grad():
        compiled(vectors())
    assert backend.count == 1
    model.train()
    compiled(vectors()).sum().backward()
    assert backend.count == 1
    compiled(vectors()).sum().backward()  # the second micro-batch
    assert backend.count > 1
    assert len(sampler.readings(sampler.packed().tolist())) == len(NAMES)
    sampler.disarm()


@pytest.mark.parametrize("way", WAYS)
def test_whether_a_model_is_compiled_can_be_told(way):
    model = Net()
    assert not is_compiled(model)
    kept = WAYS[way](model, "eager")
    assert is_compiled(model)
    assert is_compiled(kept[0])
    assert not is_compiled(Net())


def test_a_compiled_function_in_an_eager_model_goes_on_as_it_was():
    torch._dynamo.reset()
    backend = Counting()

    @torch.compile(backend=backend, fullgraph=True)
    def inner(x):
        return functional.relu(x) * torch.tanh(x)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 6)

        def forward(self, x):
            return inner(self.first(x))

    model, x, counts = Around(), vectors(), []
    sampler = Sampler(model)
    for step in range(8):
        if step % 2:
            assert sampled_once(model, torch.sum, x, sampler)[0].name == "first"
        else:
            model(x)
        counts.append(backend.count)
    assert counts[3:] == [counts[3]] * 5


def test_a_model_that_is_compiled_while_the_hooks_are_on_stays_compiled():
    torch._dynamo.reset()
    backend, model = Counting(), Net()
    sampler = Sampler(model)
    sampler.arm()
    model.compile(backend=backend, fullgraph=True)
    sampler.disarm()
    model(vectors())
    assert backend.count == 1


def test_copies_of_an_armed_compiled_model_are_whole():
    torch._dynamo.reset()
    model = torch.compile(Net(), backend="eager")
    sampler = Sampler(model)
    sampler.arm()
    copied = copy.deepcopy(model)
    sampler.disarm()
    x = vectors()
    model.eval()
    copied.eval()
    assert torch.equal(copied(x), model(x))
    plain = Net()
    Sampler(plain).arm()
    assert torch.equal(pickle.loads(pickle.dumps(plain)).eval()(x), Net().eval()(x))
