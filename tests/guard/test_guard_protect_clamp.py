"""What is clamped, to what, how it is counted, and that layouts stay as they are."""

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from protected_models import INF, NAN, Function, Functional, sequential, train
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from evengrad.guard import Protection


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


MASKS = [
    ([0.0, -INF], False, 0),
    ([0.0, -INF], True, 1),
    ([-INF, -INF], False, 1),
    ([0.0, INF], False, 1),
    ([1.0, -INF], False, 1),
]


@pytest.mark.parametrize(("value", "grad", "bad"), MASKS)
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
