"""What is bad inside a model is stopped or clamped and named; where nothing is bad nothing changes, to the bit."""

import copy
import dataclasses
import logging
import pickle
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from evengrad.guard import Protection
from evengrad.nouns import ModelError, NonFiniteError, SettingError, UnguardedStepWarning

NAN, INF = float("nan"), float("inf")
MOST = torch.finfo(torch.float32).max


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        bad = gradient.clone()
        bad.view(-1)[0] = NAN
        return bad


class Functional(nn.Module):
    """Two layers, and between them an operation that is no module."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 4), nn.Linear(4, 2), between

    def forward(self, x):
        return self.second(self.between(torch.relu(self.first(x))))


class Recurrent(nn.Module):
    def __init__(self, between=None):
        super().__init__()
        self.embed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        self.lstm, self.head = nn.LSTM(6, 5, 2, batch_first=True, dropout=0.2), nn.Linear(5, 2)
        self.between = between or nn.Identity()

    def forward(self, x):
        output, (state, _) = self.lstm(self.embed(x)[:, None].expand(-1, 3, -1))
        return self.head(self.between(output.mean(1) + state[-1]))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)
        self.flat, self.drop, self.last = nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 2)

    def forward(self, x):
        x = self.first(x[:, None, None].expand(-1, 1, 6, -1).contiguous(memory_format=torch.channels_last))
        x = self.relu(self.norm(x)) + x.mean((2, 3), keepdim=True)
        return self.last(self.drop(self.flat(self.pool(x)).mul_(1.5)))


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant):
        super().__init__()
        self.first, self.last, self.use_reentrant = nn.Linear(4, 8), nn.Linear(8, 2), use_reentrant
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 8))

    def forward(self, x):
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.use_reentrant))


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


class Shared(nn.Module):
    """One layer called three times, its result used three times, and a mapping of outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.split = Function(lambda x: {"a": (x, [x.sin()]), "b": x[:, ::2], "n": 3})

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x)) + x
        parts = self.split(x)
        return parts["a"][0].sum(1) + parts["a"][1][0].mean(1) * parts["b"].expand(-1, -1).sum(1)


def encoder(dropout=0.1):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))


def sequential(function=torch.tanh):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), Function(function), nn.Linear(4, 2))


def complex_layer():
    return nn.Linear(4, 2, dtype=torch.complex64)


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


def train(model, steps=4):
    """Train and return everything that could differ."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    losses = []
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4, generator=generator)).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]


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


def hooks(model):
    return [
        (name, key, len(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hook" in key and isinstance(value, dict)
    ]


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


def train_protected(model, **settings):
    with Protection(model, **settings):
        return train(model, 1)


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


def bad_backward():
    return Function(BadBackward.apply)


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


def test_under_autocast_the_dtype_of_the_output_rules():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
    with Protection(model, forward="clamp") as protection, torch.autocast("cpu", torch.float16):
        result = model(torch.ones(1, 2))
    assert result.item() == 65504.0
    assert protection.events()[0].dtype == "float16"


VALUES = torch.tensor([NAN, INF, -INF, 1e4, -1e4, 2.0, -2.0, -0.0, 0.0, 1e-45])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [None, 100.0, 1e9])
def test_clamp_puts_0_for_nan_and_the_bound_for_what_is_above_it(dtype, limit):
    values = VALUES.to(dtype)
    with Protection(model := nn.Identity(), forward="clamp", limit=limit) as protection:
        found = model(values)
    bound = min(limit or INF, torch.finfo(dtype).max)
    wanted = [0.0, bound, -bound, min(1e4, bound), max(-1e4, -bound), *values[5:].double().tolist()]
    rounded = torch.tensor(wanted, dtype=torch.float64).to(dtype)
    assert torch.equal(found, rounded)
    assert torch.equal(found.signbit(), rounded.signbit())
    event = protection.events()[0]
    assert (event.nan, event.infinite, event.too_large, event.calls) == (1, 2, 2 if limit == 100.0 else 0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_bound_itself_is_good(dtype):
    largest = torch.finfo(dtype).max
    with Protection(model := nn.Identity(), forward="clamp") as protection:
        model(torch.tensor([largest, -largest], dtype=dtype))
    assert protection.events() == ()
    with Protection(model, limit=2.0):
        assert torch.equal(model(torch.tensor([2.0, -2.0])), torch.tensor([2.0, -2.0]))


def test_each_part_of_a_complex_number_is_clamped_by_itself():
    values = torch.tensor([complex(NAN, 1), complex(2, INF), complex(-300, 4), complex(1, 2)])
    with Protection(model := nn.Identity(), forward="clamp", limit=100.0) as protection:
        found = model(values)
        conjugate = model(values.conj())
    wanted = torch.tensor([complex(0, 1), complex(2, 100), complex(-100, 4), complex(1, 2)])
    assert torch.equal(found, wanted)
    assert torch.equal(conjugate, wanted.conj().resolve_conj())
    assert (protection.events()[0].nan, protection.events()[0].infinite, protection.events()[0].too_large) == (2, 2, 2)


@dataclasses.dataclass(frozen=True)
class Output:
    logits: torch.Tensor
    name: str


class Model(OrderedDict):
    """As `transformers.ModelOutput`: an item is an attribute too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


Pair = namedtuple("Pair", ["left", "right"])
BAD = torch.tensor([[NAN, 1.0]])
CONTAINERS = {
    "tuple": (lambda: (BAD, 1), lambda y: y[0]),
    "list": (lambda: [1, [BAD]], lambda y: y[1][0]),
    "named tuple": (lambda: Pair(1, BAD), lambda y: y.right),
    "mapping": (lambda: {"a": {"b": BAD}}, lambda y: y["a"]["b"]),
    "model output": (lambda: Model(a=BAD), lambda y: y.a),
    "dataclass": (lambda: Output(BAD, "x"), lambda y: y.logits),
    "packed": (lambda: pack_padded_sequence(BAD.T[:, None], torch.tensor([2])), lambda y: y.data.T),
}


@pytest.mark.parametrize(("make", "get"), CONTAINERS.values(), ids=CONTAINERS)
def test_tensors_inside_of_containers_are_clamped_and_the_container_is_of_its_kind(make, get):
    given = make()
    with Protection(model := Function(lambda: given), forward="clamp") as protection:
        found = model()
    assert type(found) is type(given)
    assert torch.equal(get(found), torch.tensor([[0.0, 1.0]]))
    assert get(given).isnan().any()  # what the module keeps for itself is not written to
    assert protection.events()[0].nan == 1
    healthy = PackedSequence(torch.ones(1, 1), torch.tensor([1]))
    with Protection(model := Function(lambda: healthy)):
        assert model() is healthy


def test_all_outputs_of_an_lstm_are_protected():
    model = nn.LSTM(4, 4)
    with torch.no_grad():
        model.bias_hh_l0[:4] = NAN
    with Protection(model, forward="clamp") as protection:
        output, (hidden, cell) = model(torch.randn(3, 2, 4))
    assert all(value.isfinite().all() for value in (output, hidden, cell))
    assert protection.events()[0].nan == 3 * 2 * 4 + 2 * 2 * 4


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([2**62]),
        torch.tensor([True]),
        torch.tensor([NAN]).to_sparse(),
        torch.nested.nested_tensor([torch.tensor([NAN])], layout=torch.jagged),
        torch.tensor([NAN]).to(torch.float8_e5m2),
        "text",
        None,
    ],
    ids=["integer", "bool", "sparse", "nested", "8 bits", "text", "nothing"],
)
@pytest.mark.parametrize("action", ["stop", "clamp"])
def test_what_is_not_judged_is_handed_through_as_it_is(value, action):
    with Protection(model := Function(lambda: value), forward=action) as protection:
        assert model() is value
    assert protection.events() == ()


def test_no_gradient_passes_through_a_clamped_activation():
    x = torch.tensor([2.0, 3.0, 500.0], requires_grad=True)
    model = Function(lambda x: x * torch.tensor([1.0, INF, 1.0]))
    with Protection(model, forward="clamp", backward=None, limit=100.0):
        (model(x) * torch.tensor([5.0, 6.0, 7.0])).sum().backward()
    assert torch.equal(x.grad[[0, 2]], torch.tensor([5.0, 0.0]))
    assert x.grad[1].isnan()  # 0 times the infinite derivative of what made the activation


def test_elements_that_share_a_gradient_by_broadcasting_lose_it_together():
    x = torch.tensor([[1.0, 2.0], [1.0, 500.0]], requires_grad=True)
    with Protection(model := Function(lambda x: x * 1), forward="clamp", backward=None, limit=100.0):
        model(x).sum(0).mul(torch.tensor([1.0, 2.0])).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_clamping_both_ways_survives_a_log_of_0():
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Log(), nn.Linear(4, 2))
    with Protection(model, forward="clamp", backward="clamp", limit=100.0) as protection:
        train(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    events = {(event.module, event.direction) for event in protection.events()}
    assert events == {("2", "forward"), ("1", "backward")}


def test_what_is_handed_through_counts_for_the_module_that_made_it():
    model = nn.Sequential(Function(lambda x: x / 0), nn.Identity(), nn.Flatten(), nn.Sequential(nn.Dropout(0.5)).eval())
    with Protection(model, forward="clamp") as protection:
        model(torch.ones(2, 3))
    assert [(event.module, event.infinite, event.calls) for event in protection.events()] == [("0", 6, 1)]


def test_the_calls_of_one_module_are_counted_together():
    model = sequential(lambda x: x / 0)
    with Protection(model, forward="clamp", backward=None) as protection:
        for size in (1, 2, 3):
            model(torch.randn(size, 4))
    (event,) = protection.events()
    assert (event.calls, event.nan + event.infinite, event.shape) == (3, 24, (3, 4))
    assert "in 3 calls, the last of 12 elements, shape (3, 4)" in str(event)


def test_an_event_tells_in_how_many_calls_the_inputs_were_bad_already():
    model = Functional(lambda x: x / 0 if x.shape[0] == 2 else x)
    with Protection(model, forward="clamp") as protection:
        model(torch.ones(1, 4))
        with torch.no_grad():
            model.second.weight.fill_(INF)
        model(torch.ones(1, 4))
        model(torch.ones(2, 4))
    (event,) = protection.events()
    assert (event.module, event.calls, event.inputs_bad) == ("second", 2, 1)
    assert "; in 1 calls its inputs are bad already" in str(event)


def test_an_input_that_a_module_could_do_with_is_not_counted():
    model = Function(lambda x: x.nan_to_num() / (len(x) - 1))
    with Protection(model, forward="clamp") as protection:
        model(torch.full((2,), NAN))
        model(torch.ones(1))
    assert [(event.calls, event.inputs_bad) for event in protection.events()] == [(1, 0)]


@pytest.mark.parametrize(
    ("value", "grad", "bad"),
    [([0.0, -INF], False, 0), ([0.0, -INF], True, 1), ([-INF, -INF], False, 1), ([0.0, INF], False, 1), ([1, -INF], False, 1)],
)  # fmt: skip
def test_only_zeros_and_minus_infinities_without_gradient_are_an_attention_mask(value, grad, bad):
    with Protection(model := Function(lambda x: x * NAN), forward="clamp") as protection:
        model(torch.tensor(value, requires_grad=grad))
    assert protection.events()[0].inputs_bad == bad


def test_a_gradient_whose_elements_share_memory_is_masked_element_by_element():
    class Windows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.arange(1.0, 6.0).unfold(0, 3, 1)

    x = torch.ones(3, 3, requires_grad=True)
    scale = torch.tensor([[1.0, 500.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    with Protection(model := Function(lambda x: x * scale), forward="clamp", backward=None, limit=100.0):
        Windows.apply(model(x)).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 0.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]))


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


def test_a_layout_is_kept():
    channels_last = torch.randn(2, 1, 3, 4).contiguous(memory_format=torch.channels_last)
    plain = torch.randn(3, 4)
    strided = plain[:, 1:], plain[::2, 1], plain[0], plain[0, 0], plain[:0], plain[0, :, None].expand(4, 1)
    with Protection(model := Function(lambda x: x.view_as(x)), forward="clamp"):
        for x in (channels_last, plain, plain.T, plain[:, None].expand(3, 5, 4), *strided):
            found = model(x)
            assert found is not x
            assert found.stride() == x.stride()
            assert torch.equal(found, x)
        assert torch.equal(model(plain.unfold(1, 3, 1)), plain.unfold(1, 3, 1))


GRADIENTS = {
    "a sum": lambda y, w: y.sum(1) * w[:, 0],
    "all summed": lambda y, w: y.sum() * w[0, 0],
    "another layout": lambda y, w: y.transpose(0, 2).contiguous() * w.transpose(0, 2).contiguous(),
    "a part": lambda y, w: torch.cat([y, y.sin()], 2) * torch.cat([w, w], 2),
    "stacked": lambda y, w: torch.stack([y, w, y.sin()], 1) * w[:, None],
}


@pytest.mark.parametrize("function", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize(("forward", "backward"), [("clamp", None), (None, "clamp"), ("clamp", "clamp")])
@pytest.mark.parametrize("shape", [(7,), (1, 33, 7), (64, 1, 1), (1,)])
def test_a_gradient_of_any_layout_is_summed_to_the_same_bits(function, forward, backward, shape):
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(64, 33, 7, generator=generator) for _ in range(2))
    weight, strides = torch.zeros(shape, requires_grad=True), []
    model = nn.Sequential(Function(lambda x: x + weight))

    def gradient():
        y = model(x)
        y.register_hook(lambda gradient: strides.append(gradient.stride()))
        return torch.autograd.grad(function(y * 1, w).sum(), weight)[0]

    plain = gradient()
    with Protection(model, forward=forward, backward=backward):
        assert torch.equal(gradient(), plain)
    assert strides[0] == strides[1]


class Syncs(TorchDispatchMode):
    """Count the operations that read a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
        }
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [encoder, Convolutions, Shared, lambda: sequential(lambda x: x / 0)])
def test_clamping_never_waits_for_the_device(make):
    model, x = make(), torch.randn(5, 4)
    with Syncs() as without:
        model(x).sum().backward()
    with Protection(model, forward="clamp", backward="clamp", limit=1e6), Syncs() as syncs:
        model(x).sum().backward()
    assert syncs.count == without.count
    with Protection(model, forward=None), Syncs() as syncs:
        model(x).sum()
    assert syncs.count == without.count


def test_the_model_is_left_as_found_and_a_second_detach_does_nothing():
    model = encoder()
    before = hooks(model)
    protection = Protection(model)
    assert repr(protection) == "Protection(forward='stop', backward='stop'; 13 modules)"
    train(model, 1)
    protection.detach()
    protection.detach()
    assert hooks(model) == before
    assert repr(protection).endswith("detached)")
    with pytest.raises(ValueError, match="on purpose"), Protection(model):
        raise ValueError("on purpose")
    assert hooks(model) == before


def test_after_detaching_gradients_flow_back_untouched():
    model = sequential(BadBackward.apply)
    torch.nn.init.constant_(model[0].bias, 5.0)
    protection = Protection(model, forward="clamp")
    loss = model(torch.randn(2, 4)).sum()
    protection.detach()
    loss.backward()
    assert model[0].weight.grad.isnan().any()
    assert protection.events() == ()


def test_what_was_clamped_is_logged_once_for_each_module_and_direction(caplog):
    model = sequential(lambda x: x / 0)
    with caplog.at_level(logging.WARNING, "evengrad.guard"), Protection(model, forward="clamp") as protection:
        model(torch.randn(2, 4))
        assert caplog.messages == []
        protection.events()
        assert len(caplog.messages) == 1
        model(torch.randn(2, 4))
        protection.events()
    assert caplog.messages[0].startswith("activation of 2 (Function): ")
    assert len(caplog.messages) == 1
    with caplog.at_level(logging.WARNING, "evengrad.guard"), Protection(model, forward="clamp"):
        model(torch.randn(2, 4))
    assert len(caplog.messages) == 2


def test_what_has_raised_is_not_logged_as_well(caplog):
    with pytest.raises(NonFiniteError, match="activation of 2"):
        train_protected(sequential(lambda x: x / 0))
    assert caplog.messages == []


def test_what_happened_is_logged_also_when_an_error_ends_the_run(caplog):
    model = sequential(lambda x: x / 0)
    model.append(Function(lambda x: x.reshape(7, 7)))
    with pytest.raises(RuntimeError, match="shape"), Protection(model, forward="clamp"):
        model(torch.randn(2, 4))
    assert len(caplog.messages) == 1


def test_only_the_chosen_modules_and_all_inside_them_are_protected():
    model = nn.Sequential(sequential(lambda x: x / 0), sequential(lambda x: x / 0), nn.Linear(2, 2))
    model[1][0] = nn.Linear(2, 4)
    for chosen in (["1", "2"], [model[1], model[2]]):
        with Protection(model, forward="clamp", backward=None, modules=chosen) as protection:
            model(torch.ones(2, 4))
        assert {event.module for event in protection.events()} == {"1.0", "1.2"}


def test_two_protections_with_limits_of_their_own_work_together():
    model = sequential(lambda x: x * 0 + 50.0)
    ahead = Protection(model, forward="clamp", backward=None, limit=10.0)
    back = Protection(model, forward=None, backward="clamp", limit=0.5)
    (model(torch.ones(1, 4)) * 3).sum().backward()
    assert {event.direction for event in ahead.events()} == {"forward"}
    assert {(event.module, event.too_large) for event in back.events()} == {("3", 2)}
    assert torch.equal(model[3].bias.grad, torch.full((2,), 0.5))


def test_a_parametrized_weight_is_no_activation_and_a_returned_parameter_gets_no_hook():
    model = Recurrent()
    with Protection(model, forward="clamp", limit=1e-9) as protection:
        model(torch.randn(2, 4))
    assert not [event.module for event in protection.events() if "parametrizations" in event.module]
    weight = nn.Parameter(torch.ones(2))
    with Protection(module := Function(lambda: weight), forward=None):
        assert module() is weight
    assert not weight._backward_hooks


def test_a_second_derivative_passes_through():
    model, x = sequential(), torch.randn(2, 4, requires_grad=True)

    def penalty():
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), model[0].weight)[0]

    plain = penalty()
    with Protection(model, forward="clamp", backward="clamp"):
        assert torch.equal(penalty(), plain)


def test_copies_of_a_protected_model_are_not_protected_and_it_can_be_pickled():
    model = nn.Sequential(nn.Linear(2, 1))
    with Protection(model):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other(torch.full((1, 2), NAN)).isnan().all()
        with pytest.raises(NonFiniteError, match="activation of 0"):
            model(torch.full((1, 2), NAN))


def test_a_model_that_was_never_called_is_warned_of():
    protection = Protection(nn.Linear(1, 1))
    with pytest.warns(UnguardedStepWarning, match="compiled before has no hooks"):
        protection.detach()
    with pytest.warns(UnguardedStepWarning, match="no module of the model was called"), Protection(nn.Linear(1, 1)):
        pass


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch itself, at any graph break
def test_a_model_that_is_compiled_after_its_protection_is_protected():
    model = sequential(lambda x: x / x.detach().clamp_min(0))
    try:
        with Protection(model, forward="clamp") as protection:
            fast = torch.compile(model, backend="eager")
            for _ in range(3):
                assert fast(torch.zeros(2, 4)).isfinite().all()
            assert protection.events()[0].module == "2"
            assert protection.events()[0].calls == 3
    finally:
        torch.compiler.reset()


def test_a_compiled_model_is_refused_and_one_compiled_before_is_warned_of():
    model = nn.Sequential(nn.Linear(4, 2))
    fast = torch.compile(model, backend="eager")
    x = torch.full((2, 4), NAN)
    try:
        fast(x)
        with pytest.raises(ModelError, match=r"got a compiled one, .* compile after Protection\(model\)"):
            Protection(fast)
        with pytest.warns(UnguardedStepWarning, match="compiled before has no hooks"), Protection(model):
            fast(x)
    finally:
        torch.compiler.reset()
    model.compile(backend="eager")
    with pytest.raises(ModelError, match="a compiled one"):
        Protection(nn.Sequential(model))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"forward": "raise"}, """forward: got 'raise', want "stop", "clamp" or None"""),
        ({"backward": True}, "backward: got True"),
        ({"forward": None, "backward": None}, "forward and backward: got None for both"),
        ({"limit": 0}, "limit: got 0, want a positive number or None"),
        ({"limit": NAN}, "limit: got nan"),
        ({"limit": INF}, "limit: got inf"),
        ({"limit": "1"}, "limit: got '1'"),
        ({"limit": True}, "limit: got True"),
        ({"modules": ["1", "7"]}, "modules: got '7', want names of modules of the model"),
        ({"modules": [nn.Linear(1, 1)]}, "modules: got Linear"),
        ({"modules": [3]}, "modules: got int"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_nothing_is_attached(settings, words):
    model = sequential()
    before = hooks(model)
    with pytest.raises(SettingError, match=words):
        Protection(model, **settings)
    assert hooks(model) == before


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match=r"model: got int, want a torch.nn.Module"):
        Protection(3)


def test_an_overflow_of_a_half_precision_gradient_tells_of_the_scaler():
    model = nn.Sequential(nn.Linear(2, 2)).half()
    with Protection(model), pytest.raises(NonFiniteError, match="under a GradScaler this is how it finds its scale"):
        (model(torch.ones(1, 2, dtype=torch.float16)).float() * 1e6).sum().backward()
