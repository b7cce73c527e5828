"""The way from a loss back to the last layer with weights."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe._loss_graph import MOST_NODES, way_back


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    labels, shares = torch.randint(0, 3, (8,)), torch.softmax(torch.randn(8, 3), 1)
    return model, torch.randn(8, 4), labels, shares


LOSSES = {
    "cross entropy": (lambda o, y, p: functional.cross_entropy(o, y), ("NllLoss", "LogSoftmax"), 3),
    "cross entropy of softmax": (
        lambda o, y, p: functional.cross_entropy(o.softmax(-1), y),
        ("NllLoss", "LogSoftmax", "Softmax"),
        3,
    ),
    "smoothed": (
        lambda o, y, p: functional.cross_entropy(o, y, label_smoothing=0.1),
        ("Add", "Mul", "NllLoss", "LogSoftmax"),
        3,
    ),
    "probabilities": (
        lambda o, y, p: functional.cross_entropy(o, p),
        ("Div", "Neg", "Sum", "Mul", "LogSoftmax"),
        3,
    ),
    "pictures": (
        lambda o, y, p: functional.cross_entropy(o.T.reshape(1, 3, 2, 4), y.view(1, 2, 4)),
        ("NllLoss2D", "LogSoftmax"),
        3,
    ),
    "sum": (lambda o, y, p: functional.nll_loss(o.log_softmax(1), y, reduction="sum"), ("NllLoss", "LogSoftmax"), 3),
    "squared": (lambda o, y, p: functional.mse_loss(o, p), ("MseLoss",), None),
    "absolute": (lambda o, y, p: functional.l1_loss(o, p), ("Mean", "Abs", "Sub"), None),
    "smooth": (lambda o, y, p: functional.smooth_l1_loss(o, p), ("SmoothL1Loss",), None),
    "Huber": (lambda o, y, p: functional.huber_loss(o, p), ("HuberLoss",), None),
    "binary": (
        lambda o, y, p: functional.binary_cross_entropy(o.sigmoid(), p),
        ("BinaryCrossEntropy", "Sigmoid"),
        None,
    ),
    "logits": (
        lambda o, y, p: functional.binary_cross_entropy_with_logits(o.relu(), p),
        ("BinaryCrossEntropyWithLogits", "Relu"),
        None,
    ),
    "by hand": (
        lambda o, y, p: -o.softmax(-1).gather(1, y[:, None]).log().mean(),
        ("Neg", "Mean", "Log", "Softmax"),
        3,
    ),
    "a single output": (
        lambda o, y, p: (o[:, :1].softmax(1) - 1).square().mean(),
        ("Mean", "Pow", "Sub", "Softmax"),
        1,
    ),
    "mixed precision": (lambda o, y, p: functional.cross_entropy(o.half().float(), y), ("NllLoss", "LogSoftmax"), 3),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("known", [True, False])
def test_a_loss_is_known_by_its_operations(parts, name, known):
    model, x, labels, shares = parts
    loss, names, size = LOSSES[name]
    output = model(x)
    way = way_back(loss(output, labels, shares), output if known else None)
    assert (way.names, way.softmax_size, way.cuts) == (names, size, ())
    assert way.loss_ops == (len(names) if known else None)


def test_a_softmax_in_the_model_and_one_in_the_loss_are_one_way(parts):
    model, x, labels, _ = parts
    model.append(nn.Softmax(dim=1))
    output = model(x)
    way = way_back(functional.cross_entropy(output, labels), output)
    assert way.names == ("NllLoss", "LogSoftmax", "Softmax")
    assert way.loss_ops == 2


def test_weights_of_the_loss_end_the_way_too(parts):
    model, x, _, shares = parts
    model.append(nn.Tanh())
    output, scale = model(x), nn.Parameter(torch.ones(8, 3))
    for scaled in (output * scale, torch.cat([output, scale])[:8].view(8, 3)):
        way = way_back(functional.mse_loss(scaled, shares), output)
        assert (way.names, way.loss_ops) == (("MseLoss",), 1)


def test_of_a_sum_of_losses_the_way_is_the_one_to_the_output(parts):
    model, x, labels, _ = parts
    output = model(x)
    weights = sum(parameter.square().sum() for parameter in model.parameters())
    inner = model[0](x).abs().mean()
    for loss in (functional.cross_entropy(output, labels) + 0.1 * weights, weights + 0.5 * _ce(output, labels) + inner):
        assert way_back(loss, output).names[-2:] == ("NllLoss", "LogSoftmax")
    assert way_back(_ce(output, labels) + 0.1 * weights).names == ("Add", "NllLoss", "LogSoftmax")


def _ce(output, labels):
    return functional.cross_entropy(output, labels)


@pytest.mark.parametrize(
    ("last", "size"),
    [
        (nn.Conv1d(4, 3, 1), (2, 4, 5)),
        (nn.LayerNorm(4), (2, 4)),
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.LSTM(4, 3), (5, 4)),
        (nn.MultiheadAttention(4, 2), None),
        (nn.Bilinear(4, 4, 2), None),
        (nn.PReLU(), (3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_way_ends_before_any_layer_with_weights(last, size):
    x = torch.randn(size or (3, 4), requires_grad=True)
    if isinstance(last, nn.MultiheadAttention):
        output = last(x, x, x)[0]
    else:
        output = last(x, x) if isinstance(last, nn.Bilinear) else last(x)
    output = output[0] if isinstance(output, tuple) else output
    assert way_back(output.tanh().mean(), output).names == ("Mean", "Tanh")


class Mark:
    pass


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_an_autograd_function_of_somebodys_own_has_its_name(parts):
    model, x, _, shares = parts
    output = model(x)
    assert way_back(functional.mse_loss(Rounded.apply(output), shares), output).names == ("MseLoss", "Rounded")


def test_where_the_graph_ends_is_told(parts):
    model, x, _, shares = parts
    output = model(x)
    bias = model[2].bias
    assert way_back(functional.mse_loss(output.detach(), shares), output).cuts == ("the loss has no graph",)
    way = way_back(functional.mse_loss(output.detach() * bias, shares), output)
    assert (way.cuts, way.loss_ops) == (("the loss does not depend on the output",), None)
    way = way_back(functional.mse_loss(output.detach() * bias, shares), output.detach())
    assert way.cuts == ("the output has no graph",)


def test_of_a_graph_that_is_too_large_to_be_looked_at_nothing_is_claimed():
    weight = torch.ones(3, requires_grad=True)
    value = weight
    for _ in range(2 * MOST_NODES):
        value = value.sin()
    way = way_back(value.sum(), weight * 2)
    assert way.cuts == ()
    assert 0 < len(way.ops) <= MOST_NODES


def test_the_graph_can_be_read_after_the_backward_and_is_not_kept(parts):
    model, x, labels, _ = parts
    output = model(x)
    loss = _ce(output, labels)
    loss.backward()
    way = way_back(loss, output)
    assert (way.names, way.softmax_size) == (("NllLoss", "LogSoftmax"), 3)
    assert way.ops[0].attribute("_saved_target") is None
    mark = Mark()
    gone = weakref.ref(mark)
    loss.grad_fn.metadata["mark"] = mark
    del way, loss, output, mark
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (functional.mse_loss, (8, 8)),
        (lambda o, y: functional.mse_loss(y, o), (8, 8)),
        (functional.huber_loss, (8, 8)),
        (functional.l1_loss, (8, 8)),
        (lambda o, y: (y - o).square().mean(), (8, 8)),
        (lambda o, y: torch.rsub(o, y).square().mean(), (8, 8)),
        (lambda o, y: functional.mse_loss(o.flatten(), y), (8,)),
        (lambda o, y: functional.mse_loss(o, y[:, None]), (8, 1)),
        (lambda o, y: (o - o.T).square().mean(), None),  # with itself
        (lambda o, y: (o.exp() - y).square().mean(), None),  # not the output itself
        (lambda o, y: o.mean(), None),
    ],
)
def test_the_shape_of_a_comparison_is_that_of_the_numbers_that_are_compared(loss, shape):
    torch.manual_seed(0)
    output = nn.Linear(3, 1)(torch.randn(8, 3))
    assert way_back(loss(output, torch.randn(8)), output).compared_shape == shape
