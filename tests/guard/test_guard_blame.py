"""Who is blamed for a planted fault, and that nobody is for a healthy training."""

import copy
import pickle

import pytest
import torch
from protected_models import Function, Functional, hooks
from torch import nn

from evengrad.guard._blame import Blame


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def bad_backward():
    return Function(BadBackward.apply)


class Recurrent(nn.Module):
    def __init__(self, between=None):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)
        self.between = between or nn.Identity()

    def forward(self, x):
        x = self.embed(x)[:, None].expand(-1, 3, -1)
        return self.head(self.between(self.lstm(x)[0][:, -1]))


def encoder():
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        nn.Linear(8, 2),
    )


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def run(model, x, loss=lambda y: y.float().square().mean()):
    loss(model(x)).backward()


def verdict(model, x=None, **settings):
    blame = Blame(model, [name for name, _ in model.named_parameters()])
    blame.arm()
    run(model, torch.randn(3, 4) if x is None else x, **settings)
    blame.disarm()
    return blame.verdict()


def bad_names(model):
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]


def sequential(function):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Function(function), nn.Linear(4, 2))


MADE_FORWARD = {
    "log of 0": lambda x: (x * 0).log(),
    "division by 0": lambda x: x / (x - x),
    "0 divided by 0": lambda x: (x - x) / (x - x),
    "square root of what is negative": lambda x: (-x - 1).sqrt(),
    "exponential": lambda x: ((x + 1) * 1000).exp(),
}


@pytest.mark.parametrize("function", MADE_FORWARD.values(), ids=MADE_FORWARD)
def test_the_module_whose_output_is_not_finite_though_its_input_is_is_blamed(function):
    culprit = verdict(sequential(function))
    assert (culprit.module, culprit.kind, culprit.where) == ("2", "Function", "forward")
    assert str(culprit) == "2 (Function): its output is not finite, its inputs are"


@pytest.mark.parametrize("function", MADE_FORWARD.values(), ids=MADE_FORWARD)
def test_an_operation_between_modules_is_blamed_on_the_module_around_it(function):
    culprit = verdict(nn.Sequential(nn.Linear(4, 4), Functional(function)))
    assert (culprit.module, culprit.kind, culprit.where) == ("1", "Functional", "forward")
    assert culprit.sentence.startswith("1 (Functional): an operation in it, before 1.second,")


def test_an_operation_further_out_is_blamed_on_the_module_that_it_is_in():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Linear(4, 4), nn.Sequential(nn.Sequential(nn.Linear(4, 4)))

        def forward(self, x):
            return self.block(self.first(x) / 0)

    culprit = verdict(Outer())
    assert (culprit.module, culprit.kind, culprit.where) == ("", "Outer", "forward")
    assert "the model (Outer): an operation in it, before block," in culprit.sentence


def test_an_operation_at_the_end_of_a_module_is_blamed_on_that_module():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x) / 0

    culprit = verdict(nn.Sequential(Ends(), nn.Linear(4, 2)))
    assert (culprit.module, culprit.kind, culprit.where) == ("0", "Ends", "forward")


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 300.0), (torch.bfloat16, 2e19)])
def test_an_overflow_is_blamed_on_the_layer_that_overflows(dtype, size):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).to(dtype)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(size)
    culprit = verdict(model, torch.full((3, 4), size, dtype=dtype))
    assert (culprit.module, culprit.where) == ("1", "forward")


MODELS = {
    "sequential": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "encoder": encoder,
    "recurrent": Recurrent,
    "functional": lambda: Functional(torch.tanh),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_batch_that_is_not_finite_is_blamed_itself(make, value):
    x = torch.randn(3, 4)
    x[1, 2] = value
    culprit = verdict(make(), x)
    assert (culprit.module, culprit.where) == ("", "input")
    assert culprit.sentence == "the batch: an input of the model is not finite"


def test_a_batch_with_gaps_that_the_model_fills_is_not_blamed_for_a_later_fault():
    model = nn.Sequential(Function(torch.nan_to_num), *sequential(lambda x: x / 0))
    culprit = verdict(model, torch.full((3, 4), float("nan")))
    assert (culprit.module, culprit.where) == ("3", "forward")


@pytest.mark.parametrize(
    ("make", "name", "module"),
    [
        (MODELS["sequential"], "2.weight", "2"),
        (MODELS["sequential"], "0.bias", "0"),
        (encoder, "1.self_attn.in_proj_weight", "1.self_attn"),
        (encoder, "1.self_attn.out_proj.bias", "1.self_attn"),
        (encoder, "1.linear2.weight", "1.linear2"),
        (Recurrent, "lstm.weight_hh_l0", "lstm"),
        (MODELS["functional"], "second.weight", "second"),
    ],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_is_blamed_by_name(make, name, module, value):
    model = make()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    culprit = verdict(model)
    assert (culprit.module, culprit.where) == (module, "weights")
    assert culprit.sentence.endswith(f"is not finite itself: {name}")
    assert Blame(model, []).weights_at_fault() == (name,)


def test_a_buffer_is_at_fault_too_but_a_mask_is_none():
    model = nn.BatchNorm1d(4).eval()
    model.register_buffer("mask", torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf")))
    assert Blame(model, []).weights_at_fault() == ()
    model.running_var[0] = float("inf")
    model.mask[0, 0] = float("inf")
    assert Blame(model, []).weights_at_fault() == ("running_var", "mask")


def test_a_square_root_at_0_is_blamed_for_the_way_back():
    culprit = verdict(sequential(lambda x: (x * 0).sqrt()))
    assert (culprit.module, culprit.where) == ("2", "backward")
    assert culprit.sentence == "2 (Function): the gradient that leaves it is not finite, the one that arrives is"


ONLY_BACK = {
    "sequential": (lambda: sequential(BadBackward.apply), "2"),
    "functional": (lambda: nn.Sequential(Functional(BadBackward.apply)), "0"),
    "recurrent": (lambda: Recurrent(bad_backward()), "between"),
    "encoder": (lambda: nn.Sequential(encoder(), bad_backward(), nn.Linear(2, 1)), "1"),
    "nested": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Identity(), bad_backward())), "1.1"),
    "views": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), bad_backward()), "3"),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), bad_backward(), nn.ReLU()), "2"),
    "identity": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Identity(), bad_backward(), nn.Identity()), "2"),
}


@pytest.mark.parametrize(("make", "module"), ONLY_BACK.values(), ids=ONLY_BACK)
def test_a_fault_that_only_the_way_back_has_is_blamed_on_where_it_begins(make, module):
    culprit = verdict(make())
    assert (culprit.module, culprit.where) == (module, "backward")
    assert "(or " not in culprit.sentence


def test_a_loss_is_blamed_when_the_gradient_that_it_gives_is_not_finite():
    culprit = verdict(MODELS["sequential"](), loss=lambda y: (y * 0).sqrt().sum())
    assert (culprit.module, culprit.where) == ("", "backward")
    assert culprit.sentence.startswith("the loss:")


def test_the_first_of_several_faults_in_the_order_of_the_calls_is_blamed():
    model = nn.Sequential(
        nn.Linear(4, 4), Function(lambda x: x / 0), nn.Linear(4, 4), Function(lambda x: x * 1e30 * 1e30)
    )
    assert verdict(model).module == "1"


def test_a_module_called_twice_is_blamed_for_the_call_that_went_wrong():
    shared = nn.Linear(4, 4)
    with torch.no_grad():
        shared.weight.fill_(1e20)
    culprit = verdict(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2)))
    assert (culprit.module, culprit.where) == ("0", "forward")


def test_the_bad_one_of_several_micro_batches_is_found():
    model = sequential(lambda x: x.log1p())
    blame = Blame(model, [])
    blame.arm()
    for value in (1.0, float("nan"), 1.0):
        run(model, torch.full((2, 4), value))
    assert blame.verdict().where == "input"


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_nobody_is_blamed_in_a_healthy_training(make):
    model = make()
    blame = Blame(model, [name for name, _ in model.named_parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    blame.arm()
    for _ in range(5):
        optimizer.zero_grad()
        run(model, torch.randn(3, 4))
        optimizer.step()
    assert blame.verdict() is None
    assert blame.weights_at_fault() == ()


def test_an_attention_mask_is_no_bad_input():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.after = Function(lambda x: x / 0)

        def forward(self, x, mask):
            return self.after(self.attend(x, x, x, attn_mask=mask)[0])

    model = Masked()
    blame = Blame(model, [])
    blame.arm()
    model(torch.randn(2, 3, 4), nn.Transformer.generate_square_subsequent_mask(3)).sum().backward()
    assert (blame.verdict().module, blame.verdict().where) == ("after", "forward")


def test_nothing_is_attached_before_arming_and_after_disarming():
    model = encoder()
    before = hooks(model)
    blame = Blame(model, [])
    assert hooks(model) == before
    assert not blame.armed
    blame.arm()
    blame.arm()
    assert blame.armed
    assert hooks(model) != before
    blame.disarm()
    blame.disarm()
    assert hooks(model) == before
    assert not blame.armed


def test_what_an_earlier_arming_saw_is_forgotten():
    model = sequential(lambda x: x / x.detach().sum())
    blame = Blame(model, [])
    blame.arm()
    run(model, torch.zeros(2, 4) / 0)
    assert blame.verdict() is not None
    blame.arm()
    assert blame.verdict() is None


def test_a_backward_after_disarming_is_not_seen():
    model = sequential(BadBackward.apply)
    blame = Blame(model, [])
    blame.arm()
    loss = model(torch.randn(3, 4)).sum()
    blame.disarm()
    loss.backward()
    assert blame.verdict() is None


def test_a_forward_that_raised_does_not_disturb_the_next():
    model = sequential(lambda x: x.reshape(3, 4).mul(2))
    blame = Blame(model, [])
    blame.arm()
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.randn(2, 4))
    run(model, torch.full((3, 4), float("nan")))
    assert blame.verdict().where == "input"


def test_an_armed_model_gives_the_same_loss_and_gradients_to_the_bit():
    model, x = encoder(), torch.randn(3, 5, 4)
    other = copy.deepcopy(model)
    Blame(model, []).arm()
    run(model, x)
    run(other, x)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_armed_model_can_be_copied_and_pickled():
    model = nn.Sequential(nn.Linear(4, 2))
    blame = Blame(model, [])
    blame.arm()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        run(other, torch.full((3, 4), float("nan")))
    assert blame.verdict() is None


HIT = "the first hit on the way back"
GUESSES = {
    "the way back": (lambda: sequential(BadBackward.apply), "0", f"{HIT}; 3 after it is good"),
    "the loss": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), bad_backward()), "1", "its output"),
    "recurrent": (lambda: Recurrent(bad_backward()), "lstm", f"{HIT}; head after it is good"),
    "functional": (lambda: Functional(BadBackward.apply), "first", f"{HIT}; second after it is good"),
}


@pytest.mark.parametrize(("make", "module", "words"), GUESSES.values(), ids=GUESSES)
def test_from_gradients_alone_the_last_bad_layer_is_named(make, module, words):
    model = make()
    run(model, torch.randn(3, 4))
    culprit = Blame(model, [name for name, _ in model.named_parameters()]).from_gradients(bad_names(model))
    assert (culprit.module, culprit.where) == (module, "backward")
    assert words in culprit.sentence


def test_from_gradients_a_good_bias_beside_a_bad_weight_tells_of_the_input():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.zero_()
    x = torch.full((3, 4), float("inf"))
    model[0].weight.grad, model[0].bias.grad = torch.ones(3, 2).T @ x, torch.ones(2)
    model[1].weight.grad = model[1].bias.grad = None
    culprit = Blame(model, [name for name, _ in model.named_parameters()]).from_gradients(["0.weight"])
    assert culprit.module == "0"
    assert "that of its bias is: its input, or the product" in culprit.sentence


def test_from_gradients_a_parameter_that_is_not_the_models_is_named_too():
    culprit = Blame(nn.Linear(1, 1), ["weight", "bias", "optimizer.group0.2"]).from_gradients(["optimizer.group0.2"])
    assert (culprit.module, culprit.kind) == ("optimizer.group0", "no module")
    assert Blame(nn.Linear(1, 1), ["weight", "bias"]).from_gradients(["weight", "bias"]).kind == "Linear"
