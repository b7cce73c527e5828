"""What is bad inside a model is stopped and named; where nothing is bad nothing changes, to the bit."""

import copy
import logging

import pytest
import torch
from protected_models import (
    INF,
    NAN,
    Autocast,
    BadBackward,
    Checkpointed,
    Convolutions,
    Function,
    Functional,
    Recurrent,
    Shared,
    bad_backward,
    complex_layer,
    encoder,
    hooks,
    sequential,
    train,
    train_protected,
)
from torch import nn

from evengrad.guard import Protection
from evengrad.nouns import NonFiniteError

HEALTHY = {
    "sequential": sequential,
    "functional": lambda: Functional(torch.tanh),
    "encoder": encoder,
    "recurrent": Recurrent,
    "convolutions": Convolutions,
    "checkpointed": lambda: Checkpointed(use_reentrant=False),
    "reentrant": lambda: Checkpointed(use_reentrant=True),
    "autocast": Autocast,
    "shared": Shared,
    "complex": lambda: nn.Sequential(Function(torch.fft.fft), complex_layer(), Function(torch.abs)),
}
BOTH = [("stop", "stop"), ("clamp", "clamp"), ("clamp", "stop"), (None, "clamp"), ("clamp", None)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("forward", "backward"), BOTH)
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_training_is_equal_to_the_bit_and_has_no_events(make, forward, backward, caplog):
    plain = make()
    guarded = copy.deepcopy(plain)
    before = hooks(guarded)
    with (
        caplog.at_level(logging.WARNING, "evengrad.guard"),
        Protection(guarded, forward=forward, backward=backward) as one,
    ):
        assert hooks(guarded) != before
        found = train(guarded)
        assert one.events() == ()
    assert hooks(guarded) == before
    assert caplog.messages == []
    assert all(torch.equal(a, b) for a, b in zip(found, train(plain), strict=True))


FORWARD_FAULTS = {
    "log of 0": (lambda x: (x * 0).log(), "infinite"),
    "division by 0": (lambda x: (x + 1) / (x - x), "infinite"),
    "0 divided by 0": (lambda x: (x - x) / (x - x), "NaN"),
    "square root of what is negative": (lambda x: (-x - 1).sqrt(), "NaN"),
    "overflow": (lambda x: ((x + 1) * 1000).exp(), "infinite"),
}


@pytest.mark.parametrize(("function", "word"), FORWARD_FAULTS.values(), ids=FORWARD_FAULTS)
def test_stop_names_the_module_whose_activation_is_bad_first(function, word):
    with pytest.raises(NonFiniteError, match=rf"^activation of 2 \(Function\): got 20 {word} of 20") as caught:
        train_protected(sequential(function))
    assert str(caught.value) == (
        f"activation of 2 (Function): got 20 {word} of 20 elements, shape (5, 4), float32, want finite numbers; "
        "its inputs are good: this is where it begins"
    )


@pytest.mark.parametrize(("function", "word"), FORWARD_FAULTS.values(), ids=FORWARD_FAULTS)
def test_stop_says_that_an_operation_between_modules_made_it(function, word):
    model = nn.Sequential(nn.Linear(4, 4), Functional(function))
    words = r"^activation of 1.second \(Linear\).*its inputs are bad already, by operations before it \(in 1 or further"
    with pytest.raises(NonFiniteError, match=words):
        train_protected(model)


def test_stop_names_the_module_around_an_operation_at_its_end():
    around = type("Around", (nn.Sequential,), {"forward": lambda self, x: self[0](x) / 0})
    model = nn.Sequential(around(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(NonFiniteError, match=r"^activation of 0 \(Around\).*this is where it begins"):
        train_protected(model)


@pytest.mark.parametrize("make", [sequential, encoder, Recurrent, lambda: Functional(torch.tanh)])
def test_stop_tells_of_a_batch_that_is_not_finite(make):
    x = torch.randn(3, 4)
    x[0, 0] = NAN
    model = make()
    protection = Protection(model)
    with pytest.raises(NonFiniteError, match="the inputs of the model are not finite already"):
        model(x)
    assert [(event.batch_bad, event.inputs_bad, event.calls) for event in protection.events()] == [(True, 1, 1)]


BACKWARD_FAULTS = {
    "square root of 0": lambda x: (x * 0).sqrt(),
    "only the way back": BadBackward.apply,
    "cube root of 0": lambda x: (x * 0).pow(1 / 3),
}


@pytest.mark.parametrize("function", BACKWARD_FAULTS.values(), ids=BACKWARD_FAULTS)
def test_stop_names_where_a_bad_gradient_comes_back_from(function):
    words = r"^gradient at the output of 1 \(ReLU\): got .* of 20 elements, .*; it comes back from 2$"
    with pytest.raises(NonFiniteError, match=words):
        train_protected(sequential(function))


class Doubled(nn.Sequential):
    def forward(self, x):
        return self[0](x) * 2


def both(x):
    return x.sin(), x


def first_of(pair):
    return BadBackward.apply(pair[0])


WAYS_BACK = {
    "functional": (lambda: nn.Sequential(Functional(BadBackward.apply)), "0.first", "operations in 0"),
    "recurrent": (lambda: Recurrent(bad_backward()), "lstm", "operations in the model"),
    "encoder": (lambda: nn.Sequential(encoder(), bad_backward()), "0.2", "1"),
    "views": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), bad_backward()), "0", "2"),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), bad_backward()), "1", "2"),
    "identity": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Identity(), bad_backward()), "0", "2"),
    "composite": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(bad_backward())), "0", "1.0"),
    "around": (lambda: nn.Sequential(nn.Linear(4, 4), Doubled(bad_backward())), "0", "1.0"),
    "changed": (lambda: nn.Sequential(nn.Linear(4, 4), Function(lambda x: x.mul_(0).sqrt_())), "0", "1"),
    "tuple": (lambda: nn.Sequential(nn.Linear(4, 4), Function(both), Function(first_of)), "1", "2"),
}


@pytest.mark.parametrize(("make", "module", "source"), WAYS_BACK.values(), ids=WAYS_BACK)
def test_a_bad_gradient_is_followed_through_views_tuples_and_in_place_operations(make, module, source):
    words = rf"^gradient at the output of {module} \(.*; it comes back from {source}$"
    with pytest.raises(NonFiniteError, match=words):
        train_protected(make(), forward=None)


def test_a_loss_that_gives_back_a_bad_gradient_is_told():
    model = sequential()
    with Protection(model, backward="stop"), pytest.raises(NonFiniteError, match=r"output of 3 .* back from the loss$"):
        (model(torch.randn(2, 4)) * 0).sqrt().sum().backward()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 300.0), (torch.bfloat16, 2e19)])
@pytest.mark.parametrize("action", ["stop", "clamp"])
def test_an_overflow_of_half_precision_is_found_where_it_happens(dtype, size, action):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(size)
    with Protection(model, forward=action) as protection:
        if action == "stop":
            with pytest.raises(NonFiniteError, match=r"of 1 \(Linear\): got 8 infinite of 8 elements, shape \(2, 4\)"):
                model(torch.full((2, 4), size, dtype=dtype))
        else:
            result = model(torch.full((2, 4), size, dtype=dtype))
            assert result.dtype == dtype
            assert (result == torch.finfo(dtype).max).all()
    event = protection.events()[0]
    assert (event.module, event.infinite, event.dtype) == ("1", 8, str(dtype)[6:])


def test_what_a_module_changes_in_place_does_not_count_as_a_bad_input():
    model = nn.Sequential(nn.Linear(4, 4), Function(lambda x: x.div_(0)))
    with pytest.raises(NonFiniteError, match=r"of 1 \(Function\).*its inputs are good"):
        train_protected(model)


def test_what_was_changed_in_place_after_it_was_judged_is_judged_again():
    model = Functional(lambda x: x.div_(0))
    with pytest.raises(NonFiniteError, match=r"of second .*its inputs are bad already, by operations before it"):
        train_protected(model)


def test_an_attention_mask_is_no_bad_input():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x, *, mask):
            return self.attend(x, x, x, attn_mask=mask)[0]

    model, x = Masked(), torch.randn(2, 3, 4)
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    with torch.no_grad():
        model.attend.out_proj.bias[0] = INF
    with Protection(model), pytest.raises(NonFiniteError, match=r"of attend .*its inputs are good"):
        model(x, mask=mask)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_protection_holds_without_gradients_too(mode):
    model = sequential(lambda x: x / 0)
    with Protection(model, forward="clamp") as protection:
        for each in (mode, torch.enable_grad, mode):
            with each():
                assert model(torch.randn(2, 4)).isfinite().all()
    assert protection.events()[0].calls == 3


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("action", ["stop", "clamp"])
def test_a_bad_gradient_in_a_checkpointed_part_is_found(use_reentrant, action):
    model = Checkpointed(use_reentrant=use_reentrant)
    model.block[2] = Function(BadBackward.apply)
    with Protection(model, forward=action, backward=action) as protection:
        if action == "stop":
            with pytest.raises(
                NonFiniteError, match=r"gradient at the output of block.1 \(ReLU\): .*back from block.2"
            ):
                train(model, 1)
        else:
            train(model, 2)
            assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [event.module for event in protection.events()] == ["block.1"]


def test_an_overflow_of_a_half_precision_gradient_tells_of_the_scaler():
    model = nn.Sequential(nn.Linear(2, 2)).half()
    with Protection(model), pytest.raises(NonFiniteError, match="under a GradScaler this is how it finds its scale"):
        (model(torch.ones(1, 2, dtype=torch.float16)).float() * 1e6).sum().backward()
