"""Norms against NumPy in float64, over kinds of gradients."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.measure import Norms, scale_

READS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::equal",
    "aten::_to_copy",
}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in READS, f"{func.name()} reads a value on the host"
        return func(*args, **(kwargs or {}))


def with_grads(*grads):
    parameters = []
    for grad in grads:
        parameter = torch.zeros(3) if grad is None else torch.zeros(grad.shape, dtype=grad.dtype)
        parameter.requires_grad_()
        parameter.grad = grad
        parameters.append(parameter)
    return parameters


def oracle(grad):
    if grad is None:
        return 0.0
    dense = grad.detach().to_dense() if grad.layout is not torch.strided else grad.detach()
    wide = dense.to(torch.complex128 if dense.is_complex() else torch.float64).numpy()
    return float((np.abs(wide) ** 2).sum())


def close(parameters, rel=1e-6):
    squared = Norms(parameters).squared()
    assert squared.dtype == torch.float32
    assert squared.shape == (len(parameters),)
    wanted = [oracle(parameter.grad) for parameter in parameters]
    np.testing.assert_allclose(np.sqrt(squared.double().numpy()), np.sqrt(wanted), rtol=rel, atol=1e-20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("numel", [1, 255, 256, 257, 4096, 4097, 40_000, 3_000_000])
def test_the_norm_of_one_tensor_is_exact_to_1e_6(dtype, numel):
    generator = torch.Generator().manual_seed(numel)
    signed = torch.randn(numel, generator=generator).to(dtype)
    one_sign = torch.full((numel,), 0.1).to(dtype)
    close(with_grads(signed, one_sign))


@pytest.mark.parametrize("shape", [(64,), (16, 16), (33, 31), (4096,), (4093,), (), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_many_tensors_of_one_shape_measure_as_each_alone(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator, dtype=dtype) * 10.0**k for k in range(-3, 4)]
    close(with_grads(*grads))


kinds = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, None])
shapes = st.sampled_from([(), (0,), (7,), (3, 5), (16, 16), (300,), (5, 4, 3, 2), (1000, 7)])


@given(st.lists(st.tuples(kinds, shapes), min_size=1, max_size=14), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_mix_of_shapes_dtypes_and_absent_gradients_is_exact(mix, seed):
    generator = torch.Generator().manual_seed(seed)
    grads = [None if dtype is None else torch.randn(shape, generator=generator).to(dtype) for dtype, shape in mix]
    close(with_grads(*grads))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(900, -1),
        lambda x: x.view(30, 30, 10, 30).to(memory_format=torch.channels_last),
        lambda x: x.view(30, 30, 300).permute(2, 0, 1),
    ],
)
def test_strides_do_not_matter(view):
    x = torch.randn(900, 300, generator=torch.Generator().manual_seed(1))
    close(with_grads(view(x), *[view(x[:, :40].contiguous()) for _ in range(5)] if view(x).dim() == 2 else []))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_gradient_counts_its_duplicates_once():
    sparse = torch.sparse_coo_tensor([[1, 1, 2]], [[3.0], [1.0], [3.0]], (4, 1))
    squared = Norms(with_grads(sparse, torch.ones(4, 1))).squared()
    assert squared.tolist() == pytest.approx([25.0, 4.0], rel=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_gradient_may_become_sparse_and_dense_again():
    sparse = torch.sparse_coo_tensor([[1, 1, 2]], [[3.0], [1.0], [3.0]], (4, 1))
    parameters = with_grads(*[torch.ones(4, 1) for _ in range(6)])
    norms = Norms(parameters)
    assert norms.squared().tolist() == pytest.approx([4.0] * 6, rel=1e-6)
    parameters[3].grad = sparse
    assert norms.squared().tolist() == pytest.approx([4.0] * 3 + [25.0] + [4.0] * 2, rel=1e-6)
    for parameter in parameters:
        parameter.grad = sparse.clone()
    assert norms.squared().tolist() == pytest.approx([25.0] * 6, rel=1e-6)
    for parameter in parameters:
        parameter.grad = torch.ones(4, 1)
    assert norms.squared().tolist() == pytest.approx([4.0] * 6, rel=1e-6)


def test_the_plan_follows_shapes_dtypes_and_presence():
    parameters = with_grads(*[torch.ones(8) for _ in range(6)])
    norms = Norms(parameters)
    assert norms.squared().tolist() == pytest.approx([8.0] * 6, rel=1e-6)
    parameters[0].grad = None
    parameters[4].grad = None
    assert norms.squared().tolist() == pytest.approx([0.0, 8.0, 8.0, 8.0, 0.0, 8.0], rel=1e-6)
    with warnings.catch_warnings(action="error"):
        for parameter in parameters:
            parameter.grad = None
            parameter.data = torch.zeros(2, 2, dtype=torch.bfloat16)
        assert norms.squared().tolist() == pytest.approx([0.0] * 6, rel=1e-6)
        for parameter in parameters:
            parameter.grad = torch.full((2, 2), 2.0, dtype=torch.bfloat16)
        assert norms.squared().tolist() == pytest.approx([16.0] * 6, rel=1e-6)


def test_bad_elements_spoil_only_their_own_entry():
    grads = [torch.ones(8) for _ in range(6)] + [torch.ones(5000) for _ in range(3)]
    grads[1][3] = float("nan")
    grads[4][0] = float("-inf")
    grads[7][4999] = float("nan")
    squared = Norms(with_grads(*grads)).squared()
    assert torch.isnan(squared).tolist() == [False, True, False, False, False, False, False, True, False]
    assert squared[4] == float("inf")
    assert squared[[0, 2, 8]].tolist() == pytest.approx([8.0, 8.0, 5000.0], rel=1e-6)


def test_finite_elements_that_cannot_be_squared_measure_infinite():
    assert Norms(with_grads(torch.full((4,), 1e20))).squared().tolist() == [float("inf")]
    assert Norms(with_grads(torch.full((4,), 1e20, dtype=torch.float64))).squared().tolist() == [float("inf")]


def test_half_precision_does_not_overflow_in_between():
    close(with_grads(torch.full((4,), 4e4, dtype=torch.float16)))


def test_measuring_leaves_gradients_and_their_graph_alone():
    parameter = torch.ones(3, requires_grad=True)
    (parameter.grad,) = torch.autograd.grad((parameter**3).sum(), parameter, create_graph=True)
    others = with_grads(*[torch.ones(3) for _ in range(4)])
    grad, before = parameter.grad, parameter.grad.detach().clone()
    squared = Norms([parameter, *others]).squared()
    assert squared.tolist() == pytest.approx([27.0, 3.0, 3.0, 3.0, 3.0], rel=1e-6)
    assert not squared.requires_grad
    assert parameter.grad is grad
    assert torch.equal(parameter.grad, before)
    assert grad.requires_grad
    parameter.grad = None  # breaks the cycle that create_graph makes


def test_nothing_is_read_on_the_host():
    grads = [torch.randn(8) for _ in range(6)] + [
        torch.randn(5000),
        torch.randn(70, 70),
        torch.zeros(0),
        torch.ones(()),
    ]
    parameters = with_grads(*grads)
    norms = Norms(parameters)
    norms.squared()
    with NoReads():
        norms.squared()
        scale_([parameter.grad for parameter in parameters], 0.5)


def test_the_guard_against_reads_notices_one():
    with pytest.raises(AssertionError, match="reads a value"), NoReads():
        torch.ones(()).item()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_scaling_multiplies_every_kind_of_gradient():
    sparse = torch.sparse_coo_tensor([[1, 2]], [3.0, 1.0], (4,))
    grads = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16), None, sparse, torch.ones(1, dtype=torch.complex64)]
    scale_(grads, 0.25)
    assert grads[0].tolist() == [0.25] * 3
    assert grads[1].tolist() == [0.25] * 2
    assert grads[3].to_dense().tolist() == [0.0, 0.75, 0.25, 0.0]
    assert grads[4].tolist() == [0.25 + 0j]
