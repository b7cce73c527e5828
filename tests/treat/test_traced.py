"""A forward of one's own with modules in the place of its calls: the same numbers, copies, modes, hooks."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from evengrad.nouns import TreatmentError
from evengrad.treat import NormalizeInput
from evengrad.treat._activation_calls import calls_as_modules_, give_back_
from evengrad.treat._traced import Rewritten, trace, traced


class Many(nn.Module):
    """Calls with settings, methods, optional arguments, a functional dropout, a shape that is unpacked."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.linspace(-1, 1, 8))

    def forward(self, x, mask=None, *, scaled=True):
        batch, _ = x.shape
        x = functional.leaky_relu(self.first(x), 0.3) + self.shift
        x = functional.dropout(x, 0.5, self.training)
        if mask is not None:
            x = x * mask
        x = functional.gelu(self.second(x), approximate="tanh").reshape(batch, -1)
        if scaled:
            x = self.scale * x
        x = functional.elu(x, alpha=0.5) + functional.softplus(x, beta=2) + x.exp() + x.tanh().sigmoid()
        return self.last(functional.relu_(x / math.sqrt(x.shape[-1]))).log_softmax(-1)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Branching(nn.Module):
    """Control flow on numbers outside, which cannot be traced, around blocks that can."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        if x.abs().max() > 100:
            x = x / 100
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
        return {"logits": self.head(torch.tanh(x))}


class TrainingOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        if self.training:
            return self.last(x)
        return self.last(x).softmax(-1)


MODELS = {"many": Many, "branching": Branching, "training only": TrainingOnly}


def outputs(model, x):
    results = []
    for training in (True, False):
        torch.manual_seed(4)
        result = model.train(training)(x)
        results.append(result["logits"] if isinstance(result, dict) else result)
    return results


@pytest.mark.parametrize("kind", MODELS)
def test_a_forward_with_modules_for_its_calls_gives_the_same_numbers_and_gradients(kind):
    model, x = MODELS[kind](), torch.randn(5, 6)
    changed = copy.deepcopy(model)
    calls, _ = calls_as_modules_(changed, x)
    assert calls
    for one, other in zip(outputs(model, x), outputs(changed, x), strict=True):
        assert torch.equal(one, other)
        one.square().sum().backward()
        other.square().sum().backward()
    grads = [[value.grad for value in net.parameters()] for net in (model, changed)]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    assert list(model.state_dict()) == list(changed.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in changed.named_parameters()]


def test_every_call_is_found_with_its_settings():
    model = Many()
    calls, refused = calls_as_modules_(model, torch.randn(5, 6))
    assert not refused
    modules = [repr(model.get_submodule(call.name)) for call in calls]
    assert modules == [
        "LeakyReLU(negative_slope=0.3)", "GELU(approximate='tanh')", "ELU(alpha=0.5)",
        "Softplus(beta=2, threshold=20.0)", "Exponential()", "Tanh()", "Sigmoid()", "ReLU()", "LogSoftmax(dim=-1)",
    ]  # fmt: skip


def test_optional_arguments_still_decide_what_is_run():
    model, x, mask = Many().eval(), torch.randn(5, 6), torch.randn(8)
    changed = copy.deepcopy(model)
    calls_as_modules_(changed, x)
    for given in ({}, {"mask": mask}, {"scaled": False}, {"mask": mask, "scaled": False}):
        assert torch.equal(model(x, **given), changed(x, **given))
    assert torch.equal(model(x, mask), changed(x, mask))
    assert torch.equal(model(x[:2]), changed(x[:2]))
    with pytest.raises(TypeError, match="unexpected keyword"):
        changed(x, other=1)
    assert list(inspect.signature(changed.forward).parameters) == ["x", "mask", "scaled"]


def test_a_functional_dropout_follows_the_mode():
    model = Many()
    calls_as_modules_(model, torch.randn(5, 6))
    x = torch.randn(5, 6)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_calls_its_own_modules(again):
    model, x = Many().eval(), torch.randn(5, 6)
    calls_as_modules_(model, x)
    before = model(x)
    other = again(model)
    assert torch.equal(other(x), before)
    other.first.weight.data.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(other(x), before)
    assert type(other) is Many


def test_weights_that_are_loaded_and_hooks_that_are_set_later_count():
    model, fresh, x, seen = Many().eval(), Many().eval(), torch.randn(5, 6), []
    calls_as_modules_(model, x)
    model.load_state_dict(fresh.state_dict())
    assert torch.equal(model(x), fresh(x))
    model.register_forward_hook(lambda module, args, out: seen.append("whole"))
    model.second.register_forward_pre_hook(lambda module, args: seen.append("second"))
    model(x)
    assert seen == ["second", "whole"]


def test_what_cannot_be_traced_is_said_and_what_is_inside_it_still_is():
    model = Branching()
    calls, refused = calls_as_modules_(model, torch.randn(5, 6))
    assert [call.name for call in calls] == [f"blocks.{index}.call_gelu" for index in range(3)]
    assert refused == (
        "Branching.forward: code that cannot be rewritten: TraceError: symbolically traced variables cannot be used as "
        "inputs to control flow",
    )


def test_calls_that_are_given_back_leave_the_model_as_it_was():
    model, x = Branching(), torch.randn(5, 6)
    before = [(name, type(module), "forward" in vars(module)) for name, module in model.named_modules()]
    calls, _ = calls_as_modules_(model, x)
    give_back_(model, calls)
    assert before == [(name, type(module), "forward" in vars(module)) for name, module in model.named_modules()]


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.steps, self.last = nn.Linear(6, 6), 0, None


class Counting(Bare):
    def forward(self, x):
        self.steps += 1
        return torch.relu(self.layer(x))


class Remembering(Bare):
    def forward(self, x):
        self.last = self.layer(x)
        return torch.relu(self.last)


class Noisy(Bare):
    def forward(self, x):
        return torch.relu(self.layer(x) + torch.randn(6))


class AnyNumber(Bare):
    def forward(self, *args):
        return torch.relu(self.layer(args[0]))


class Typed(Bare):
    """Branches on the type of its input, which a tracer does not have: caught by what comes out."""

    def forward(self, x):
        return torch.relu(self.layer(x) * (2.0 if isinstance(x, torch.Tensor) else 1.0))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Counting, "it writes to self.steps"),
        (Remembering, "it writes to self.last"),
        (Noisy, "it makes a tensor that does not depend on its input"),
        (AnyNumber, "it takes any number of arguments"),
        (Typed, "another output when it is traced"),
    ],
)
def test_a_forward_that_would_not_be_the_same_is_left_as_it_is(kind, why):
    model, x = kind(), torch.randn(5, 6)
    attributes = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    calls, refused = calls_as_modules_(model, x)
    assert calls == ()
    assert why in refused[0]
    assert "forward" not in vars(model)
    assert attributes == {key: value for key, value in vars(model).items() if not key.startswith("_")}


def test_a_forward_that_somebody_replaced_is_left_as_it_is():
    model = TrainingOnly()
    model.forward = lambda x: model.last(torch.relu(x))
    with pytest.raises(TreatmentError, match="another function in its place"):
        traced(model)


def test_tracing_leaves_random_states_and_the_module_alone():
    model = Remembering()
    state = torch.get_rng_state()
    with pytest.raises(TreatmentError, match=r"self\.last"):
        trace(model, {})
    assert model.last is None
    assert torch.equal(state, torch.get_rng_state())


def test_two_rewritings_of_one_forward_are_both_there():
    model, x = Many().eval(), torch.randn(5, 6)
    before = model(x)
    calls, _ = calls_as_modules_(model, x)
    give_back_(model, calls[1:])
    again, _ = calls_as_modules_(model, x)
    assert [call.node for call in again] == [call.node for call in calls[1:]]
    assert isinstance(model.forward, Rewritten)
    assert len(model.forward.calls) == len(calls)
    assert torch.equal(model(x), before)


def test_a_model_with_a_rewritten_forward_is_not_wrapped_in_a_class_whose_forward_nobody_would_call():
    model, x = Many(), 5 + torch.randn(8, 6)
    calls_as_modules_(model, x)
    with pytest.raises(TreatmentError, match="whose forward was replaced"):
        NormalizeInput().treat(model, batch_input=x)
