"""The target normalised in model and loss: raw numbers come out, the network learns others; what is refused."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pasted_code import ran
from torch import nn
from torch.nn import functional

from evengrad.nouns import Task, TreatmentError
from evengrad.treat import NormalizeTarget, Reinitialize


def points():
    return torch.randn(400, 4, generator=torch.Generator().manual_seed(3))


def wanted(data):
    return 3e4 + 2e4 * torch.tanh(data[:, :1] - data[:, 1:2])


def batches():
    return [(rows, wanted(rows)) for rows in points().split(40)]


def net():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def r2(model):
    data = points()
    return 1 - ((model(data) - wanted(data)).square().mean() / wanted(data).var(correction=0)).item()


def raw_task(**changes):
    task = Task(model=net, optimizer=adam, loss=functional.mse_loss, train=batches, validate=r2, steps=300)
    return replace(task, **changes)


def trained(task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    for step in range(task.steps):
        data, target = task.train()[step % 10]
        optimizer.zero_grad()
        task.loss(model(data), target).backward()
        optimizer.step()
    with torch.no_grad():
        return task.validate(model)


def test_a_large_target_is_learnt_after_and_not_before_in_raw_numbers():
    assert trained(raw_task()) < 0.1
    assert trained(NormalizeTarget().treat_task(raw_task()).subject) > 0.95


def test_the_treated_loss_is_that_of_the_network_s_own_output_and_the_normalised_target():
    treated = NormalizeTarget().treat_task(raw_task()).subject
    torch.manual_seed(4)
    untreated, model = net(), None
    torch.manual_seed(4)
    model = treated.model()
    data, target = batches()[0]
    everything = torch.cat([one for _, one in batches()]).double()
    normal = ((target - everything.mean()) / everything.std(correction=0)).float()
    expected = functional.mse_loss(untreated(data), normal)
    loss = treated.loss(model(data), target)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(model.parameters(), untreated.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_columns_have_numbers_of_their_own_and_a_constant_one_that_of_the_others():
    def train():
        data = points()
        return [(data, torch.cat([wanted(data), 0.01 * data[:, :1], torch.full((400, 1), 9.0)], 1))]

    task = raw_task(model=lambda: nn.Linear(4, 3), train=train)
    model = NormalizeTarget().treat_task(task).subject.model()
    target = train()[0][1].double().numpy()
    np.testing.assert_allclose(model.target_mean.numpy(), target.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.target_std.numpy()[:2], target.std(0)[:2], rtol=1e-5)
    assert model.target_std[2] == model.target_std[1]  # torch's median of two is the lower one


def test_a_target_of_more_dimensions_has_one_number():
    task = raw_task(model=lambda: nn.Linear(4, 2), train=lambda: [(torch.randn(3, 5, 4), 1e3 * torch.randn(3, 5, 2))])
    assert NormalizeTarget().treat_task(task).subject.model().target_std.shape == ()


def test_the_pasted_code_gives_the_same_output_and_loss():
    treated = NormalizeTarget().treat_task(raw_task())
    torch.manual_seed(0)
    model = treated.subject.model()
    torch.manual_seed(0)
    names = ran(treated.code, model=net())
    data, target = batches()[0]
    torch.testing.assert_close(names["model"](data), model(data), rtol=1e-5, atol=1e-2)
    by_hand = functional.mse_loss(names["normalized"](names["model"](data)), names["normalized"](target))
    torch.testing.assert_close(by_hand, treated.subject.loss(model(data), target), rtol=1e-4, atol=1e-6)
    assert isinstance(names["model"], nn.Sequential)


def test_names_class_and_indexing_stay_and_it_is_pickled():
    treated = NormalizeTarget().treat_task(raw_task()).subject
    model = pickle.loads(pickle.dumps(treated)).model()
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[-1], nn.Linear)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in net().named_parameters()]
    data = points()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(again(data), model(data), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [functional.mse_loss, functional.l1_loss, functional.huber_loss, nn.SmoothL1Loss()])
def test_losses_of_a_difference_are_taken(loss):
    assert NormalizeTarget().treat_task(raw_task(loss=loss)).changes


def penalised(output, target):
    return functional.mse_loss(output, target) + 1e-3 * output.square().mean()


def relative(output, target):
    return ((output - target) / target).abs().mean()


@pytest.mark.parametrize("loss", [penalised, relative, functional.poisson_nll_loss])
def test_other_losses_are_refused(loss):
    with pytest.raises(TreatmentError, match="moved together"):
        NormalizeTarget().treat_task(raw_task(loss=loss))


def test_a_loss_that_does_not_see_the_output_is_refused():
    with pytest.raises(TreatmentError, match="does not change with the output"):
        NormalizeTarget().treat_task(raw_task(loss=functional.cross_entropy))  # of a single class: always 0


def binary():
    return [(points()[:50], 0.9 + 0.1 * (torch.arange(50) % 2)[:, None])]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": lambda: [(points(), torch.arange(400))]}, "target of torch.int64"),
        ({"train": lambda: [(points(), torch.randn(400, 1))]}, "normalised already"),
        ({"train": lambda: [(points(), torch.full((400, 1), 2.0))]}, "all the same"),
        ({"train": lambda: [(points(), torch.full((400, 1), torch.nan))]}, "not finite"),
        ({"train": lambda: [(points(), wanted(points())[:, 0])]}, "an output of"),
        ({"train": lambda: [points()]}, "without batches"),
        ({"train": binary, "loss": nn.BCEWithLogitsLoss()}, "moved together"),
        ({"train": binary, "loss": nn.BCELoss()}, r"RuntimeError from Task\.loss"),
        ({"model": lambda: nn.LSTM(4, 1)}, "an output of tuple|nothing|TypeError"),
    ],
)
def test_what_cannot_be_normalised_is_refused(changes, said):
    with pytest.raises(TreatmentError, match=said):
        NormalizeTarget().treat_task(raw_task(**changes))


def test_a_target_is_not_normalised_twice():
    once = NormalizeTarget().treat_task(raw_task()).subject
    with pytest.raises(TreatmentError, match="attribute 'target_mean'"):
        NormalizeTarget().treat_task(once)


def test_a_model_alone_is_refused_as_the_loss_has_to_change():
    with pytest.raises(TreatmentError, match="treat_task"):
        NormalizeTarget().treat(net())


def test_other_treatments_of_the_model_come_after_it():
    first = NormalizeTarget().treat_task(raw_task()).subject
    both = Reinitialize().treat_task(first).subject
    assert both.model().target_std.item() == first.model().target_std.item()
    assert trained(both) > 0.95


def test_a_tanh_at_the_end_reaches_a_deviation_to_both_sides():
    task = raw_task(model=lambda: nn.Sequential(*net(), nn.Tanh()))
    model = NormalizeTarget().treat_task(task).subject.model()
    target = torch.cat([one for _, one in batches()])
    output = model(1e6 * torch.randn(1000, 4))
    assert (output - target.mean()).abs().max().item() <= 1.001 * target.std().item()
