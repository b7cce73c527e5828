"""What a probe still reads when NaN or infinities keep the loss or the forward from ending."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional

from evengrad.diagnose import findings_of
from evengrad.nouns import BatchError, LossError, ModelError
from evengrad.probe import probe

X, ZEROS = torch.ones(4, 3), torch.zeros(4, 1)


def broken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid())
    model[2].weight.data.fill_(math.nan)
    return model


def exploding(*last):
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Linear(3, 16), *layers, nn.Linear(16, 1), *last)
    for parameter in model.parameters():
        parameter.data.mul_(1e6)
    return model


def seen(model, loss, batch=(X, ZEROS), **settings):
    return probe(model, loss, batch, allow_broken_loss=True, **settings)


def gaussian(output, target):
    return -Normal(output, 1.0, validate_args=True).log_prob(target).mean()


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (broken, nn.BCELoss()),
        (lambda: exploding(nn.Sigmoid()), nn.BCELoss()),
        (exploding, gaussian),
    ],
)
def test_a_loss_that_raises_on_nan_leaves_a_reading_on_which_eg201_is_found(make, loss):
    model = make()
    with pytest.raises(LossError, match="loss"):
        probe(model, loss, (X, ZEROS))
    record = seen(model, loss, step=7)
    reading = record.readings[0]
    assert (reading.step, reading.grad_norms, reading.total_norm) == (7, (), None)
    assert math.isnan(reading.loss)
    assert record.parameters == tuple(name for name, _ in model.named_parameters())
    assert [layer.name for layer in reading.layers] == [str(index) for index in range(len(model))]
    outputs = [model[: index + 1](X) for index in range(len(model))]
    assert [layer.output_finite for layer in reading.layers] == [bool(out.isfinite().all()) for out in outputs]
    assert all(layer.grad_rms is None and layer.weight_grad_norm is None for layer in reading.layers)
    first = next(index for index, out in enumerate(outputs) if not out.isfinite().all())
    found = {finding.code: finding for finding in findings_of(record)}
    assert found["EG201"].where == (str(first),)


def test_the_forward_statistics_are_those_of_a_reading_with_a_backward():
    model = exploding()
    whole = probe(model, functional.mse_loss, (X, ZEROS)).readings[0].layers
    alone = seen(model, gaussian).readings[0].layers
    for field in ("name", "numel", "activation_rms", "activation_absmax", "zero_frac", "dead_frac", "weight_norm"):
        assert [getattr(layer, field) for layer in alone] == [getattr(layer, field) for layer in whole]


@pytest.mark.parametrize("constant", [torch.tensor(math.nan), torch.zeros(1)])
def test_a_loss_without_a_graph_is_tolerated_after_an_output_that_is_not_finite(constant):
    reading = seen(broken(), lambda out, y: constant).readings[0]
    assert math.isnan(reading.loss)
    with pytest.raises(LossError, match="without a graph"):
        seen(nn.Linear(3, 1), lambda out, y: constant)


class Policy(nn.Module):
    """Makes a distribution in its forward, which raises when its mean is NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.never = nn.Linear(3, 1), nn.Linear(1, 1)

    def forward(self, x):
        return self.never(Normal(self.mean(x), 1.0, validate_args=True).rsample())


def test_a_forward_that_raises_after_nan_is_read_as_far_as_it_came():
    model = Policy()
    model.mean.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="forward of Policy: got ValueError"):
        probe(model, functional.mse_loss, (X, ZEROS))
    record = seen(model, functional.mse_loss)
    assert [(layer.name, layer.output_finite) for layer in record.readings[0].layers] == [("mean", False)]
    assert [finding.code for finding in findings_of(record)] == ["EG201"]


def test_a_forward_that_raises_after_finite_outputs_raises_as_ever():
    with pytest.raises(ModelError, match="shapes cannot be multiplied"):
        seen(nn.Sequential(nn.Linear(3, 5), nn.Linear(3, 1)), functional.mse_loss)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (nn.Linear(3, 1), lambda out, y: out.nonsense, "nonsense"),
        (nn.Linear(3, 1), lambda out, y: nn.BCELoss()(out + 9, y), "between 0 and 1"),
        (broken(), lambda out, y: out, "take the mean"),
        (broken(), lambda out, y: 1.0, "got float"),
    ],
)
def test_a_loss_that_is_wrong_for_another_reason_raises_as_ever(model, loss, message):
    with pytest.raises(LossError, match=message):
        seen(model, loss)


@pytest.mark.parametrize("batch", [(X * math.nan, ZEROS), (X, ZEROS[:0]), X])
def test_a_bad_batch_raises_as_ever(batch):
    with pytest.raises(BatchError, match="batch"):
        seen(broken(), nn.BCELoss(), batch)


def test_wrong_labels_are_named_although_the_output_is_not_finite():
    with pytest.raises(BatchError, match="labels from 7 to 7"):
        seen(broken()[:3].append(nn.Linear(1, 2)), functional.cross_entropy, (X, torch.full((4,), 7)))


def test_where_nothing_raises_the_reading_is_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    assert seen(model, functional.mse_loss) == probe(model, functional.mse_loss, (X, ZEROS))
    reading = seen(broken(), functional.mse_loss).readings[0]
    assert len(reading.grad_norms) == 4
    assert not math.isfinite(reading.total_norm)


def test_a_tolerant_probe_leaves_the_model_as_found():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), *broken()[2:])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen(model, nn.BCELoss(), (torch.randn(4, 3), ZEROS))
    assert all(torch.equal(value, before[name]) or "2.weight" in name for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
