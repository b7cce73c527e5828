"""Names of parameters for an optimizer whose model nobody handed over."""

import copy
import warnings

import pytest
import torch
from torch import nn

from evengrad.guard import Everywhere
from evengrad.guard._steps import guard_of


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def train(model, optimizer, values=(1.0, 2.0, 3.0)):
    for value in values:
        optimizer.zero_grad()
        model(torch.full((3, 4), value)).square().sum().backward()
        optimizer.step()


def names_of(optimizer):
    return list(guard_of(optimizer).record.parameters)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda model: model,
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_names_are_the_models_own_without_those_of_wrappers(wrapped):
    model = net()
    ema = copy.deepcopy(model)
    outside = wrapped(model)
    with Everywhere(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(outside.parameters(), lr=0.1)
        train(outside, optimizer)
        assert names_of(optimizer) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert torch.equal(ema[0].weight, net()[0].weight)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile's own
def test_a_wrapper_inside_a_model_leaves_the_names_and_a_models_own_module_stays():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 4)
            self.body = torch.compile(nn.Linear(4, 2), backend="eager")

        def forward(self, x):
            return self.body(self.module(x))

    model = Outer()
    with Everywhere():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer)
        assert names_of(optimizer) == ["module.weight", "module.bias", "body.weight", "body.bias"]


def test_a_model_is_found_though_it_is_never_called():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)

        def loss(self, x):
            return nn.functional.linear(x, self.body.weight).sum()

    model = Net()
    with Everywhere():
        optimizer = torch.optim.SGD([model.body.weight], lr=0.1)
        model.loss(torch.ones(1, 4)).backward()
        optimizer.step()
        assert names_of(optimizer) == ["body.weight"]


def test_two_models_of_one_class_are_told_apart():
    pair = [nn.Linear(4, 4), nn.Linear(4, 2)]
    with Everywhere():
        optimizer = torch.optim.SGD([parameter for model in pair for parameter in model.parameters()], lr=0.1)
        pair[1](pair[0](torch.ones(1, 4))).sum().backward()
        optimizer.step()
        assert names_of(optimizer) == ["Linear.weight", "Linear.bias", "Linear2.weight", "Linear2.bias"]


def test_a_model_that_comes_later_is_found_beside_a_known_one():
    known = net()
    with Everywhere():
        train(known, torch.optim.SGD(known.parameters(), lr=0.1))
        head = nn.Linear(2, 2)
        optimizer = torch.optim.SGD([*known.parameters(), *head.parameters()], lr=0.1)
        train(lambda x: head(known(x)), optimizer)
        assert names_of(optimizer)[-3:] == ["Sequential.2.bias", "Linear.weight", "Linear.bias"]


def test_of_two_models_that_hold_the_parameters_the_smaller_names_them():
    class Teacher(nn.Module):
        def __init__(self, student):
            super().__init__()
            self.student, self.more = student, nn.Linear(2, 2)

    class Judge(nn.Module):
        def __init__(self, student):
            super().__init__()
            self.judged = student

    inner = net()
    holders = [Teacher(inner), Judge(inner), Teacher(inner)]
    with Everywhere():
        optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
        train(inner, optimizer)
        assert names_of(optimizer)[0] == "judged.0.weight"
    assert len(holders) == 3


def test_tensors_of_no_model_are_called_by_their_place():
    latent, model = torch.ones(3, requires_grad=True), nn.Linear(3, 1)
    with Everywhere(clip=1.0) as everywhere:
        alone = torch.optim.SGD([{"params": [latent]}, {"params": [torch.ones(2, requires_grad=True)]}], lr=0.1)
        both = torch.optim.SGD([latent, *model.parameters()], lr=0.1)
        (9 * model(latent)).sum().backward()
        alone.step()
        both.step()
        assert names_of(alone) == ["optimizer.group0.0", "optimizer.group1.0"]
        assert names_of(both) == ["optimizer.group0.0", "weight", "bias"]
    assert everywhere.summary.startswith("SGD of loose tensors: 1 step, ")
