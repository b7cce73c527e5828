"""Norms of units against float64 NumPy, and multiplying unit by unit."""

import numpy as np
import pytest
import torch

from evengrad.measure import Cut, scale_units_, unit_norms


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exact(tensor, cut):
    wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy().reshape(cut.sizes)
    return np.sqrt((np.abs(wide) ** 2).sum((1, 3))).ravel()


CUTS = [
    ((6, 40), Cut((6, 1, 1, 40))),
    ((6, 1000), Cut((6, 1, 1, 1000))),
    ((3, 70000), Cut((3, 1, 1, 70000))),
    ((6, 4, 3, 3), Cut((6, 1, 1, 36))),
    ((40, 6), Cut((1, 40, 6, 1))),
    ((3000, 300), Cut((1, 3000, 300, 1))),
    ((40, 6, 5), Cut((1, 40, 6, 5))),
    ((8, 3, 5), Cut((4, 2, 3, 5))),
    ((8, 3, 1), Cut((4, 2, 3, 1))),
    ((8, 3), Cut((8, 1, 3, 1))),
    ((8, 3, 5), Cut((8, 1, 3, 5))),
    ((8, 1, 3, 3), Cut((4, 2, 1, 9))),
    ((3, 4), Cut((1, 1, 1, 12))),
    ((), Cut((1, 1, 1, 1))),
    ((70001,), Cut((1, 1, 1, 70001))),
]


@pytest.mark.parametrize(("shape", "cut"), CUTS, ids=str)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_norms_are_those_of_float64(shape, cut, count, dtype):
    tensors = [random(*shape, seed=seed, dtype=dtype) for seed in range(count)]
    norms = unit_norms(tensors, cut)
    assert norms.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert norms.shape == (count, cut.units)
    wanted = np.stack([exact(tensor, cut) for tensor in tensors])
    np.testing.assert_allclose(norms.numpy(), wanted, rtol=1e-12 if dtype is torch.float64 else 1e-6)


def test_many_small_tensors_are_measured_in_blocks():
    tensors = [random(64, 64, seed=seed) for seed in range(130)]
    cut = Cut((64, 1, 1, 64))
    np.testing.assert_allclose(unit_norms(tensors, cut).numpy(), [exact(one, cut) for one in tensors], rtol=1e-6)


@pytest.mark.parametrize(
    "cut", [Cut((1, 1, 1, 4_000_000)), Cut((1, 4_000_000, 1, 1)), Cut((1, 1_000_000, 4, 1))], ids=str
)
def test_long_units_of_one_sign_keep_their_accuracy(cut):
    tensor = random(4_000_000).abs()
    np.testing.assert_allclose(unit_norms([tensor], cut)[0].numpy(), exact(tensor, cut), rtol=1e-6)


@pytest.mark.parametrize("length", [255, 256, 257, 511, 512, 513, 4097, 25_000])
def test_any_length_of_row_keeps_its_accuracy(length):
    tensor = torch.full((3, length), 1 / 3)  # a plain float32 sum rounds the same way every time
    cut = Cut((3, 1, 1, length))
    np.testing.assert_allclose(unit_norms([tensor], cut)[0].numpy(), exact(tensor, cut), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "cut",
    [Cut((6, 1, 1, 36)), Cut((1, 6, 4, 9)), Cut((6, 1, 4, 9)), Cut((3, 2, 4, 9)), Cut((1, 1, 1, 216))],
    ids=str,
)
def test_strides_and_complex_numbers_do_not_matter(count, cut):
    plain = [random(6, 4, 3, 3, seed=seed) for seed in range(count)]
    for layout in (
        [one.to(memory_format=torch.channels_last) for one in plain],
        [one.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for one in plain],
        [torch.stack([one, one])[0] for one in plain],
        [torch.stack([one, one], -1)[..., 1] for one in plain],
    ):
        np.testing.assert_allclose(unit_norms(layout, cut).numpy(), [exact(one, cut) for one in plain], rtol=1e-6)
    complexes = [torch.complex(one, 2 * one) for one in plain]
    for tensors in (complexes, [one.conj() for one in complexes]):
        np.testing.assert_allclose(unit_norms(tensors, cut).numpy(), [exact(one, cut) for one in complexes], rtol=1e-6)


def test_what_is_not_finite_stays_in_its_unit():
    tensor = torch.ones(4, 3)
    tensor[0, 0], tensor[1, 1], tensor[2, 2] = float("nan"), float("inf"), 1e25
    (norms,) = unit_norms([tensor], Cut((4, 1, 1, 3)))
    assert norms[0].isnan()
    assert norms[1:3].tolist() == [float("inf")] * 2
    assert float(norms[3]) == pytest.approx(3**0.5)


def test_what_is_empty_has_norms_of_0():
    assert unit_norms([torch.zeros(3, 0)], Cut((3, 1, 1, 0))).tolist() == [[0.0] * 3]
    assert unit_norms([torch.zeros(0, 3)], Cut((0, 1, 1, 3))).shape == (1, 0)
    scale_units_([torch.zeros(3, 0)], torch.ones(1, 3), Cut((3, 1, 1, 0)))
    scale_units_([], torch.ones(0, 3), Cut((3, 1, 1, 2)))


@pytest.mark.parametrize(("shape", "cut"), CUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_every_unit_is_multiplied_by_its_own_number(shape, cut, dtype):
    tensors = [random(*shape, seed=seed).to(dtype) for seed in range(3)]
    scales = random(3, cut.units, seed=9).abs()
    scales[1] = 1.0
    scales[2, 0] = 1.0
    wide = torch.complex128 if dtype.is_complex else torch.float64
    factors = scales.double().view(3, cut.sizes[0], 1, cut.sizes[2], 1)
    wanted = [(one.to(wide).view(cut.sizes) * factor).view(shape) for one, factor in zip(tensors, factors, strict=True)]
    untouched = tensors[1].clone()
    scale_units_(tensors, scales, cut)
    for one, other in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(one.to(wide), other, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=1e-30)
    assert torch.equal(tensors[1], untouched)


def test_a_tensor_whose_numbers_are_all_1_is_not_written_to():
    tensors = [torch.ones(2, 2), torch.ones(2, 2)]
    versions = [tensor._version for tensor in tensors]
    scale_units_(tensors, torch.tensor([[1.0, 1.0], [0.5, 1.0]]), Cut((2, 1, 1, 2)))
    assert [tensor._version - old for tensor, old in zip(tensors, versions, strict=True)] == [0, 1]


def test_parameters_are_measured_and_multiplied_without_autograd():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    assert not unit_norms([parameter] * 2, Cut((2, 1, 1, 2))).requires_grad
    scale_units_([parameter], torch.tensor([[0.5, 1.0]]), Cut((2, 1, 1, 2)))
    assert parameter.tolist() == [[0.5, 0.5], [1.0, 1.0]]
    assert parameter.grad_fn is None


def test_an_accelerator_is_never_waited_for():
    """A meta tensor has no numbers: reading one raises."""
    tensors = [torch.empty(4, 3, device="meta") for _ in range(5)]
    cut = Cut((4, 1, 1, 3))
    norms = unit_norms(tensors, cut)
    scale_units_(tensors, norms, cut)
    assert norms.device.type == "meta"
