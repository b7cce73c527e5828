"""The probe of a batch reads parameters, both ends and the set-up beside the layers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe import probe


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(16, 6) * torch.linspace(1, 9, 6) + 3, torch.randint(0, 3, (16,))


def test_parameters_are_read_with_the_gradients_that_a_backward_would_leave(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].bias.requires_grad_(False)
    record = probe(model, functional.cross_entropy, batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    functional.cross_entropy(model(batch[0]), batch[1]).backward()
    readings = record.readings[0].weights
    assert tuple(one.name for one in readings) == record.parameters
    for reading, parameter in zip(readings, model.parameters(), strict=True):
        assert reading.weight_rms == pytest.approx(parameter.detach().square().mean().sqrt().item(), rel=1e-5)
        if parameter.grad is None:
            assert reading.grad_rms is None
        else:
            assert reading.grad_rms == pytest.approx(parameter.grad.square().mean().sqrt().item(), rel=1e-5)
        assert (reading.update_ratio, reading.still_frac) == (None, None)
    assert [one.fan_in for one in readings] == [6, 0, 5, 0]


def test_both_ends_are_read_with_the_operations_between(batch):
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1))
    ends = probe(model, functional.cross_entropy, batch).readings[0].ends
    x = batch[0].numpy()
    assert ends.inputs[0].feature_std_max == pytest.approx(x.std(0).max(), rel=1e-5)
    assert (ends.output.shape, ends.output.features) == ((16, 3), 3)
    assert ends.output.maximum <= 1.0
    assert (ends.target.maximum, ends.target.dtype) == (2.0, "int64")
    assert ends.loss_ops == ("NllLoss", "LogSoftmax", "Softmax")
    assert (ends.softmax_size, ends.cuts) == (3, ())
    shares = np.bincount(batch[1].numpy()) / 16
    assert ends.constant_loss == pytest.approx(min(-(shares * np.log(shares)).sum() + 2 / 32, np.log(3)))


def test_the_set_up_names_what_is_frozen_and_where_the_forward_stands(batch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)

        def forward(self, x):
            return self.two(self.one(x))

    record = probe(Net(), functional.cross_entropy, batch)
    assert record.setup.optimizer == ""
    assert record.setup.frozen == ("one.weight", "one.bias")
    assert record.setup.numels == (36, 6, 18, 3)
    assert [name for name, _ in record.setup.sources] == ["(model)"]


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return (self.layer(x) * float("nan")).sigmoid()


def test_where_the_loss_breaks_on_what_is_not_finite_the_ends_are_still_read(batch):
    target = functional.one_hot(batch[1], 3).float()
    loss = functional.binary_cross_entropy
    reading = probe(Broken(), loss, (batch[0] * 0, target), allow_broken_loss=True).readings[0]
    assert np.isnan(reading.loss)
    assert reading.ends.output.finite_frac == 0.0
    assert reading.ends.target.maximum == 1.0
    assert reading.ends.loss_ops == ()
    assert [one.grad_rms for one in reading.weights] == [None, None]
