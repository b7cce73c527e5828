"""What is measured in host memory against float64 recomputation, and against what is measured on a device."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe import _watch, _watch_entries, probe
from evengrad.probe._host_numbers import activation_of, gradient_of, is_finite, is_mask, on_host
from evengrad.probe._parameter_norms import ParameterNorms, norms_of
from evengrad.probe._statistics import (
    ACTIVATION_FIELDS,
    RELATIVE_SLOPES,
    SLOPE_LEFT,
    activation_vector,
    gradient_vector,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLOSE = {"rel": 1e-5, "abs": 1e-300}


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def measured(tensor, unit_dim=-1, nonlinearity=None):
    numbers = activation_of(on_host(tensor), unit_dim=unit_dim % max(tensor.ndim, 1), nonlinearity=nonlinearity)
    return dict(zip(ACTIVATION_FIELDS, numbers, strict=True))


def recomputed(tensor, unit_dim=-1):
    """The same in float64, over what is finite."""
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    values, unit_dim = tensor.double().numpy(), unit_dim % max(tensor.ndim, 1)
    kept = values[np.isfinite(values)].astype(np.longdouble)
    others = tuple(dim for dim in range(values.ndim) if dim != unit_dim)
    return {
        "output_finite": float(kept.size == values.size),
        "activation_rms": float(np.sqrt(np.square(kept).mean())) if kept.size else 0.0,
        "activation_mean": float(kept.mean()) if kept.size else 0.0,
        "activation_absmax": float(np.abs(kept).max(initial=0.0)),
        "zero_frac": float((values == 0).mean()),
        "dead_frac": float((values == 0).all(axis=others).mean()),
    }


def assert_right(tensor, unit_dim=-1):
    expected, found = recomputed(tensor, unit_dim), measured(tensor, unit_dim)
    for field, value in expected.items():
        assert found[field] == pytest.approx(value, **CLOSE), field


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1024,), (16, 8), (4, 6, 5, 3), (3, 5000), (2, 3, 4, 5, 6)])
def test_every_number_is_what_float64_gives_in_every_dtype(dtype, shape):
    tensor = drawn(*shape, dtype=dtype) + 0.25
    assert_right(tensor)
    assert_right(tensor.relu())


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(9, *x.shape[1:]),
    "backwards": lambda x: x.flip(0),
    "one number": lambda x: x[0, 0, 0, 0].expand(5, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("unit_dim", [0, 1, -1])
def test_the_order_of_memory_does_not_matter(layout, unit_dim):
    source = drawn(6, 8, 5, 4).relu()
    source[:, 1] = 0
    tensor = LAYOUTS[layout](source)
    assert_right(tensor, unit_dim)


def test_real_and_imaginary_parts_count_alike():
    assert_right(torch.complex(drawn(4, 6), drawn(6, 4).t()))
    assert_right(torch.complex(drawn(4, 6), drawn(6, 4).t()).conj())


def test_ten_million_elements_of_one_sign_are_added_up_to_a_hundred_thousandth():
    tensor = drawn(10_000_019).abs_().add_(0.5)
    expected = recomputed(tensor)
    found = measured(tensor)
    assert found["activation_rms"] == pytest.approx(expected["activation_rms"], rel=1e-6)
    assert found["activation_mean"] == pytest.approx(expected["activation_mean"], rel=1e-9)
    norm = math.sqrt(float(tensor.double().square().sum()))
    assert norms_of([tensor])[0] == pytest.approx(norm, rel=1e-6)
    assert gradient_of(on_host(tensor))[1] == pytest.approx(expected["activation_rms"], rel=1e-6)


def test_a_mean_that_nearly_cancels_is_exact():
    tensor = torch.cat([drawn(100_000), -drawn(100_000), torch.tensor([1e-3])]).view(1, -1)
    assert_right(tensor)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 3e-22, 1e-20, 1e-13, 1e-11, 1e14, 1e16, 1e25, 3e37])
def test_no_square_overflows_or_vanishes(scale):
    tensor = (drawn(3, 700).clamp(-4, 4).double() * scale).float()
    assert_right(tensor)
    expected = float(tensor.double().norm())
    assert norms_of([tensor, drawn(5000) * 0, tensor.repeat(3, 1)]) == pytest.approx(
        [expected, 0.0, expected * 3**0.5], **CLOSE
    )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_square_of_a_double_overflows_or_vanishes(scale):
    tensor = drawn(40, 300, dtype=torch.float64) * scale
    assert measured(tensor)["activation_rms"] == pytest.approx(float((tensor / scale).square().mean().sqrt()) * scale)
    norms = [float((tensor / scale).norm()) * scale, float((tensor[0] / scale).norm()) * scale]
    assert norms_of([tensor, tensor[0]]) == pytest.approx(norms)


def test_one_large_number_among_tiny_ones_is_what_is_left():
    tensor = torch.full((4, 1000), 1e-30)
    tensor[0, 0] = 3e-20
    assert_right(tensor)
    assert norms_of([tensor])[0] == pytest.approx(3e-20, rel=1e-6)


BROKEN = {
    "nan": [math.nan, 1.0, -2.0, 0.0],
    "inf": [math.inf, 1.0, -2.0, 0.0],
    "both": [math.inf, -math.inf, math.nan, 3.0],
    "all": [math.nan, math.inf, math.nan, -math.inf],
    "large and nan": [1e30, -2e30, math.nan, 0.0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_finite_is_told_and_left_out(dtype, kind):
    tensor = torch.tensor(BROKEN[kind]).repeat(3, 50).to(dtype)
    assert_right(tensor)
    assert measured(tensor)["output_finite"] == 0.0
    assert not is_finite(on_host(tensor))
    finite, rms = gradient_of(on_host(tensor))
    assert (finite, rms) == (0.0, pytest.approx(measured(tensor)["activation_rms"]))
    assert not math.isfinite(norms_of([tensor])[0])
    assert not math.isfinite(norms_of([tensor.repeat(100, 1)])[0])


def test_zeros_and_nothing_are_no_error():
    assert_right(torch.zeros(3, 4))
    assert_right(-torch.zeros(3, 4))
    assert math.isnan(measured(torch.zeros(0, 3))["saturated_frac"])
    assert list(measured(torch.zeros(0, 3)).values())[:6] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert gradient_of(on_host(torch.zeros(0, 3))) == (1.0, 0.0)
    assert norms_of([torch.zeros(0), torch.zeros(2), torch.ones(4)]) == [0.0, 0.0, 2.0]
    assert norms_of([]) == []
    assert is_finite(on_host(torch.zeros(0)))


@pytest.mark.parametrize("unit_dim", [0, 1, 2, 3])
def test_a_unit_is_dead_where_it_is_zero_at_every_observation(unit_dim):
    tensor = drawn(4, 5, 6, 7).relu()
    tensor.select(unit_dim, 1).zero_()
    tensor.select(unit_dim, 3).zero_()
    tensor.select(unit_dim, 3).view(-1)[-1:].fill_(math.nan) if unit_dim == 0 else None
    assert_right(tensor, unit_dim)
    assert measured(tensor, unit_dim)["dead_frac"] > 0


@pytest.mark.parametrize("nonlinearity", RELATIVE_SLOPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_is_where_a_twentieth_of_the_slope_is_left(nonlinearity, dtype):
    output = getattr(functional, nonlinearity)(3 * drawn(20, 30)).to(dtype)
    slope = RELATIVE_SLOPES[nonlinearity](output.double())
    expected = (slope < SLOPE_LEFT).double().mean().item()
    assert measured(output, nonlinearity=nonlinearity)["saturated_frac"] == pytest.approx(expected, abs=2 / 600)
    assert 0 < expected < 1


def test_a_mask_is_zeros_and_minus_infinities():
    mask = torch.tensor([0.0, -math.inf, 0.0])
    assert is_mask(on_host(mask))
    assert not is_mask(on_host(-mask))
    assert not is_mask(on_host(mask + 1))
    assert not is_mask(on_host(mask * math.nan))


def test_what_comes_first_is_no_mask():
    model = nn.Sequential(nn.Threshold(-1e9, 0.0), nn.Linear(3, 2))
    batch = torch.tensor([[0.0, -math.inf, 0.0]]), torch.tensor([1])
    layers = probe(model, functional.cross_entropy, batch).readings[0].layers
    assert [layer.input_finite for layer in layers] == [False, True]


class Subclass(torch.Tensor):
    """Somebody's own."""


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        torch.ones(2).as_subclass(Subclass),
        torch.complex(torch.ones(2), torch.ones(2)).conj().imag,
    ],
    ids=["sparse", "meta", "nested", "subclass", "negated view"],
)
def test_what_is_not_plain_memory_is_left_to_torch(tensor):
    assert on_host(tensor) is None


def test_nothing_is_seen_inside_of_a_transform():
    seen = []
    torch.func.vmap(lambda x: (seen.append(on_host(x)), x)[1])(torch.ones(3, 2))
    assert seen == [None]


def test_looking_takes_no_copy_of_what_is_wide_enough():
    tensor = drawn(4, 5).requires_grad_()
    assert on_host(tensor).__array_interface__["data"][0] == tensor.data_ptr()
    assert tensor.requires_grad


@pytest.mark.parametrize("kind", [*BROKEN, "fine", "large", "small", "zeros"])
def test_host_and_device_measure_the_same(kind):
    scales = {"fine": 1.0, "large": 1e30, "small": 1e-30, "zeros": 0.0}
    tensor = torch.tensor(BROKEN[kind]).repeat(3, 2) if kind in BROKEN else drawn(8, 6) * scales[kind]
    there = activation_vector(tensor, unit_dim=1, nonlinearity="tanh").tolist()
    here = activation_of(on_host(tensor), unit_dim=1, nonlinearity="tanh")
    assert here == pytest.approx(there, rel=1e-5, abs=1e-40)
    assert gradient_of(on_host(tensor)) == pytest.approx(gradient_vector(tensor).tolist(), rel=1e-5, abs=1e-40)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.rnn = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.LSTM(5, 6, batch_first=True)
        self.attention, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        h = functional.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        h = self.rnn(h)[0]
        return self.last(torch.tanh(self.attention(h, h, h)[0].mean(1)))


def test_a_reading_is_the_same_where_nothing_is_measured_on_the_host(monkeypatch):
    model, x, y = Mixed(), drawn(9, 2, 6, 6), torch.arange(9) % 3
    here = probe(model, functional.cross_entropy, (x, y))
    for module in (_watch, _watch_entries):
        monkeypatch.setattr(module, "on_host", lambda tensor: None)
    there = probe(model, functional.cross_entropy, (x, y))
    assert [one.name for one in here.readings[0].layers] == [one.name for one in there.readings[0].layers]
    for one, two in zip(here.readings[0].layers, there.readings[0].layers, strict=True):
        for field in one.__slots__:
            expected, found = getattr(two, field), getattr(one, field)
            parts = expected if isinstance(expected, tuple) else (expected,)
            near = bool(parts) and all(isinstance(part, float) for part in parts)
            assert found == (pytest.approx(expected, rel=1e-5, abs=1e-7) if near else expected), (one.name, field)


def test_norms_of_layers_are_of_their_weights_together_and_none_without():
    model = nn.Sequential(nn.Bilinear(3, 4, 5), nn.ReLU(), nn.Linear(5, 2))
    weights, bias = model[2].weight, model[2].bias
    norms = ParameterNorms(model.parameters(), {weights: torch.ones(2, 5), bias: None})
    assert norms.of_weights([]) == (None, None)
    assert norms.of_weights([weights])[0] == pytest.approx(weights.norm().item())
    assert norms.of_weights([weights, model[0].weight])[0] == pytest.approx(
        math.hypot(weights.norm().item(), model[0].weight.norm().item())
    )
    assert norms.of_weights([weights])[1] == pytest.approx(10**0.5)
    assert norms.of_weights([model[0].weight])[1] == 0.0
    assert norms.of_gradients([weights, bias]) == (pytest.approx(10**0.5), 0.0)
    assert ParameterNorms(model.parameters(), None).of_weights([weights])[1] is None


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
@pytest.mark.parametrize("shape", [(0,), (3,), (70, 80), (700, 900)])
def test_norms_of_every_dtype_and_layout_are_what_float64_gives(dtype, shape):
    tensor = drawn(*shape).to(dtype)
    views = [tensor, tensor[::2], tensor.t() if tensor.ndim > 1 else tensor.flip(0)]
    expected = [float((torch.view_as_real(one) if one.is_complex() else one).double().norm()) for one in views]
    assert norms_of(views) == pytest.approx(expected, rel=1e-6)


def test_sparse_gradients_have_norms():
    sparse = torch.sparse_coo_tensor([[0, 0, 2]], [3.0, 1.0, 3.0], (4,), check_invariants=True)
    assert norms_of([sparse, torch.ones(1)]) == [5.0, 1.0]
