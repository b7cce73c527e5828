"""A wrong backward is told from a right one, and from one that is meant to be something else."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe import probe


class Made(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()


class Right(Made):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class WithoutSquare(Made):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh())


class Negated(Made):
    @staticmethod
    def backward(ctx, gradient):
        return -gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Zero(Made):
    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x, factor):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.factor + 1), None


class Product(torch.autograd.Function):
    """Wrong for its second argument only."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.t(), x.t() @ gradient / len(x)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Fine(torch.autograd.Function):
    """Jumps so often that some jumps lie within each step."""

    @staticmethod
    def forward(ctx, x):
        return (x * 1e4).round() / 1e4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (1 + 10 * ctx.saved_tensors[0].abs()) ** 2


class Clamped(torch.autograd.Function):
    """Passes gradients through where it is flat, as quantised networks do."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(-0.3, 0.3)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.mul_(2)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class SingleOnly(Negated):
    @staticmethod
    def forward(ctx, x):
        assert x.dtype == torch.float32
        return Made.forward(ctx, x)


class Net(nn.Module):
    def __init__(self, function, *, more=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.function, self.more = function, more

    def forward(self, x):
        x = functional.dropout(self.function(self.norm(self.first(x))), 0.2, self.training)
        x = self.last(x)
        return x if self.more is None else self.more(x)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(16, 6), torch.randint(0, 3, (16,))


def errors(model, batch, loss=functional.cross_entropy):
    return probe(model, loss, batch, check_backward=True).readings[0].ends.wrong_backward


def is_between(ratio, low, high):
    return low < ratio < high


@pytest.mark.parametrize("function", [WithoutSquare, Negated, Zero], ids=lambda kind: kind.__name__)
def test_a_wrong_backward_is_found_with_the_parameters_before_it(function, batch):
    found = errors(Net(function.apply), batch)
    assert {name for name, _, _ in found} == {function.__name__}
    places = {parameter for _, parameter, _ in found}
    assert places <= {"first.weight", "first.bias", "norm.weight", "norm.bias"}
    assert {"first.weight", "norm.weight"} <= places
    if function is Negated:
        assert all(ratio == pytest.approx(-1.0, rel=1e-4) for _, _, ratio in found)
    if function is Zero:
        assert all(ratio == 0.0 for _, _, ratio in found)


def test_a_function_in_the_new_style_is_checked_too(batch):
    found = errors(Net(lambda x: NewStyle.apply(x, 2.0).tanh()), batch)
    assert found
    assert all((name, ratio) == ("NewStyle", pytest.approx(1.5, rel=1e-4)) for name, _, ratio in found)


def test_only_the_argument_whose_gradient_is_wrong_is_named(batch):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.before, self.weight = nn.Linear(6, 5), nn.Parameter(torch.randn(5, 3))

        def forward(self, x):
            return Product.apply(self.before(x), self.weight)

    assert errors(Own(), batch) == (("Product", "weight", pytest.approx(1 / 16, rel=1e-4)),)


@pytest.mark.parametrize(
    "function", [Right, Rounded, Fine, Spike, Clamped, Reversed, InPlace], ids=lambda kind: kind.__name__
)
def test_a_right_backward_and_one_that_is_off_on_purpose_are_left_in_peace(function, batch):
    assert errors(Net(function.apply), batch) == ()
    assert errors(Net(lambda x: x * 0.5 + function.apply(x * 1.0)), batch) == ()  # a shortcut around it


def test_beside_one_that_is_off_on_purpose_a_wrong_one_is_named_without_parameters(batch):
    found = errors(Net(Negated.apply, more=Reversed.apply), batch)
    assert found == (("Negated", "", pytest.approx(-1.0, rel=1e-4)),)


def test_what_does_not_run_in_float64_is_not_judged(batch):
    assert errors(Net(SingleOnly.apply), batch) == ()


def test_nobody_is_checked_without_being_asked_to(batch):
    reading = probe(Net(Negated.apply), functional.cross_entropy, batch).readings[0]
    assert reading.ends.wrong_backward == ()
    assert reading.ends.loss_ops == ("NllLoss", "LogSoftmax")


def test_model_function_and_random_numbers_are_as_they_were_after_a_check(batch):
    model, forward = Net(Negated.apply), Negated.__dict__.get("forward")
    before = [value.clone() for value in model.state_dict().values()]
    state = torch.get_rng_state()
    assert errors(model, batch)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())
    assert Negated.__dict__.get("forward") is forward
    assert Made.forward is Negated.forward
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert all(value.grad is None for value in model.parameters())
