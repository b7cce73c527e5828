"""What a weight sampler reads is what float64 makes of the same tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from evengrad.probe import WeightSampler

CLOSE = {"rel": 1e-5, "abs": 1e-30}


def line(tensor):
    """All real numbers of a tensor, in float64."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.double().numpy()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def spread(x, ndim=None):
    if (x.ndim if ndim is None else ndim) < 2 or len(x) < 2:
        return None
    x = x.reshape(len(x), -1)
    whole = np.linalg.norm(x)
    return float(np.linalg.norm(x - x.mean(0)) / whole) if whole else 0.0


def expected(before, grad, after, tiny):
    w, g, a = line(before), line(grad), line(after)
    moving = g != 0
    return {
        "numel": before.numel(),
        "weight_rms": rms(w),
        "weight_mean": w.mean(),
        "grad_rms": rms(g),
        "grad_absmax": np.abs(g).max(),
        "grad_zero_frac": np.mean(g == 0),
        "grad_tiny_frac": np.mean((g != 0) & (np.abs(g) < tiny)),
        "update_ratio": np.linalg.norm(a - w) / np.linalg.norm(w) if np.linalg.norm(w) else None,
        "still_frac": np.mean((a == w)[moving]) if moving.any() else None,
        "row_spread": spread(w, before.ndim),
        "grad_row_spread": spread(g, before.ndim),
    }


def is_close(reading, wanted, **tolerance):
    for name, value in wanted.items():
        found = getattr(reading, name)
        if value is None:
            assert found is None, name
        elif name == "weight_mean":
            assert found == pytest.approx(value, abs=1e-5 * wanted["weight_rms"]), name
        else:
            assert found == pytest.approx(value, **(tolerance or CLOSE)), name
    return True


def stepped(parameters, grads, *, by=None, change=None, model=None, sampler=None):
    """Put gradients in place, take a step by hand, and give the readings."""
    sampler = sampler or WeightSampler(parameters, model)
    for parameter, grad in zip(parameters.values(), grads, strict=True):
        parameter.grad = grad
    sampler.before(by)
    if change is not None:
        with torch.no_grad():
            for parameter in parameters.values():
                change(parameter)
        sampler.after()
    return sampler.readings(sampler.packed().tolist())


SHAPES = [(), (1,), (7,), (4096,), (5, 3), (64, 64), (1, 9), (3, 4, 2), (8, 3, 3, 3), (2, 2048), (1000, 4), (5, 1, 2)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-30, 1e15], ids="{:g}".format)
def test_readings_of_whole_tensors_are_those_of_float64(dtype, size):
    if dtype == torch.float16 and not 1e-7 < size < 1e4:
        pytest.skip("float16 has no such numbers")
    torch.manual_seed(0)
    shapes = SHAPES if not dtype.is_complex else [shape for shape in SHAPES if 2 * np.prod(shape) <= 4096]
    drawn = torch.complex128 if dtype.is_complex else torch.float64
    start = [(torch.randn(shape, dtype=drawn) * size).to(dtype) for shape in shapes]
    grads = [torch.randn_like(tensor) * (torch.rand(tensor.shape) > 0.3) for tensor in start]
    parameters = {str(number): nn.Parameter(tensor.clone()) for number, tensor in enumerate(start)}

    def change(parameter):
        parameter -= parameter.grad * (size * 0.01) * (torch.rand(parameter.shape) > 0.5)

    readings = stepped(parameters, grads, change=change)
    tiny = torch.finfo(dtype).tiny
    for reading, before, grad, after in zip(readings, start, grads, parameters.values(), strict=True):
        assert is_close(reading, expected(before, grad, after, tiny))
        assert reading.moved_ratio == 0.0
        assert reading.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradients_below_the_normal_numbers_of_their_dtype_are_tiny(dtype):
    smallest = torch.finfo(dtype).tiny
    grad = torch.tensor([0.0, 1.0, smallest, smallest / 2, -smallest / 4, 2 * smallest], dtype=dtype)
    (reading,) = stepped({"w": nn.Parameter(torch.ones(6, dtype=dtype))}, [grad])
    assert reading.grad_tiny_frac == pytest.approx(2 / 6)
    assert reading.grad_zero_frac == pytest.approx(1 / 6)


def test_a_scale_divides_the_gradient_but_not_the_judgement_of_what_is_tiny():
    smallest = torch.finfo(torch.float16).tiny
    grad = torch.tensor([smallest / 2, 4.0], dtype=torch.float16)
    (reading,) = stepped({"w": nn.Parameter(torch.ones(2).half())}, [grad], by=torch.tensor(1024.0))
    assert reading.grad_absmax == pytest.approx(4 / 1024)
    assert reading.grad_rms == pytest.approx(np.sqrt(np.mean(np.square([smallest / 2, 4.0]))) / 1024)
    assert reading.grad_tiny_frac == 0.5


@pytest.mark.parametrize("shape", [(300, 200), (64, 9, 3, 3), (5000,), (3, 70_000), (70_000, 3), (4097, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_of_large_tensors_a_sample_is_within_a_few_percent(shape, turned):
    torch.manual_seed(0)
    start = torch.randn(shape) + torch.randn(shape[-1:])
    if turned and len(shape) == 4:
        start = start.contiguous(memory_format=torch.channels_last)
    elif turned:
        start = start.t().contiguous().t() if len(shape) == 2 else start
    grad = torch.randn(shape) * (torch.rand(shape) > 0.25)
    parameter = nn.Parameter(start.clone(memory_format=torch.preserve_format))

    def change(parameter):
        parameter -= 0.1 * grad * (torch.rand(shape) > 0.5)

    (reading,) = stepped({"w": parameter}, [grad], change=change)
    wanted = expected(start, grad, parameter, 0.0)
    wanted.pop("weight_mean")
    assert wanted.pop("grad_absmax") >= reading.grad_absmax > 2
    if len(shape) == 2 and shape[1] == 1:
        assert reading.row_spread is None  # nobody said that these are units
        wanted.pop("row_spread"), wanted.pop("grad_row_spread")
    assert is_close(reading, wanted, rel=0.1)


def test_what_was_still_is_told_of_the_same_elements_in_whatever_memory_the_gradient_lies():
    torch.manual_seed(0)
    grad = torch.randn(200, 100) * (torch.rand(200, 100) > 0.5)
    for weight, gradient in [
        (torch.zeros(200, 100), grad.t().contiguous().t()),
        (torch.zeros(100, 200).t(), grad),
        (torch.zeros(200, 200)[:, ::2], grad),
        (torch.zeros(200, 100), grad[:, :1].expand(200, 100)),
    ]:
        moved = gradient != 0
        parameter = nn.Parameter(weight + 1)

        def change(parameter, moved=moved):
            parameter += moved

        (reading,) = stepped({"w": parameter}, [gradient], change=change)
        assert reading.still_frac == 0.0  # exactly those with a gradient moved


def test_identical_rows_have_a_spread_of_exactly_zero_and_a_small_difference_is_seen():
    torch.manual_seed(0)
    for shape in [(8, 5), (300, 1000), (16, 3, 7, 7)]:
        row = torch.randn(1, *shape[1:]) * 3.7
        same = row.repeat(shape[0], *[1] * (len(shape) - 1))
        apart = same * (1 + 1e-4 * torch.randn(shape))
        parameters = {"same": nn.Parameter(same), "apart": nn.Parameter(apart), "zero": nn.Parameter(same * 0)}
        found = stepped(parameters, [same.clone(), apart.clone(), torch.zeros(shape)])
        assert [one.row_spread for one in found if one.name != "apart"] == [0.0, 0.0]
        assert [one.grad_row_spread for one in found if one.name != "apart"] == [0.0, 0.0]
        assert found[1].row_spread == pytest.approx(spread(line(apart)), rel=0.1)
        assert found[1].grad_row_spread == pytest.approx(spread(line(apart)), rel=0.1)


def test_units_of_transposed_convolutions_and_inputs_of_embeddings_are_known_from_the_model():
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), nn.Embedding(7, 5), nn.Linear(1, 9), nn.Conv2d(4, 8, 3)
    )
    readings = {one.name: one for one in read(model)}
    assert [readings[name].fan_in for name in ("0.weight", "1.weight", "2.weight", "3.weight", "3.bias")] == [
        6 * 9 // 2,
        0,
        1,
        4 * 9,
        0,
    ]
    weight = model[0].weight.transpose(0, 1)
    assert readings["0.weight"].row_spread == pytest.approx(spread(line(weight)), rel=1e-5)
    assert readings["2.weight"].row_spread == pytest.approx(spread(line(model[2].weight)), rel=1e-5)
    assert readings["3.bias"].row_spread is None


def read(model):
    sampler = WeightSampler(dict(model.named_parameters()), model)
    sampler.before()
    return sampler.readings(sampler.packed().tolist())


def test_a_tied_embedding_is_the_output_layer_that_it_is_too():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    (reading,) = read(model)
    assert (reading.name, reading.fan_in) == ("embed.weight", 3)


def test_a_parameter_that_is_given_twice_is_read_under_its_first_name():
    weight = nn.Parameter(torch.ones(3))
    assert [one.name for one in stepped({"a": weight, "b": weight}, [None, None])] == ["a"]


def test_without_a_gradient_and_without_a_step_nothing_is_made_up():
    found = stepped({"w": nn.Parameter(torch.ones(3, 2))}, [None])[0]
    nothing = ("grad_rms", "grad_absmax", "grad_zero_frac", "grad_tiny_frac", "grad_row_spread")
    assert [getattr(found, name) for name in nothing] == [None] * 5
    assert (found.update_ratio, found.still_frac) == (None, None)
    assert found.weight_rms == pytest.approx(1.0)
    (found,) = stepped({"w": nn.Parameter(torch.ones(3))}, [torch.ones(3)])
    assert (found.update_ratio, found.still_frac) == (None, None)


def test_what_a_step_did_is_none_for_weights_of_norm_zero_and_for_gradients_of_zero():
    (zero, still) = stepped(
        {"zero": nn.Parameter(torch.zeros(3)), "still": nn.Parameter(torch.ones(3))},
        [torch.ones(3), torch.zeros(3)],
        change=lambda parameter: parameter.add_(1.0),
    )
    assert (zero.update_ratio, zero.moved_ratio, zero.still_frac) == (None, None, 0.0)
    assert (still.update_ratio, still.still_frac) == (1.0, None)


def test_an_update_below_the_resolution_of_bfloat16_is_still():
    weight = nn.Parameter(torch.ones(10).bfloat16())
    grad = torch.ones(10).bfloat16()
    step = torch.cat([torch.full((7,), 1e-4), torch.full((3,), 0.5)]).bfloat16()
    (found,) = stepped({"w": weight}, [grad], change=lambda parameter: parameter.sub_(step))
    assert found.still_frac == pytest.approx(0.7)
    assert found.update_ratio == pytest.approx(np.sqrt(3 * 0.25 / 10))


def test_moved_ratio_is_the_way_from_the_first_sampled_step():
    weight = nn.Parameter(torch.full((4,), 2.0))
    sampler = WeightSampler({"w": weight})
    moved = []
    for _ in range(3):
        (reading,) = stepped({"w": weight}, [None], change=lambda parameter: parameter.add_(1.0), sampler=sampler)
        moved.append(reading.moved_ratio)
    assert moved == pytest.approx([0.0, 0.5, 1.0])


def test_numbers_that_are_not_finite_do_not_spoil_those_that_are():
    weight = torch.tensor([3.0, float("nan"), -4.0, float("inf")])
    grad = torch.tensor([float("-inf"), 1.0, float("nan"), -7.0])
    (found,) = stepped({"w": nn.Parameter(weight)}, [grad], change=lambda parameter: parameter.mul_(2))
    assert found.weight_rms == pytest.approx(np.sqrt(12.5))
    assert found.weight_mean == pytest.approx(-0.5)
    assert (found.grad_rms, found.grad_absmax) == (pytest.approx(5.0), 7.0)
    assert found.update_ratio == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [20, 3000])
def test_a_sparse_gradient_is_read_as_the_dense_one_that_it_stands_for(rows):
    torch.manual_seed(0)
    layer = nn.Embedding(rows, 4, sparse=True)
    layer(torch.tensor([1, 5, 5, 7, 19])).square().sum().backward()
    assert layer.weight.grad.is_sparse
    (found,) = read(layer)
    grad = line(layer.weight.grad)
    assert found.grad_rms == pytest.approx(rms(grad), rel=1e-5)
    assert found.grad_absmax == pytest.approx(np.abs(grad).max(), rel=1e-6)
    assert found.grad_zero_frac == pytest.approx(np.mean(grad == 0))
    assert (found.grad_row_spread is None) == (rows > 1024)


def test_what_cannot_be_looked_at_has_its_name_and_nothing_else():
    class Sharded(nn.Parameter):
        pass

    parameters = {
        "sharded": Sharded(torch.ones(3)),
        "empty": nn.Parameter(torch.zeros(0, 3)),
        "whole": nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False),
        "lazy": nn.LazyLinear(3).weight,
        "meta": nn.Parameter(torch.ones(3, device="meta")),
        "plain": nn.Parameter(torch.ones(3)),
    }
    found = stepped(parameters, [None] * 6, change=lambda parameter: None)
    assert [one.name for one in found] == list(parameters)
    assert [one.weight_rms for one in found] == pytest.approx([0.0] * 5 + [1.0])
    assert {one.update_ratio for one in found[:5]} == {None}
    assert stepped({"empty": parameters["empty"]}, [None]) == ()


def test_gradients_can_be_given_that_are_not_in_grad():
    weight = nn.Parameter(torch.ones(3))
    sampler = WeightSampler({"w": weight})
    sampler.before(gradients={weight: torch.full((3,), 2.0)})
    (found,) = sampler.readings(sampler.packed().tolist())
    assert (found.grad_rms, weight.grad) == (pytest.approx(2.0), None)


def test_parameters_that_change_dtype_or_shape_are_read_as_they_are_now_and_old_numbers_are_of_no_use():
    layer = nn.Linear(4, 3)
    sampler = WeightSampler(dict(layer.named_parameters()))
    sampler.before()
    old = sampler.packed().tolist()
    layer.double()
    layer.weight.data = torch.full((6, 5), 2.0, dtype=torch.float64)
    sampler.before()
    found = sampler.readings(sampler.packed().tolist())
    assert found[0].weight_rms == pytest.approx(2.0)
    assert [one.dtype for one in found] == ["float64", "float64"]
    assert len(old) != len(sampler.packed()) or sampler.readings(old)
    assert sampler.readings([]) == ()


def test_readings_of_earlier_numbers_do_not_depend_on_what_was_sampled_since():
    weight = nn.Parameter(torch.ones(3))
    sampler = WeightSampler({"w": weight})
    first = stepped({"w": weight}, [torch.ones(3)], change=lambda one: one.add_(1), sampler=sampler)
    sampler.before()
    sampler.after()
    numbers = sampler.packed().tolist()
    weight.grad = None
    sampler.before()
    assert sampler.readings(numbers)[0].grad_rms == pytest.approx(1.0)
    assert sampler.readings(numbers)[0].update_ratio == 0.0
    assert first[0].update_ratio == 1.0
