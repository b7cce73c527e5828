"""Quantize: levels, bias, error feedback, and where it could go wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from evengrad.clip.transforms import Quantize


def run(transform, grads, targets_of, dtype=torch.float32):
    """Feed gradients of one parameter; return what was sent at each step, and the memory."""
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(grads[0].shape, dtype=dtype))})
    targets = targets_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
    memory, sent = transform.init(targets), []
    for grad in grads:
        model["a"].grad = grad.to(dtype, copy=True)
        with torch.no_grad():
            memory = transform.before_(targets, memory)
        sent.append(model["a"].grad.clone())
    return sent, memory


def grads(count, shape=(40, 25), scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for _ in range(count)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_the_nearest_of_the_levels_is_taken(bits, targets_of):
    (grad,) = grads(1)
    (sent,), _ = run(Quantize(bits=bits, stochastic=False), [grad], targets_of)
    wide = grad.double().numpy()
    levels = np.linspace(-1, 1, 2**bits - 1) * np.abs(wide).max()
    nearest = levels[np.abs(levels[:, None] - wide.ravel()[None, :]).argmin(0)] if bits < 10 else None
    if nearest is not None:
        np.testing.assert_allclose(sent.numpy().ravel(), nearest, rtol=1e-6, atol=1e-9)
    spacing = np.abs(wide).max() / (2 ** (bits - 1) - 1)
    assert np.abs(sent.numpy() - wide).max() <= spacing / 2 * (1 + 1e-3)


def test_one_bit_is_the_sign_times_the_mean_magnitude(targets_of):
    (grad,) = grads(1)
    (sent,), _ = run(Quantize(bits=1, stochastic=False), [grad], targets_of)
    wanted = np.sign(grad.numpy()) * np.abs(grad.double().numpy()).mean()
    np.testing.assert_allclose(sent.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_stochastic_rounding_is_unbiased_and_takes_neighbours_only(bits, targets_of):
    grad, rounds = torch.linspace(-1, 1, 41), 2000
    sent, _ = run(Quantize(bits=bits, error_feedback=False), [grad] * rounds, targets_of)
    stacked = torch.stack(sent).double().numpy()
    spacing = 2.0 if bits == 1 else 1 / (2 ** (bits - 1) - 1)
    assert np.abs(stacked.mean(0) - grad.numpy()).max() < 5 * spacing / 2 / rounds**0.5
    assert np.abs(stacked - grad.double().numpy()).max() < spacing * (1 + 1e-5)
    assert len(np.unique(stacked.round(5))) <= 2**bits


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_what_was_sent_and_the_error_add_up_to_all_gradients(bits, stochastic, dtype, targets_of):
    if stochastic and bits < 3:
        stochastic = False
    all_of_them = [grad.to(dtype) for grad in grads(30)]
    sent, memory = run(Quantize(bits=bits, stochastic=stochastic), all_of_them, targets_of, dtype)
    total = sum(one.double() for one in sent) + memory["error:a"].double()
    wanted = sum(grad.double() for grad in all_of_them)
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-12 if dtype is torch.float64 else 2e-5)
    assert memory["error:a"].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


@pytest.mark.parametrize(("bits", "stochastic"), [(1, False), (2, False), (3, False), (3, True), (8, True)])
def test_the_error_stays_bounded(bits, stochastic, targets_of):
    _, memory = run(Quantize(bits=bits, stochastic=stochastic), grads(300, shape=(50,)), targets_of)
    assert float(memory["error:a"].abs().max()) < 40


def test_without_error_feedback_nothing_is_remembered_but_the_count(targets_of):
    _, memory = run(Quantize(error_feedback=False), grads(3), targets_of)
    assert {name: value.tolist() for name, value in memory.items()} == {"steps": [3]}


@pytest.mark.parametrize(
    "settings", [{}, {"bits": 1, "stochastic": False}, {"bits": 1, "error_feedback": False}], ids=str
)
def test_zeros_stay_zeros_with_no_error(settings, targets_of):
    sent, memory = run(Quantize(**settings), [torch.zeros(5)] * 2, targets_of)
    assert all(one.tolist() == [0.0] * 5 for one in sent)
    assert "error:a" not in memory or memory["error:a"].tolist() == [0.0] * 5


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e37])
def test_very_small_and_very_large_gradients_are_rounded_too(size, targets_of):
    (sent,), memory = run(Quantize(bits=4, stochastic=False), [torch.tensor([size, 0.0, -size])], targets_of)
    np.testing.assert_allclose(sent.numpy(), np.float32([size, 0.0, -size]), rtol=1e-6)
    assert bool(memory["error:a"].isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("settings", [{}, {"bits": 1, "stochastic": False}], ids=str)
def test_a_tensor_that_is_not_finite_passes_and_leaves_the_error(bad, settings, targets_of):
    good = grads(2, shape=(6,))
    broken = good[1].clone()
    broken[2] = bad
    _, before = run(Quantize(**settings), good[:1], targets_of)
    sent, after = run(Quantize(**settings), [good[0], broken], targets_of)
    assert torch.equal(after["error:a"], before["error:a"])
    assert torch.equal(sent[1].isfinite(), broken.isfinite())


def test_an_error_does_not_carry_a_half_precision_gradient_over_the_edge(targets_of):
    grad = torch.tensor([6e4, 6.5e4, 1.0, 4e4], dtype=torch.float16)
    sent, memory = run(Quantize(bits=2, stochastic=False), [grad] * 6, targets_of, torch.float16)
    assert all(bool(one.isfinite().all()) for one in sent)
    assert bool(memory["error:a"].isfinite().all())


def test_draws_depend_on_seed_and_step(targets_of):
    (grad,) = grads(1)
    one, _ = run(Quantize(bits=3, error_feedback=False), [grad, grad], targets_of)
    again, _ = run(Quantize(bits=3, error_feedback=False), [grad, grad], targets_of)
    other, _ = run(Quantize(bits=3, error_feedback=False, seed=1), [grad, grad], targets_of)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])
