"""What is known before the first step: optimizers, who is left out, what nobody registers, and where the code is."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from evengrad.probe import setup_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.blocks = [nn.Linear(3, 3), nn.Linear(3, 3)]
        self.heads = {"a": (nn.ReLU(), nn.Linear(3, 1)), 1: [nn.Parameter(torch.ones(2))]}
        self.shared = [self.first, self.first.weight, self]
        self.frozen = [nn.Linear(2, 2).requires_grad_(False)]
        self.activations = [nn.ReLU(), torch.tanh, "text", None]
        self.same = [self.blocks[0]]
        self.deep = [[[[nn.Linear(1, 1)]]]]

    def forward(self, x):
        return self.first(x)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x)


def test_what_a_module_keeps_in_plain_containers_and_torch_does_not_see_is_named():
    assert setup_of(Net()).unregistered == ("blocks[0]", "blocks[1]", "heads['a'][1]", "heads[1][0]")
    assert setup_of(Inner()).unregistered[0] == "net.blocks[0]"
    assert setup_of(torch.compile(Net(), backend="eager")).unregistered[0] == "blocks[0]"


def test_what_an_optimizer_holds_although_it_is_in_a_plain_list_is_seen():
    model = Net()
    inside = [*model.parameters(), *(one for block in model.blocks for one in block.parameters())]
    assert "blocks[0]" not in setup_of(model, [torch.optim.SGD(inside, lr=0.1)]).unregistered


OF_TORCH = {
    "LSTM": lambda: nn.LSTM(3, 4, 2),
    "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
    "ParameterList": lambda: nn.ParameterList([torch.ones(2)]),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_nothing_of_torch_itself_is_unregistered_or_has_a_source(name):
    setup = setup_of(OF_TORCH[name]())
    assert (setup.unregistered, setup.sources) == ((), ())


def test_who_requires_a_gradient_and_is_in_no_optimizer_is_left_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    one, two = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam([model[2].weight])
    assert setup_of(model, [one]).left_out == ("2.weight", "2.bias")
    assert setup_of(model, [one, two]).left_out == ("2.bias",)
    assert setup_of(model, [one, two]).optimizer == "SGD + Adam"
    assert setup_of(model).left_out == ()  # nobody knows who will train it
    assert setup_of(model).frozen == ("1.weight", "1.bias")
    assert setup_of(model).numels == (6, 2, 4, 2, 2, 1)
    assert setup_of(model, parameters={"0.bias": model[0].bias}).numels == (2,)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), (None, 0.0, 0.0)),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=1e-3), (None, 1e-3, 0.8)),
        (lambda p: torch.optim.AdamW(p, eps=1e-6, betas=(0.7, 0.99)), (1e-6, 0.01, 0.7)),
        (lambda p: torch.optim.Adam(p, betas=(torch.tensor(0.7), torch.tensor(0.99))), (1e-8, 0.0, 0.7)),
        (lambda p: torch.optim.RMSprop(p, momentum=0.5), (1e-8, 0.0, 0.5)),
        (lambda p: torch.optim.Adafactor(p, eps=(None, 1e-3)), (None, 0.0, 0.0)),
        (torch.optim.LBFGS, (None, 0.0, 0.0)),
    ],
)
def test_settings_of_optimizers_are_read_whatever_their_names(make, wanted):
    setup = setup_of(nn.Linear(2, 2), [make(nn.Linear(2, 2).parameters())])
    assert (setup.eps, setup.weight_decay, pytest.approx(setup.momentum)) == wanted


def test_of_several_groups_the_largest_setting_counts():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters(), "weight_decay": 0.0}, {"params": second.parameters(), "betas": (0.5, 0.9)}]
    setup = setup_of(first, [torch.optim.AdamW(groups, weight_decay=0.1)])
    assert (setup.weight_decay, setup.momentum) == (0.1, 0.9)


def test_the_source_of_a_forward_is_its_file_as_seen_from_here_its_line_and_its_name(monkeypatch, tmp_path):
    line = inspect.getsourcelines(Net.forward)[1]
    here = Path(__file__)
    monkeypatch.chdir(here.parent)
    assert setup_of(Inner()).sources == (
        ("(model)", f"{here.name}:{inspect.getsourcelines(Inner.forward)[1]} in Inner.forward"),
        ("net", f"{here.name}:{line} in Net.forward"),
    )
    monkeypatch.chdir(here.parent.parent.parent)
    assert setup_of(Net()).sources == (("(model)", f"tests/probe/{here.name}:{line} in Net.forward"),)
    monkeypatch.chdir(tmp_path)
    assert setup_of(Net()).sources == (("(model)", f"probe/{here.name}:{line} in Net.forward"),)


class Layer(nn.Linear):
    """Takes its forward from torch."""


def test_what_has_no_source_of_its_own_is_left_out():
    space = {"nn": nn, "__name__": "__console__"}
    exec("class Typed(nn.Module):\n    def forward(self, x):\n        return x", space)
    assert setup_of(space["Typed"]()).sources == ()
    assert setup_of(nn.Sequential(Layer(2, 2), nn.ReLU())).sources == ()


def test_of_very_many_modules_the_first_200_sources_are_told():
    assert len(setup_of(nn.Sequential(*(Net() for _ in range(300)))).sources) == 200


def test_a_lazy_layer_has_no_elements_yet():
    assert setup_of(nn.Sequential(nn.LazyLinear(3))).numels == (0, 0)
