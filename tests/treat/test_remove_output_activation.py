"""An activation on the output goes when the loss is on something else, and stays when it belongs there."""

import copy
from dataclasses import replace

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn import functional

from evengrad.nouns import Task, TreatmentError
from evengrad.treat import Combined, OnlyInEvaluation, Reinitialize, RemoveOutputActivation


def net(*last, out=3):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, out), *last)


class Called(nn.Module):
    def __init__(self, function, out=3):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, out), function

    def forward(self, x):
        return {"logits": self.function(self.last(torch.tanh(self.first(x)))).squeeze(-1), "hidden": x}


def kinds(model):
    return [type(module).__name__ for module in model]


@pytest.mark.parametrize(
    "last",
    [nn.Softmax(dim=1), nn.LogSoftmax(dim=-1), nn.Sigmoid(), nn.ReLU(), nn.Tanh(),
     nn.Sequential(nn.Dropout(0.1), nn.Softmax(dim=1))],
)  # fmt: skip
def test_a_trailing_module_is_removed(last):
    model, x = net(last).eval(), torch.randn(4, 6)
    for batch in (None, x):
        treated = RemoveOutputActivation().treat(model, batch_input=batch)
        assert torch.equal(treated.subject(x), model[:3](x))


def test_all_activations_behind_the_last_layer_go():
    model = net(nn.ReLU(inplace=True), nn.Softmax(dim=1))
    treated = RemoveOutputActivation().treat(model, batch_input=torch.ones(4, 6))
    assert kinds(treated.subject) == ["Linear", "Tanh", "Linear", "Identity", "Identity"]
    assert treated.changes[1] == "3: relu removed from the output"


@pytest.mark.parametrize("function", [functional.relu, torch.sigmoid, torch.tanh])
def test_a_function_on_the_first_tensor_of_a_mapping_is_removed(function):
    model, x = Called(function), torch.randn(4, 6)
    treated = RemoveOutputActivation().treat(model, batch_input=x)
    expected = model.last(torch.tanh(model.first(x)))
    assert torch.equal(treated.subject(x)["logits"], expected)
    assert torch.equal(pasted(treated.code, model)(x)["logits"], expected)
    assert len(list(treated.subject.children())) == 3  # the tanh between the layers is a function still


@pytest.mark.parametrize(
    "model",
    [net(), net(nn.Softplus()), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.LayerNorm(3))],
)
def test_a_model_without_one_is_refused(model):
    for batch in (None, torch.randn(4, 6)):
        with pytest.raises(TreatmentError, match="an activation on the output"):
            RemoveOutputActivation().treat(model, batch_input=batch)


def test_an_output_that_is_scaled_behind_its_activation_is_left_alone():
    with pytest.raises(TreatmentError, match="an activation on the output"):
        RemoveOutputActivation().treat(Called(lambda x: 2.0 * torch.tanh(x)), batch_input=torch.randn(4, 6))


def test_an_activation_that_is_used_inside_too_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.act = nn.Linear(6, 8), nn.Linear(8, 3), nn.ReLU()

        def forward(self, x):
            return self.act(self.last(self.act(self.first(x))))

    with pytest.raises(TreatmentError, match="used nowhere else"):
        RemoveOutputActivation().treat(Shared(), batch_input=torch.randn(4, 6))


def test_in_training_only_the_output_in_evaluation_is_what_it_was():
    model, x = net(nn.Sigmoid(), out=1), torch.randn(4, 6)
    treated = RemoveOutputActivation(when="training").treat(model, batch_input=x)
    assert torch.equal(treated.subject.train()(x), model[:3](x))
    assert torch.equal(treated.subject.eval()(x), model(x))
    assert isinstance(treated.subject[3], OnlyInEvaluation)
    assert treated.changes == ("3: sigmoid left out in training mode",)


def test_a_softmax_over_one_unit_is_a_sigmoid_in_evaluation():
    model, x = net(nn.Softmax(dim=1), out=1), torch.randn(4, 6)
    treated = RemoveOutputActivation(when="training").treat(model, batch_input=x).subject
    assert torch.equal(treated.eval()(x), torch.sigmoid(model[:3](x)))


class Make:
    def __init__(self, last, out):
        self.last, self.out = last, out

    def __call__(self):
        return net(copy.deepcopy(self.last), out=self.out)


def task_with(task, last, loss, target, out=3):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    return replace(task, model=Make(last, out), loss=loss, train=lambda: [(x, target)])


CLASSES, ONES = torch.arange(16) % 3, (torch.arange(16) % 2).float()[:, None]
ONE_HOT = functional.one_hot(CLASSES, 3).float()


def clamped_bce(output, target):
    p = output.clamp(1e-7, 1 - 1e-7)
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean()


def by_hand(output, target):
    return -(target * output.log()).sum(-1).mean()


def hinge(output, target):
    return (1 - (2 * target - 1) * output).clamp(min=0).mean()


def rate(output, target):
    return functional.poisson_nll_loss(output, target, log_input=False)


@pytest.mark.parametrize(
    ("last", "loss", "target", "out", "now"),
    [
        (nn.Softmax(dim=1), functional.cross_entropy, CLASSES, 3, "Identity"),
        (nn.LogSoftmax(dim=1), functional.cross_entropy, CLASSES, 3, "Identity"),
        (nn.ReLU(), functional.cross_entropy, CLASSES, 3, "Identity"),
        (nn.Sigmoid(), functional.binary_cross_entropy_with_logits, ONES, 1, "Identity"),
        (nn.Softmax(dim=1), functional.binary_cross_entropy_with_logits, ONES, 1, "Identity"),
        (nn.Softmax(dim=1), functional.mse_loss, 7 * ONES, 1, "Identity"),
        (nn.Tanh(), functional.mse_loss, 7 * ONES, 1, "Identity"),
        (nn.Sigmoid(), hinge, ONES, 1, "Identity"),
        (nn.Softmax(dim=1), functional.binary_cross_entropy, ONES, 1, "Sigmoid"),
        (nn.Softmax(dim=1), clamped_bce, ONES, 1, "Sigmoid"),
        (nn.ReLU(), functional.binary_cross_entropy, ONES, 1, "Sigmoid"),
        (nn.Tanh(), functional.binary_cross_entropy, ONES, 1, "Sigmoid"),
    ],
)
def test_the_loss_decides_what_comes_in_its_place(task, last, loss, target, out, now):
    sick = task_with(task, last, loss, target, out)
    treated = RemoveOutputActivation().treat_task(sick)
    model = treated.subject.model()
    assert type(model[3]).__name__ == now
    x, y = next(iter(sick.train()))
    loss = sick.loss(model(x), y)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(bool(value.grad.any()) for value in model.parameters() if value.dim() > 1)


def test_a_softmax_over_one_unit_has_no_gradient_before(task):
    sick = task_with(task, nn.Softmax(dim=1), functional.binary_cross_entropy, ONES, 1)
    model = sick.model()
    x, y = next(iter(sick.train()))
    sick.loss(model(x), y).backward()
    assert not any(bool(value.grad.any()) for value in model.parameters())


@pytest.mark.parametrize(
    ("last", "loss", "target", "out", "why"),
    [
        (nn.LogSoftmax(dim=1), functional.nll_loss, CLASSES, 3, "falls for ever"),
        (nn.LogSoftmax(dim=1), functional.kl_div, ONE_HOT, 3, "falls for ever"),
        (nn.Sigmoid(), functional.binary_cross_entropy, ONES, 1, "takes probabilities"),
        (nn.Sigmoid(), clamped_bce, ONES, 1, "takes probabilities"),
        (nn.Softmax(dim=1), functional.binary_cross_entropy, ONE_HOT, 3, "takes probabilities"),
        (nn.Softmax(dim=1), by_hand, ONE_HOT, 3, "takes positive numbers"),
        (nn.ReLU(), rate, ONES, 1, "takes positive numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_an_activation_that_its_loss_needs_is_refused(task, last, loss, target, out, why):
    with pytest.raises(TreatmentError, match=why):
        RemoveOutputActivation().treat_task(task_with(task, last, loss, target, out))


def test_without_the_softmax_before_a_cross_entropy_more_is_learned_in_the_same_steps():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator)
    target = torch.arange(400) % 10
    x = centres[target] + 2 * torch.randn(400, 64, generator=generator)
    accuracies = []
    for treated in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10), nn.Softmax(dim=1))
        if treated:
            model = RemoveOutputActivation().treat(model, batch_input=x).subject
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        accuracies.append(float((model(x).argmax(1) == target).float().mean()))
    assert accuracies[1] > accuracies[0] + 0.1


def test_combined_with_another_it_still_asks_the_loss():
    """A softmax over one unit before a cross entropy of probabilities becomes a sigmoid in company as well."""
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, :1] > 0).float()
    task = Task(
        model=lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Softmax(1)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=nn.functional.binary_cross_entropy,
        train=lambda: [(inputs, targets)],
        validate=lambda model: 0.0,
        steps=1,
    )
    treated = Combined((RemoveOutputActivation(), Reinitialize())).treat_task(task)
    output = treated.subject.model()(100 * inputs).detach()
    assert task.loss(output, targets).isfinite()
    assert 0.0 <= float(output.min()) < float(output.max()) <= 1.0
