"""The output gets the activation that the loss asks for, and none where the loss takes any number."""

import copy
import pickle
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn import functional

from evengrad.nouns import TreatmentError
from evengrad.treat import AddOutputActivation, Combined, SwapActivation

CLASSES = torch.arange(32) % 5
ONE_HOT = functional.one_hot(CLASSES, 5).float()
MANY_HOT = (torch.arange(32)[:, None] * torch.tensor([1, 3, 5, 7, 11]) % 3 == 0).float()
ONES = (torch.arange(32) % 2).float()[:, None]
COUNTS = (torch.arange(32) % 7).float()[:, None]


def net(*last, out=5):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, out), *last)


class Custom(nn.Module):
    """Runs over its children, as some forwards do."""

    def __init__(self, out=5, function=None):
        super().__init__()
        self.first, self.act, self.last, self.function = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, out), function

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x if self.function is None else self.function(x)


class Make:
    def __init__(self, out, last=()):
        self.out, self.last = out, last

    def __call__(self):
        return net(*copy.deepcopy(self.last), out=self.out)


def by_hand(output, target):
    return -(target * output.log()).sum(1).mean()


def clamped(output, target):
    return -(target * output.clamp(1e-7).log()).sum(1).mean()


def keras(output, target):
    chances = (output / output.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return functional.nll_loss(chances.log(), target)


def keras_of_rows(output, target):
    return keras(output, target.argmax(1))


def clamped_bce(output, target):
    p = output.clamp(1e-7, 1 - 1e-7)
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean()


def divergence(output, target):
    wanted, given = target.clamp(1e-7, 1), output.clamp(1e-7, 1)
    return (wanted * (wanted / given).log()).sum(1).mean()


def kl(output, target):
    return functional.kl_div(output, target, reduction="batchmean")


def poisson(output, target):
    return functional.poisson_nll_loss(output, target, log_input=False)


def log_difference(output, target):
    return (output.log1p() - target.log1p()).square().mean()


def hinge(output, target):
    return (1 - (2 * target - 1) * output).clamp(min=0).mean()


def angle(output, target):
    return (torch.acos(output.tanh()) - target).square().mean()


def task_with(task, loss, target, out, last=()):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return replace(task, model=Make(out, last), loss=loss, train=lambda: [(x, target)])


def added(task):
    treated = AddOutputActivation().treat_task(task)
    return repr(list(treated.subject.model())[-1])


WANTED = [
    (keras, CLASSES, 5, "Softmax(dim=1)"),
    (keras_of_rows, ONE_HOT, 5, "Softmax(dim=1)"),
    (by_hand, ONE_HOT, 5, "Softmax(dim=1)"),
    (clamped, ONE_HOT, 5, "Softmax(dim=1)"),
    (divergence, ONE_HOT, 5, "Softmax(dim=1)"),
    (clamped_bce, ONE_HOT, 5, "Softmax(dim=1)"),
    (functional.binary_cross_entropy, ONE_HOT, 5, "Softmax(dim=1)"),
    (functional.binary_cross_entropy, MANY_HOT, 5, "Sigmoid()"),
    (functional.binary_cross_entropy, ONES, 1, "Sigmoid()"),
    (clamped_bce, ONES, 1, "Sigmoid()"),
    (clamped_bce, MANY_HOT, 5, "Sigmoid()"),
    (functional.nll_loss, CLASSES, 5, "LogSoftmax(dim=1)"),
    (kl, ONE_HOT, 5, "LogSoftmax(dim=1)"),
    (poisson, COUNTS, 1, "Softplus(beta=1.0, threshold=20.0)"),
    (log_difference, COUNTS, 1, "Softplus(beta=1.0, threshold=20.0)"),
]


@pytest.mark.parametrize(("loss", "target", "out", "wanted"), WANTED)
def test_the_loss_says_which_activation(task, loss, target, out, wanted):
    sick = task_with(task, loss, target, out)
    assert added(sick) == wanted
    model = AddOutputActivation().treat_task(sick).subject.model()
    x, y = next(iter(sick.train()))
    value = loss(model(x), y)
    value.backward()
    assert torch.isfinite(value)
    assert all(bool(weight.grad.any()) for weight in model.parameters())


@pytest.mark.parametrize(
    ("loss", "target", "out"),
    [
        (functional.mse_loss, ONES, 1),
        (functional.mse_loss, ONE_HOT, 5),
        (functional.l1_loss, COUNTS, 1),
        (functional.huber_loss, COUNTS, 1),
        (functional.cross_entropy, CLASSES, 5),
        (functional.cross_entropy, ONE_HOT, 5),
        (functional.multi_margin_loss, CLASSES, 5),
        (functional.binary_cross_entropy_with_logits, ONES, 1),
        (functional.binary_cross_entropy_with_logits, MANY_HOT, 5),
        (functional.poisson_nll_loss, COUNTS, 1),
        (hinge, ONES, 1),
        (hinge, ONE_HOT, 5),
        (angle, ONES, 1),
        (lambda output, target: -(output * (2 * target - 1)).mean(), ONES, 1),
    ],
)
def test_a_loss_that_takes_any_number_is_refused(task, loss, target, out):
    with pytest.raises(TreatmentError, match="takes the output as it is"):
        AddOutputActivation().treat_task(task_with(task, loss, target, out))


@pytest.mark.parametrize(
    ("last", "loss", "target", "out"),
    [
        (nn.Softmax(dim=1), keras, CLASSES, 5),
        (nn.Softmax(dim=1), by_hand, ONE_HOT, 5),
        (nn.Sigmoid(), functional.binary_cross_entropy, ONES, 1),
        (nn.LogSoftmax(dim=1), functional.nll_loss, CLASSES, 5),
        (nn.Softplus(), poisson, COUNTS, 1),
        (nn.ReLU(), poisson, COUNTS, 1),
        (nn.Tanh(), functional.binary_cross_entropy, ONES, 1),
    ],
)
def test_an_output_with_an_activation_is_refused(task, last, loss, target, out):
    with pytest.raises(TreatmentError, match="output"):
        AddOutputActivation().treat_task(task_with(task, loss, target, out, (last,)))


def scaled(x):
    return (torch.tanh(x) + 1) / 2


def softmax_by_hand(x):
    return x.exp() / x.exp().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "loss", "target"),
    [(scaled, clamped_bce, MANY_HOT), (softmax_by_hand, keras, CLASSES), (torch.sigmoid, clamped_bce, MANY_HOT)],
)
def test_an_output_that_a_formula_holds_in_range_is_refused(task, function, loss, target):
    sick = replace(task_with(task, loss, target, 5), model=lambda: Custom(function=function))
    with pytest.raises(TreatmentError, match="in the range of the loss"):
        AddOutputActivation().treat_task(sick)


def test_a_layer_whose_output_is_in_range_by_chance_gets_its_activation(task):
    def make():
        model = net(out=1)
        nn.init.constant_(model[2].bias, 0.5)
        nn.init.normal_(model[2].weight, std=0.01)
        return model

    sick = replace(task_with(task, functional.binary_cross_entropy, ONES, 1), model=make)
    assert added(sick) == "Sigmoid()"


@pytest.mark.parametrize("kind", [tuple, dict])
def test_an_output_that_is_not_one_tensor_is_refused(task, kind):
    wrap = {tuple: lambda x: (x, x), dict: lambda x: {"logits": x}}[kind]
    sick = replace(task_with(task, keras, CLASSES, 5), model=lambda: Custom(function=wrap))
    with pytest.raises(TreatmentError, match=f"an output of {kind.__name__}"):
        AddOutputActivation().treat_task(sick)


def test_a_model_without_a_task_needs_to_be_told():
    with pytest.raises(TreatmentError, match="no loss, want to="):
        AddOutputActivation().treat(net())


def test_a_softmax_over_one_unit_is_refused():
    with pytest.raises(TreatmentError, match=r"shape \(4, 1\)"):
        AddOutputActivation(to="softmax").treat(net(out=1), batch_input=torch.randn(4, 6))


@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 1), ((4, 7, 3), -1), ((2, 3, 8, 8), 1)])
def test_the_classes_are_where_they_are_by_custom(shape, dim):
    model = nn.Sequential(nn.Conv2d(3, 3, 1) if len(shape) == 4 else nn.Linear(3, 3))
    x = torch.randn(shape)
    treated = AddOutputActivation(to="softmax").treat(model, batch_input=x)
    assert torch.equal(treated.subject(x), torch.softmax(model(x), dim))


def test_the_target_says_where_the_classes_are(task):
    x, words = torch.randn(4, 7, 6), torch.arange(28).reshape(4, 7) % 5

    def each_word(output, target):
        return -(output.gather(-1, target[..., None]) + 1e-9).log().mean()

    sick = replace(task_with(task, each_word, words, 5), train=lambda: [(x, words)])
    assert added(sick) == "Softmax(dim=-1)"


@pytest.mark.parametrize(
    ("to", "function"),
    [
        ("softmax", lambda x: torch.softmax(x, 1)),
        ("log_softmax", lambda x: torch.log_softmax(x, 1)),
        ("sigmoid", torch.sigmoid),
        ("softplus", functional.softplus),
    ],
)
def test_a_model_of_its_own_class_gets_it_and_so_does_its_pickled_copy(to, function):
    model, x = Custom(), torch.randn(4, 6)
    treated = AddOutputActivation(to=to).treat(model, batch_input=x)
    assert torch.equal(treated.subject(x), function(model(x)))
    assert torch.equal(pickle.loads(pickle.dumps(treated.subject))(x), function(model(x)))
    assert isinstance(treated.subject, Custom)
    assert list(treated.subject.state_dict()) == list(model.state_dict())
    assert torch.equal(pasted(treated.code, model)(x), function(model(x)))
    with pytest.raises(TreatmentError, match="an output without an activation"):
        AddOutputActivation(to=to).treat(treated.subject, batch_input=x)


def test_an_entry_whose_name_is_taken_is_not_overwritten():
    model, x = nn.Sequential(OrderedDict([("1", nn.Linear(6, 5))])), torch.randn(4, 6)
    treated = AddOutputActivation(to="sigmoid").treat(model, batch_input=x)
    assert torch.equal(treated.subject(x), torch.sigmoid(model(x)))


def test_combined_with_another_it_still_asks_the_loss(task):
    sick = task_with(task, keras, CLASSES, 5)
    model = Combined((AddOutputActivation(), SwapActivation(to="relu"))).treat_task(sick).subject.model()
    assert [type(module).__name__ for module in model] == ["Linear", "ReLU", "Linear", "Softmax"]


def test_with_the_softmax_a_cross_entropy_of_probabilities_learns_what_it_does_not_without(task):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator) + 3 * torch.eye(6)[CLASSES]
    accuracies = []
    for treated in (False, True):
        sick = replace(task_with(task, keras, CLASSES, 5), train=lambda: [(x, CLASSES)])
        sick = AddOutputActivation().treat_task(sick).subject if treated else sick
        torch.manual_seed(1)
        model = sick.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(100):
            optimizer.zero_grad()
            sick.loss(model(x), CLASSES).backward()
            optimizer.step()
        accuracies.append(float((model(x).argmax(1) == CLASSES).float().mean()))
    assert accuracies[1] > 0.9 > accuracies[0] + 0.2
