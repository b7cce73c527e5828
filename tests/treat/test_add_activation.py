"""Layers with nothing between them get an activation, and those that are linear on purpose do not."""

import copy

import pytest
import torch
from torch import nn

from evengrad.nouns import TreatmentError
from evengrad.treat import AddActivation


def kinds(model):
    return [type(module).__name__ for module in model]


def test_layers_with_nothing_between_get_the_activation():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(5, 3)
    for batch in (None, x):
        treated = AddActivation(kind="tanh").treat(model, batch_input=batch)
        assert torch.equal(treated.subject(x), model[3](torch.relu(model[1](torch.tanh(model[0](x))))))
        assert treated.changes == ("0: followed by a new tanh",)


def test_a_linear_stack_is_linear_before_and_is_not_after():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 4), nn.Linear(4, 1)).double().eval()
    treated = AddActivation().treat(model).subject
    x, y = torch.randn(2, 16, 3, dtype=torch.float64)

    def bend(net):
        return float((net(x + y) - net(x) - net(y) + net(torch.zeros_like(x))).detach().abs().max())

    assert bend(model) < 1e-12
    assert bend(treated) > 1e-3


def test_a_norm_stays_in_front_of_the_activation():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.Flatten(),
                          nn.Linear(8 * 16, 2))  # fmt: skip
    for batch in (None, torch.randn(2, 1, 8, 8)):
        treated = AddActivation().treat(model, batch_input=batch).subject
        assert kinds(treated) == ["Conv2d", "Sequential", "Sequential", "Flatten", "Linear"]
        assert kinds(treated[1]) == ["BatchNorm2d", "ReLU"]
        assert kinds(treated[2]) == ["Conv2d", "ReLU"]


class Forward(nn.Module):
    """A functional relu between the first two, a view only between the next."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.third(self.second(x).view(-1, 6))
        return self.last(x * x)


def test_in_a_forward_it_is_seen_which_layer_takes_what():
    treated = AddActivation(kind="prelu").treat(Forward(), batch_input=torch.randn(4, 6))
    assert treated.changes == ("second: followed by a new prelu",)
    with pytest.raises(TreatmentError, match="straight into the next one"):
        AddActivation().treat(Forward())


class Adapted(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.main, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.down, self.up = nn.Linear(8, 2, bias=bias), nn.Linear(2, 8, bias=bias)

    def forward(self, x):
        return self.head(torch.relu(self.main(x) + self.up(self.down(x))))


def test_a_low_rank_pair_without_bias_stays_linear():
    with pytest.raises(TreatmentError, match="AddActivation"):
        AddActivation().treat(Adapted(bias=False), batch_input=torch.randn(4, 8))
    treated = AddActivation().treat(Adapted(bias=True), batch_input=torch.randn(4, 8))
    assert treated.changes == ("down: followed by a new relu",)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.out((self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1) @ self.v(x))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(SelfAttention(), nn.Linear(6, 2)), (4, 3, 6)),
        (nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 2)), (4, 3, 6)),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 6, 1)), (2, 4, 5, 5)),
        (nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2)), (4, 6)),
    ],
)
def test_attention_separable_convolutions_and_what_is_bent_already_are_refused(model, shape):
    for batch in (None, torch.randn(shape)):
        with pytest.raises(TreatmentError, match="AddActivation"):
            AddActivation().treat(model, batch_input=batch)


def test_a_layer_that_also_stands_at_the_end_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(6, 6)

        def forward(self, x):
            return self.shared(self.shared(x))

    with pytest.raises(TreatmentError, match="AddActivation"):
        AddActivation().treat(Twice(), batch_input=torch.randn(4, 6))


def test_a_relu_in_place_counts_as_something_between():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    with pytest.raises(TreatmentError, match="AddActivation"):
        AddActivation().treat(copy.deepcopy(model), batch_input=torch.randn(4, 6))


def test_a_function_in_place_counts_as_something_between():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.first(x).relu_())

    with pytest.raises(TreatmentError, match="AddActivation"):
        AddActivation().treat(InPlace(), batch_input=torch.randn(4, 6))
