"""Weights held after each step: against torch's renorm, singular values in float64, and rounding."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.nouns import TreatmentError
from evengrad.treat import ConstrainWeights

KINDS = ["unit", "tensor", "spectral"]


def mixed():
    model = nn.ModuleDict(
        {
            "dense": nn.Linear(20, 30),
            "conv": nn.Conv2d(6, 8, 3, groups=2),
            "up": nn.ConvTranspose2d(8, 6, 3, groups=2),
            "rnn": nn.LSTM(5, 7),
            "attention": nn.MultiheadAttention(8, 2),
            "norm": nn.LayerNorm(9),
            "embedding": nn.Embedding(10, 4),
            "head": nn.Linear(4, 10),
        }
    )
    model["head"].weight = model["embedding"].weight
    for value in model.parameters():
        value.data.normal_(std=4.0)
    return model


def step(task, **settings):
    return ConstrainWeights(**settings).treat_task(task).subject.after_step


@pytest.fixture
def mixed_task(task):
    return replace(task, model=mixed, optimizer=make_sgd)


def make_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def largest(weight):
    return np.linalg.svd(weight.detach().double().flatten(1).numpy(), compute_uv=False)[0]


def test_units_are_held_as_torchs_renorm_holds_them(mixed_task):
    model = mixed()
    wanted = {
        name: torch.renorm(model.get_parameter(name).detach(), 2, 0, 3.0)
        for name in ("dense.weight", "conv.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "attention.in_proj_weight")
    }
    step(mixed_task)(model)
    for name, weight in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), weight, rtol=1e-5, atol=1e-6)


def test_the_units_of_a_transposed_convolution_are_its_output_channels_in_each_group(mixed_task):
    model = mixed()
    before = model["up"].weight.detach().clone()
    step(mixed_task)(model)
    for group in range(2):
        for channel in range(3):
            rows = slice(4 * group, 4 * group + 4)
            old, new = before[rows, channel], model["up"].weight.detach()[rows, channel]
            torch.testing.assert_close(new, old * min(1.0, 3.0 / old.norm().item()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per", KINDS)
def test_biases_norms_embeddings_and_what_is_tied_to_them_are_left(mixed_task, per):
    model = mixed()
    names = ("dense.bias", "norm.weight", "embedding.weight", "head.weight", "rnn.bias_hh_l0", "attention.in_proj_bias")
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    step(mixed_task, per=per)(model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())
    assert model["head"].weight is model["embedding"].weight


def test_the_frobenius_norm_is_held_to_the_bound_times_the_root_of_the_units(mixed_task):
    model = mixed()
    step(mixed_task, per="tensor", max_norm=0.5)(model)
    assert model["dense"].weight.norm().item() == pytest.approx(0.5 * math.sqrt(30), rel=1e-5)
    assert model["up"].weight.norm().item() == pytest.approx(0.5 * math.sqrt(6), rel=1e-5)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (64, 64), (256, 256), (4, 3, 3, 3), (1, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_the_spectral_norm_is_held_to_a_few_percent_of_the_bound(task, shape, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2])
    nn.init.normal_(layer.weight)
    step(task, per="spectral", max_norm=1.0)(layer)
    assert 0.999 < largest(layer.weight) < 1.06


@pytest.mark.parametrize("per", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_was_brought_back_is_not_changed_again(mixed_task, per, dtype):
    model = mixed().to(dtype)
    hold = step(mixed_task, per=per, max_norm=0.7)
    hold(model)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    hold(model)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())
    assert model["dense"].weight.dtype == dtype


@pytest.mark.parametrize("per", KINDS)
@pytest.mark.parametrize("width", [4, 64, 512])
def test_a_start_drawn_for_relus_is_within_the_default_bound(task, per, width):
    layer = nn.Linear(width, width)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    before = layer.weight.detach().clone()
    step(task, per=per)(layer)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("per", KINDS)
def test_zero_weights_stay_zero_and_broken_ones_stay_broken(task, per):
    zero, broken = nn.Linear(3, 3), nn.Linear(3, 3)
    nn.init.zeros_(zero.weight)
    broken.weight.data[0, 0] = float("nan")
    model = nn.Sequential(zero, broken)
    step(task, per=per)(model)
    assert not model[0].weight.any()
    assert model[1].weight[0, 0].isnan()


@pytest.mark.parametrize("per", KINDS)
def test_the_pasted_code_does_the_same(mixed_task, per):
    model, by_hand = mixed(), mixed()
    by_hand.load_state_dict(model.state_dict())
    treated = ConstrainWeights(per=per, max_norm=0.7).treat_task(mixed_task)
    treated.subject.after_step(model)
    exec(treated.code, {"torch": torch, "nn": nn, "model": by_hand})
    for one, two in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def halve(model):
    for value in model.parameters():
        value.data.div_(2)


def test_what_the_user_does_after_a_step_is_done_first(task):
    model = nn.Linear(4, 4, bias=False)
    model.weight.data.fill_(4.0)  # norm 8 for each unit, and 4 after halving
    treated = ConstrainWeights(max_norm=6.0).treat_task(replace(task, after_step=halve)).subject
    pickle.loads(pickle.dumps(treated)).after_step(model)
    assert torch.equal(model.weight, torch.full((4, 4), 2.0))


def test_a_bound_that_is_there_already_is_refused_and_a_smaller_one_is_not(task):
    treated = ConstrainWeights(max_norm=2.0).treat_task(task).subject
    with pytest.raises(TreatmentError, match=r"a bound of 2\.0 already"):
        ConstrainWeights().treat_task(treated)
    assert ConstrainWeights(max_norm=1.0).treat_task(treated).subject.after_step.first is treated.after_step


def only_embedding():
    return nn.Sequential(nn.Embedding(3, 2))


def test_a_model_without_weights_to_hold_is_refused(task):
    with pytest.raises(TreatmentError, match="without free weights"):
        ConstrainWeights().treat_task(replace(task, model=only_embedding))


def test_parametrised_weights_are_left(task):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    for value in model.parameters():
        value.data.mul_(100)
    before = model[0].weight.detach().clone()
    step(task)(model)
    assert torch.equal(model[0].weight, before)
    assert model[1].weight.norm(dim=1).max() < 3.001


class NoWaiting(TorchDispatchMode):
    """Fails where a number of a tensor is asked for, which waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("per", KINDS)
def test_a_step_does_not_wait_for_the_device(mixed_task, per):
    model, hold = mixed(), step(mixed_task, per=per)
    with NoWaiting():
        hold(model)
    with pytest.raises(AssertionError, match="local_scalar_dense"), NoWaiting():
        model["dense"].weight.sum().item()
