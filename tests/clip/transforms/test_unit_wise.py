"""ByUnitWeightNorm, Centralize, MaxNorm and ClampWeights against float64 formulas, optax and torch."""

import numpy as np
import optax
import pytest
import torch
from torch import nn

from evengrad.clip.transforms import ByUnitWeightNorm, Centralize, ClampWeights, MaxNorm
from evengrad.nouns import SettingError


class Conv1D(nn.Module):
    """As in transformers: a linear layer with its weight transposed."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


def by_rows(shape):
    return [np.s_[row : row + 1] for row in range(shape[0])]


def by_columns(shape):
    return [np.s_[:, column] for column in range(shape[1])]


def in_groups(groups):
    def units(shape):
        size = shape[0] // groups
        return [np.s_[g * size : (g + 1) * size, out] for g in range(groups) for out in range(shape[1])]

    return units


def whole(shape):
    return [np.s_[...]]


# What a unit is, said by hand: module, parameter, and the slices of its units.
LAYERS = [
    (lambda: nn.Linear(300, 7), "weight", by_rows),
    (lambda: nn.Linear(3, 7), "bias", whole),
    (lambda: nn.Bilinear(3, 4, 5), "weight", by_rows),
    (lambda: nn.Conv1d(4, 6, 3), "weight", by_rows),
    (lambda: nn.Conv2d(4, 6, 3), "weight", by_rows),
    (lambda: nn.Conv3d(4, 6, 3), "weight", by_rows),
    (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight", by_rows),
    (lambda: nn.Conv2d(4, 4, 3, groups=4), "weight", by_rows),
    (lambda: nn.ConvTranspose1d(4, 6, 3), "weight", by_columns),
    (lambda: nn.ConvTranspose2d(4, 6, 3), "weight", by_columns),
    (lambda: nn.ConvTranspose2d(4, 6, 1), "weight", by_columns),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), "weight", in_groups(2)),
    (lambda: nn.ConvTranspose1d(4, 4, 1, groups=2), "weight", in_groups(2)),
    (lambda: nn.ConvTranspose3d(4, 4, 2, groups=4), "weight", in_groups(4)),
    (lambda: nn.ConvTranspose2d(4, 12, 3, groups=4), "weight", in_groups(4)),
    (lambda: nn.ConvTranspose2d(6, 2, 3, groups=2), "weight", in_groups(2)),
    (lambda: nn.ConvTranspose2d(4, 6, 3), "bias", whole),
    (lambda: nn.Embedding(9, 5), "weight", by_rows),
    (lambda: nn.MultiheadAttention(6, 2), "in_proj_weight", by_rows),
    (lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=3), "k_proj_weight", by_rows),
    (lambda: nn.LSTM(4, 5), "weight_ih_l0", by_rows),
    (lambda: nn.LSTM(4, 5, proj_size=2), "weight_hr_l0", by_rows),
    (lambda: nn.GRU(4, 5), "weight_hh_l0", by_rows),
    (lambda: nn.GRU(4, 5), "bias_hh_l0", whole),
    (lambda: nn.LayerNorm((3, 4)), "weight", whole),
    (lambda: nn.RMSNorm((3, 4)), "weight", whole),
    (lambda: nn.BatchNorm2d(5), "weight", whole),
    (lambda: Conv1D(6, 300), "weight", by_columns),
]
layers = pytest.mark.parametrize(("make", "name", "units"), LAYERS)


def filled(module, name, seed=0):
    """Give one parameter weights and a gradient whose units are of very different sizes, one of each all 0."""
    generator = torch.Generator().manual_seed(seed)
    parameter = dict(module.named_parameters())[name]
    with torch.no_grad():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parameter.mul_(torch.rand(parameter.shape[:1], generator=generator).view(-1, *(1,) * (parameter.dim() - 1)))
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        for tensor, unit in ((parameter, 0), (parameter.grad, 1)):
            tensor[unit] = 0.0
            if tensor.dim() > 1 and tensor.shape[1] > 1:
                tensor[:, unit] = 0.0
        if parameter.dim() > 1:
            sizes = 10 ** torch.linspace(-6, 1, parameter.shape[1], dtype=parameter.dtype)
            parameter.grad *= sizes.view(1, -1, *(1,) * (parameter.dim() - 2))
    return parameter


def agc(weight, grad, units, clip_factor=0.01, eps=0.1):
    """timm's formula (`timm/utils/agc.py`), unit by unit in float64."""
    weight, grad = weight.double().numpy(), grad.double().numpy().copy()
    for unit in units(weight.shape):
        most = max(np.linalg.norm(weight[unit].ravel()), eps) * clip_factor
        norm = np.linalg.norm(grad[unit].ravel())
        if not norm < most:
            grad[unit] *= most / max(norm, 1e-6)
    return grad


@layers
@pytest.mark.parametrize("settings", [{}, {"clip_factor": 0.5, "eps": 0.1}, {"clip_factor": 1e3}], ids=str)
def test_agc_is_timms_formula_on_the_units_of_every_layer(make, name, units, settings, targets_of):
    module = make()
    parameter = filled(module, name)
    weight, wanted = parameter.detach().clone(), agc(parameter.detach(), parameter.grad, units, **settings)
    with torch.no_grad():
        targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False, **settings).before_(targets, {})
    np.testing.assert_allclose(parameter.grad.numpy(), wanted, rtol=1e-6, atol=1e-30)
    assert torch.equal(parameter.detach(), weight)


@pytest.mark.parametrize("axis", [(1,), (1, 2, 3)])
def test_agc_equals_optax(axis, targets_of):
    module = nn.Linear(30, 20) if len(axis) == 1 else nn.Conv2d(5, 6, 3)
    parameter = filled(module, "weight")
    clip = optax.adaptive_grad_clip(0.05, axis=axis)
    weight, grad = parameter.detach().numpy(), parameter.grad.clone().numpy()
    wanted, _ = clip.update(grad, clip.init(weight), weight)
    with torch.no_grad():
        targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
        ByUnitWeightNorm(clip_factor=0.05, eps=1e-3, exclude_head=False).before_(targets, {})
    np.testing.assert_allclose(parameter.grad.numpy(), np.asarray(wanted), rtol=1e-6, atol=1e-30)


def test_agc_measures_many_tensors_of_one_shape_as_it_measures_one(targets_of):
    model = nn.ModuleList([*(nn.Linear(64, 64) for _ in range(300)), nn.Linear(200, 300), nn.ConvTranspose1d(8, 8, 2)])
    wanted = {}
    for number, module in enumerate(model):
        parameter = filled(module, "weight", seed=number)
        if number % 3 == 0:
            parameter.grad *= 1e-9  # nothing to clip here
        units = by_columns if isinstance(module, nn.ConvTranspose1d) else by_rows
        wanted[number] = agc(parameter.detach(), parameter.grad, units)
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    for number, module in enumerate(model):
        np.testing.assert_allclose(module.weight.grad.numpy(), wanted[number], rtol=1e-6, atol=1e-30)


def test_a_unit_within_its_bound_is_not_changed_to_the_bit(targets_of):
    module = nn.Linear(50, 4, bias=False)
    parameter = filled(module, "weight")
    parameter.grad *= torch.tensor([1e-9, 1.0, 1e-9, 1.0]).view(4, 1)
    before = parameter.grad.clone()
    with torch.no_grad():
        targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    changed = (parameter.grad != before).any(1)
    assert changed.tolist() == [False, False, False, True]


def test_zero_weights_may_move_by_eps(targets_of):
    module = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(module.weight)
    module.weight.grad = torch.full((2, 4), 5.0)
    with torch.no_grad():
        targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    assert float(module.weight.grad[0].norm()) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e25])
def test_a_unit_whose_norm_is_not_finite_is_left_alone_and_the_others_are_clipped(bad, targets_of):
    module = nn.Linear(4, 2, bias=False)
    module.weight.grad = torch.full((2, 4), 5.0)
    module.weight.grad[0, 1] = bad
    with torch.no_grad():
        targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    assert str(module.weight.grad[0].tolist()) == str(torch.tensor([5.0, bad, 5.0, 5.0]).tolist())
    assert float(module.weight.grad[1].norm()) < 1.0


def test_half_precision_norms_do_not_overflow(targets_of):
    module = nn.Linear(400, 2, bias=False).half()
    module.weight.grad = torch.full((2, 400), 4e4, dtype=torch.float16)
    with torch.no_grad():
        targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    wanted = 0.01 * float(module.weight.detach()[0].double().norm())
    assert float(module.weight.grad[0].double().norm()) == pytest.approx(wanted, rel=1e-3)


def test_the_head_and_what_is_excluded_are_left_alone(targets_of):
    def changed(**settings):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 9.0)
        with torch.no_grad():
            targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
            ByUnitWeightNorm(**settings).before_(targets, {})
        return {name for name, parameter in model.named_parameters() if float(parameter.grad.max()) < 9.0}

    everything = {f"{number}.{what}" for number in range(3) for what in ("weight", "bias")}
    assert changed(exclude_head=False) == everything
    assert changed() == everything - {"2.weight", "2.bias"}
    assert changed(exclude_head=False, exclude=("*.bias", "0.*")) == {"1.weight", "2.weight"}
    assert changed(exclude=("1.weight",)) == {"0.weight", "0.bias", "1.bias"}


def test_complex_units_count_sizes(targets_of):
    model = nn.ParameterDict({"a": nn.Parameter(torch.tensor([[3 + 4j, 0j], [1j, 1 + 0j]]))})
    model["a"].grad = torch.tensor([[6 + 8j, 0j], [1e-3j, 0j]])
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        ByUnitWeightNorm(clip_factor=0.1, exclude_head=False).before_(targets, {})
    assert model["a"].grad[0].tolist() == pytest.approx([0.3 + 0.4j, 0j])
    assert model["a"].grad[1].tolist() == pytest.approx([1e-3j, 0j])


def test_a_gradient_sparse_in_two_dimensions_is_clipped_by_rows(targets_of):
    dense = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 1e-4, 0.0]])
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(3, 3))})
    model["a"].grad = dense.to_sparse()
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    wanted = agc(torch.ones(3, 3), dense, by_rows)
    np.testing.assert_allclose(model["a"].grad.to_dense().numpy(), wanted, rtol=1e-6)


def test_a_sparse_gradient_of_a_vector_is_one_unit(targets_of):
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(4))})
    dense = torch.tensor([3.0, 0.0, 4.0, 0.0])
    model["a"].grad = dense.to_sparse()
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    np.testing.assert_allclose(model["a"].grad.to_dense().numpy(), agc(torch.ones(4), dense, whole), rtol=1e-6)


def test_tensors_of_one_shape_and_several_dtypes_are_clipped_each_as_it_is(targets_of):
    model = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))
    model[0].to(torch.bfloat16)
    model[3].to(torch.float64)
    for number, module in enumerate(model):
        filled(module, "weight", seed=number)
    wanted = [agc(module.weight.detach(), module.weight.grad, by_rows) for module in model]
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})
    for module, exact, rtol in zip(model, wanted, (1e-2, 1e-6, 1e-6, 1e-12), strict=True):
        np.testing.assert_allclose(module.weight.grad.double().numpy(), exact, rtol=rtol, atol=1e-30)


def test_a_sparse_gradient_of_a_layer_of_columns_is_refused_by_name(targets_of):
    layer = nn.ConvTranspose1d(2, 2, 1, bias=False)
    layer.weight.grad = torch.ones_like(layer.weight).to_sparse()
    targets = targets_of(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    with pytest.raises(SettingError, match="weight: got a sparse gradient, want a dense one for this layer; exclude"):
        ByUnitWeightNorm(exclude_head=False).before_(targets, {})


@layers
def test_centring_takes_the_mean_of_every_unit_and_leaves_vectors_alone(make, name, units, targets_of):
    module = make()
    parameter = filled(module, name)
    wanted = parameter.grad.double().numpy().copy()
    if units is not whole:
        for unit in units(wanted.shape):
            wanted[unit] -= wanted[unit].mean()
    before = parameter.grad.clone()
    with torch.no_grad():
        Centralize().before_(targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0)), {})
    np.testing.assert_allclose(parameter.grad.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert units is not whole or torch.equal(parameter.grad, before)


def test_centring_equals_optax_where_units_are_rows(targets_of):
    for module in (nn.Linear(30, 20), nn.Conv2d(5, 6, 3), nn.Conv1d(4, 4, 3, groups=2)):
        parameter = filled(module, "weight")
        wanted, _ = optax.centralize().update(parameter.grad.clone().numpy(), optax.EmptyState())
        with torch.no_grad():
            Centralize().before_(targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0)), {})
        np.testing.assert_allclose(parameter.grad.numpy(), np.asarray(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_centring_in_half_precision_rounds_once(dtype, targets_of):
    results = []
    grads = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) for shape in ((6, 40), (8, 6, 3))]
    for wanted in (dtype, torch.float32):
        model = nn.ModuleList([nn.Linear(40, 6, bias=False), nn.ConvTranspose1d(8, 6, 3, bias=False)]).to(wanted)
        for module, grad in zip(model, grads, strict=True):
            module.weight.grad = grad.to(wanted, copy=True)
        with torch.no_grad():
            Centralize().before_(targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0)), {})
        results.append([module.weight.grad.to(dtype) for module in model])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_centring_leaves_a_unit_of_one_element_and_what_is_excluded(targets_of):
    model = nn.Sequential(nn.Linear(1, 3), nn.Conv2d(4, 4, 1, groups=4), nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.grad = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0))
    before = [parameter.grad.clone() for parameter in model.parameters()]
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        Centralize(exclude=("2.*",)).before_(targets, {})
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(model.parameters(), before, strict=True))


@layers
def test_max_norm_scales_units_that_are_too_long_and_no_others(make, name, units, targets_of):
    module = make()
    parameter = filled(module, name)
    wanted = parameter.detach().double().numpy().copy()
    long = 0
    if units is not whole:
        for unit in units(wanted.shape):
            norm = np.linalg.norm(wanted[unit].ravel())
            long += norm > 0.1
            wanted[unit] *= min(1.0, 0.1 / max(norm, 1e-9))
    before = parameter.detach().clone()
    targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
    with torch.no_grad():
        MaxNorm(0.1).after_(targets, {})
        np.testing.assert_allclose(parameter.numpy(), wanted, rtol=1e-6)
        once = parameter.clone()
        MaxNorm(0.1).after_(targets, {})
    assert torch.equal(once, parameter)
    assert torch.equal(once, before) == (long == 0)
    assert (long > 0) == (units is not whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_max_norm_a_second_time_changes_nothing(dtype, targets_of):
    module = nn.Linear(700, 200, bias=False, dtype=dtype)
    targets = targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            module.weight.copy_(torch.randn(200, 700, generator=generator))
            MaxNorm(3.0).after_(targets, {})
            once = module.weight.clone()
            MaxNorm(3.0).after_(targets, {})
        assert torch.equal(once, module.weight)
        norms = once.double().norm(dim=1)
        assert float((norms - 3.0).abs().max()) < 3 * max(torch.finfo(dtype).eps, 1e-6)


def test_max_norm_leaves_a_unit_that_is_too_long_by_less_than_its_dtype_resolves(targets_of):
    module = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.015625], [3.03125]]))  # one and two steps of bfloat16 above 3
        MaxNorm(3.0).after_(targets_of(module, torch.optim.SGD(module.parameters(), lr=1.0)), {})
    assert module.weight.view(-1).tolist() == [3.015625, 3.0]


def test_max_norm_leaves_what_is_not_finite_and_what_is_excluded(targets_of):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[float("nan"), 9.0], [3.0, 4.0]]))
        model[1].weight.fill_(9.0)
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        MaxNorm(1.0, exclude=("1.*",)).after_(targets, {})
    assert model[0].weight[0, 1] == 9.0
    assert model[0].weight[1].tolist() == pytest.approx([0.6, 0.8])
    assert bool((model[1].weight == 9.0).all())


def test_weights_are_clamped_elementwise_except_those_excluded(targets_of):
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    wanted = [parameter.detach().clamp(-0.125, 0.125) for parameter in model[0].parameters()]
    last = model[1].weight.detach().clone()
    with torch.no_grad():
        targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        ClampWeights(0.125, exclude=("1.weight",)).after_(targets, {})
    assert all(torch.equal(one, other) for one, other in zip(model[0].parameters(), wanted, strict=True))
    assert torch.equal(model[1].weight, last)
    assert float(model[1].bias.detach().abs().max()) <= 0.125 < float(last.abs().max())


def test_clamping_decides_what_is_not_finite_and_complex(targets_of):
    model = nn.ParameterDict(
        {
            "a": nn.Parameter(torch.tensor([float("inf"), -float("inf"), float("nan"), 0.2])),
            "b": nn.Parameter(torch.tensor([3 - 0.2j])),
        }
    )
    with torch.no_grad():
        ClampWeights(0.5).after_(targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0)), {})
    assert str(model["a"].tolist()) == str(torch.tensor([0.5, -0.5, float("nan"), 0.2]).tolist())
    assert model["b"].tolist() == pytest.approx([0.5 - 0.2j])
