"""What a probe says of a model, batch or loss that it cannot work with."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.nouns import BatchError, LossError, ModelError
from evengrad.probe import checked_batch, named_parameters, probe

X, Y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"^batch: got Tensor, want a pair \(input, target\)"),
        ((X,), "got tuple of 1 items"),
        ((X, Y, Y), "got tuple of 3 items"),
        ({"x": X, "y": Y}, "got dict, want a pair"),
        (None, "got NoneType"),
        ((X[:0], Y[:0]), r"^batch input: got an empty tensor of shape \(0, 3\), want at least one sample"),
        ((X, Y[:0]), "batch target: got an empty tensor"),
        ((X.log() / 0, Y), "batch input: got 12 of 12 values that are NaN or infinite, want finite numbers; look at"),
        ((torch.tensor([[1.0, math.inf, math.nan]]), Y), "got 2 of 3 values that are NaN"),
        (({"a": X, "b": [X, X * math.inf]}, Y), "batch input: got 12 of 12"),
        ((X, X * math.nan), "batch target: got 12 of 12"),
        ((torch.full((3,), complex(math.nan, 0)), Y), "got 3 of 3"),
        ((torch.tensor([[1.0, -math.inf, 0.0]]), Y), "got 1 of 3"),  # no additive mask
        ((X, Y + 1), r"^batch target: got labels from 1 to 2, want labels from 0 to 1: the output has 2 classes"),
        ((X, Y - 1), "got labels from -1 to 0"),
    ],
)
def test_a_batch_that_is_none_is_named(batch, message):
    with pytest.raises(BatchError, match=message):
        probe(net(), functional.cross_entropy, batch)


@pytest.mark.parametrize("flat", [True, False])
def test_labels_of_a_sequence_are_compared_with_its_classes(flat):
    def loss(output, target):
        logits = output.expand(4, 6, 5, 2) if flat else output.reshape(4, 1, 2)
        if flat:
            return functional.cross_entropy(logits.reshape(-1, 2), target.expand(6, 5, 4).reshape(-1))
        return functional.cross_entropy(logits.transpose(1, 2), target[:, None])

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x)[:, None, None].expand(4, 6, 5, 2) if flat else self.fc(x)

    with pytest.raises(BatchError, match="labels from 1 to 2, want labels from 0 to 1: the output has 2 classes"):
        probe(Sequence(), loss, (X, Y + 1))


def test_a_loss_that_raises_for_another_reason_does_not_blame_the_labels():
    model = nn.Linear(3, 2)

    def loss(output, target):
        raise RuntimeError("shapes differ")

    words = r"RuntimeError: shapes differ .*, in loss\), want a scalar for an output of shape \(4, 2\)"
    with pytest.raises(LossError, match=words):
        probe(model, loss, (X, Y + 100))


def test_a_pair_is_taken_apart_whatever_holds_it():
    for batch in ((X, Y), [X, Y]):
        data, target = checked_batch(batch)
        assert data is X
        assert target is Y
    assert checked_batch(("text", None)) == ("text", None)


def test_a_model_without_parameters_is_named():
    with pytest.raises(ModelError, match=r"^model: got Tanh without parameters, want a model with parameters"):
        probe(nn.Tanh(), functional.cross_entropy, (X, Y))


def test_a_model_that_is_frozen_altogether_is_named():
    with pytest.raises(ModelError, match="got 4 parameters, none with requires_grad"):
        probe(net().requires_grad_(requires_grad=False), functional.cross_entropy, (X, Y))


def test_a_forward_that_raises_is_told_with_its_input():
    with pytest.raises(
        ModelError, match=r"^forward of Sequential: got RuntimeError: .* input of shape \(4, 7\)"
    ) as one:
        probe(net(), functional.cross_entropy, (torch.ones(4, 7), Y))
    assert isinstance(one.value.__cause__, RuntimeError)


def test_a_backward_that_raises_is_told():
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            h = self.fc(x)
            out = h.exp()
            out.add_(1)  # the backward of exp needs its result
            return out

    with pytest.raises(ModelError, match=r"^backward of Spoilt: got RuntimeError: .*inplace operation"):
        probe(Spoilt(), functional.cross_entropy, (X, Y))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, y: out, r"got a tensor of shape \(4, 2\), want a scalar tensor; take the mean"),
        (lambda out, y: 1.0, "got float, want a scalar tensor"),
        (lambda out, y: None, "got NoneType, want a scalar tensor"),
        (lambda out, y: out.sum().detach(), "got a loss without a graph, want .*; look for .detach"),
        (lambda out, y: out.argmax(1).float().mean(), "got a loss without a graph"),
        (lambda out, y: out.nonsense, "AttributeError: .*nonsense"),
        (functional.mse_loss, "got RuntimeError: .*broadcast|got RuntimeError: .*must match|got UserWarning"),
    ],
)
def test_a_loss_that_is_none_is_named(loss, message):
    with pytest.raises(LossError, match=message) as caught:
        probe(net(), loss, (X, Y))
    assert caught.value.what == "loss(output, target)"


def test_a_loss_of_one_element_is_taken():
    record = probe(net(), lambda out, y: functional.cross_entropy(out, y).reshape(1, 1), (X, Y))
    assert record.readings[0].loss == pytest.approx(functional.cross_entropy(net()(X), Y).item())


def test_a_loss_that_is_not_finite_is_a_reading_and_no_error():
    reading = probe(net(), lambda out, y: out.sum() * math.inf, (X, Y)).readings[0]
    assert math.isinf(reading.loss) or math.isnan(reading.loss)
    assert not math.isfinite(reading.total_norm)


def test_tied_parameters_are_named_once_and_compiled_ones_plainly():
    model = net()
    model[2].extra = model[0].weight
    assert list(named_parameters(model)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(named_parameters(torch.compile(model, backend="eager"))) == ["0.weight", "0.bias", "2.weight", "2.bias"]
