"""What the optimizer leaves out, reconnected: unregistered, frozen and forgotten parts."""

import copy
import pickle

import pytest
import torch
from pasted_code import ran
from torch import nn
from torch.nn import functional

from evengrad.nouns import Task, TreatmentError
from evengrad.treat import TrainEverything


class Listed(nn.Module):
    """Layers in a plain list."""

    def __init__(self):
        super().__init__()
        self.steps = [nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()]
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return self.head(x)


class Nested(nn.Module):
    """Layers in lists in a dictionary, weights in a tuple, a list with a function in it, and an alias."""

    def __init__(self):
        super().__init__()
        self.ways = {"left": [nn.Linear(4, 4)], "right": [nn.Linear(4, 4), nn.Linear(4, 4)]}
        self.scales = (nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4)))
        self.mixed = [nn.Linear(4, 4), torch.tanh, nn.Linear(4, 4)]
        self.head = nn.Linear(4, 1)
        self.alias, self.numbers = [self.head], [1, 2]

    def forward(self, x):
        for layer in self.ways["left"]:
            x = layer(x) * self.scales[0]
        for layer in self.ways["right"]:
            x = layer(x) * self.scales[1]
        for layer in self.mixed:
            x = layer(x)
        return self.alias[0](x)


def frozen():
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    model[0].requires_grad_(False)
    return model


def plain():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def everything(model):
    return torch.optim.Adam(model.parameters(), lr=0.02, eps=1e-7)


def head_only(model):
    return torch.optim.Adam(list(model.children())[-1].parameters(), lr=0.02, eps=1e-7)


def batches():
    data = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    return [(data, torch.sin(3 * data[:, :1]) + data[:, 1:2] * data[:, 2:3])]


def nothing(_model):
    return 0.0


def task_of(model, optimizer=everything):
    return Task(model=model, optimizer=optimizer, loss=functional.mse_loss, train=batches, validate=nothing, steps=400)


def final_loss(task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    data, target = task.train()[0]
    for _ in range(task.steps):
        optimizer.zero_grad()
        loss = task.loss(model(data), target)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("sick", [task_of(Listed), task_of(frozen), task_of(plain, head_only)])
def test_what_random_features_cannot_learn_is_learnt_after(sick):
    assert final_loss(TrainEverything().treat_task(sick).subject) < 0.3 * final_loss(sick)


@pytest.mark.parametrize("model", [Listed, Nested, frozen, plain])
@pytest.mark.parametrize("optimizer", [everything, head_only])
def test_every_parameter_is_the_model_s_and_the_optimizer_s_after(model, optimizer):
    if (model, optimizer) == (plain, everything):
        with pytest.raises(TreatmentError, match="trains everything"):
            TrainEverything().treat_task(task_of(model, optimizer))
        return
    treated = TrainEverything().treat_task(task_of(model, optimizer))
    subject = pickle.loads(pickle.dumps(treated.subject))
    torch.manual_seed(1)
    changed = subject.model()
    held = {id(value) for group in subject.optimizer(changed).param_groups for value in group["params"]}
    subject.loss(changed(batches()[0][0]), batches()[0][1]).backward()
    assert held == {id(value) for value in changed.parameters()}
    assert all(value.requires_grad and value.grad is not None for value in changed.parameters())
    torch.manual_seed(1)
    torch.testing.assert_close(changed(batches()[0][0]), model()(batches()[0][0]), rtol=0, atol=0)


def test_lists_keep_their_names_and_an_alias_is_left_alone():
    treated = TrainEverything().treat_task(task_of(Nested))
    names = [name for name, _ in treated.subject.model().named_parameters()]
    assert {"ways.left.0.weight", "ways.right.1.bias", "scales.1", "mixed_0.weight", "mixed_2.bias"} <= set(names)
    assert not any(name.startswith("alias") for name in names)
    assert "ways, scales, mixed_0, mixed_2: registered" in treated.changes[0]


@pytest.mark.parametrize("model", [Listed, Nested, frozen])
def test_the_pasted_code_connects_the_same(model):
    treated = TrainEverything().treat_task(task_of(model, head_only))
    torch.manual_seed(2)
    made = treated.subject.model()
    torch.manual_seed(2)
    by_hand = ran(treated.code, model=model(), optimizer=everything(nn.Linear(1, 1)))
    assert by_hand["model"].state_dict().keys() == made.state_dict().keys()
    assert all(value.requires_grad for value in by_hand["model"].parameters())
    torch.testing.assert_close(by_hand["model"](batches()[0][0]), made(batches()[0][0]), rtol=0, atol=0)
    assert len(by_hand["optimizer"].param_groups[1]["params"]) == len(list(made.parameters()))


def test_the_new_group_has_the_settings_of_the_first():
    subject = TrainEverything().treat_task(task_of(plain, head_only)).subject
    first, second = subject.optimizer(subject.model()).param_groups
    assert {key: first[key] for key in first if key != "params"} == {
        key: second[key] for key in second if key != "params"
    }
    assert second["eps"] == 1e-7


def named(model):
    return torch.optim.SGD([(name, value) for name, value in model[2].named_parameters()], lr=0.1)


def test_an_optimizer_that_knows_names_gets_names():
    subject = TrainEverything().treat_task(task_of(plain, named)).subject
    assert subject.optimizer(subject.model()).param_groups[1]["param_names"] == ["0.weight", "0.bias"]


class OneGroup(torch.optim.SGD):
    def add_param_group(self, param_group):
        if self.param_groups:
            raise ValueError("one group only")
        super().add_param_group(param_group)


def test_an_optimizer_that_takes_no_group_is_refused():
    with pytest.raises(TreatmentError, match="ValueError when a group was added: one group only"):
        TrainEverything().treat_task(task_of(plain, lambda model: OneGroup(model[2].parameters(), lr=0.1)))


def test_the_factory_s_own_model_is_not_changed():
    model = Listed()
    before = copy.deepcopy(model.state_dict())
    TrainEverything().treat_task(task_of(lambda: model)).subject.model()
    assert isinstance(model.steps, list)
    assert model.state_dict().keys() == before.keys()


def test_torch_s_own_lists_of_weights_are_left_alone():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.utils.parametrizations.weight_norm(nn.LSTM(4, 5), "weight_hh_l0"), nn.Linear(5, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    with pytest.raises(TreatmentError, match="trains everything"):
        TrainEverything().treat_task(task_of(Reader))


def test_integers_are_not_thawed():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.count = plain(), nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)

        def forward(self, x):
            return self.body(x)

    with pytest.raises(TreatmentError, match="trains everything"):
        TrainEverything().treat_task(task_of(Counted))
