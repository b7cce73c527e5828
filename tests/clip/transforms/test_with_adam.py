"""SpikeAware and UpdateClip: Adam with them against the published algorithms in float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from evengrad.clip.transforms import SpikeAware, UpdateClip
from evengrad.nouns import OptimizerError

ADAMS = [{"fused": True}, {"foreach": True}, {"foreach": False}]
adams = pytest.mark.parametrize("how", ADAMS, ids=str)


def spiky(steps, shape, seed, every=7, size=100.0):
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, *shape)) * rng.uniform(0.01, 1, shape)
    for step in range(3, steps, every):
        grads[step].ravel()[rng.integers(grads[step].size)] *= size
        if step % 2:
            grads[step] *= size / 5
    return grads


class Run:
    """A parameter, its optimizer and a transform, stepped as a guard would."""

    def __init__(self, transform, start, targets_of, kind=torch.optim.AdamW, dtype=torch.float64, **settings):
        self.model = nn.ParameterDict({"a": nn.Parameter(torch.tensor(start, dtype=dtype))})
        self.weight, self.transform = self.model["a"], transform
        self.optimizer = kind(self.model.parameters(), **settings)
        self.targets = targets_of(self.model, self.optimizer)
        self.memory = transform.init(self.targets)

    @torch.no_grad()
    def step(self, grad):
        group = self.optimizer.param_groups[0]
        rate = group["lr"]
        self.weight.grad = torch.tensor(grad, dtype=self.weight.dtype)
        self.memory = self.transform.before_(self.targets, self.memory)
        used = float(group["lr"])
        self.optimizer.step()
        self.memory = self.transform.after_(self.targets, self.memory)
        group["lr"] = rate
        return used


def spam(weight, grads, *, lr, betas, eps, threshold, reset_steps, warmup_steps, wait_steps, guarded, reset_count):
    """arXiv:2501.06842 and its code, without weight decay; torch's place of epsilon.

    `guarded` leaves elements with v = 0 alone; `reset_count` lets the bias correction start anew.
    """
    mean, squares, count, since = np.zeros_like(weight), np.zeros_like(weight), 0, math.inf
    weights, rates = [], []
    for step, raw in enumerate(grads, start=1):
        grad = raw
        if step % reset_steps == 0:
            mean, squares, since = np.zeros_like(weight), np.zeros_like(weight), 0
            count = 0 if reset_count else count
        if step >= wait_steps and step % reset_steps >= wait_steps:
            spike = grad**2 > threshold * squares
            if guarded:
                spike &= squares > 0
            grad = np.where(spike, np.sign(grad) * np.sqrt(threshold * squares), grad)
        count += 1
        mean = betas[0] * mean + (1 - betas[0]) * grad
        squares = betas[1] * squares + (1 - betas[1]) * grad**2
        death = 0.99 * (1 + math.cos(math.pi * since / warmup_steps)) / 2 if since < warmup_steps else 0.0
        rates.append(lr * (1 - death))
        denominator = np.sqrt(squares / (1 - betas[1] ** count)) + eps
        weight = weight - rates[-1] * mean / (1 - betas[0] ** count) / denominator
        weights.append(weight)
        since += 1
    return weights, rates


SPAM = {"threshold": 60.0, "reset_steps": 15, "warmup_steps": 6, "wait_steps": 4}


@adams
@pytest.mark.parametrize("reset_count", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_with_spike_aware_is_the_published_algorithm(how, reset_count, kind, targets_of):
    start, grads = np.linspace(-1, 1, 12).reshape(3, 4), spiky(50, (3, 4), 0)
    adam = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8}
    wanted, rates = spam(start, grads, **adam, **SPAM, guarded=True, reset_count=reset_count)
    unclipped, _ = spam(start, grads, **adam, **(SPAM | {"threshold": 1e9}), guarded=True, reset_count=reset_count)
    assert np.abs(wanted[-1] - unclipped[-1]).max() > 0.01
    transform = SpikeAware(**SPAM, reset_count=reset_count)
    run = Run(transform, start, targets_of, kind, weight_decay=0.0, **adam, **how)
    for grad, weight, rate in zip(grads, wanted, rates, strict=True):
        assert run.step(grad) == pytest.approx(rate, rel=1e-12)
        np.testing.assert_allclose(run.weight.detach().numpy(), weight, rtol=1e-9, atol=1e-12)


@adams
def test_a_coordinate_that_slept_wakes_up_where_the_published_one_stays_dead(how, targets_of):
    grads = np.ones((60, 2))
    grads[:25, 1] = 0.0
    settings = {"threshold": 5000.0, "reset_steps": 500, "warmup_steps": 150, "wait_steps": 20}
    adam = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    published, _ = spam(np.zeros(2), grads, **adam, **settings, guarded=False, reset_count=False)
    assert published[-1][1] == 0.0
    run = Run(SpikeAware(**settings), [0.0, 0.0], targets_of, weight_decay=0.0, **adam, **how)
    for grad in grads:
        run.step(grad)
    assert run.weight.detach()[1] < -1.0


def test_a_late_parameter_waits_from_its_own_first_gradient(targets_of):
    def last_gradient(late):
        run = Run(SpikeAware(**SPAM | {"reset_steps": 500}), [0.0], targets_of, lr=0.1)
        for _ in range(late):
            run.weight.grad = None
            run.memory = run.transform.before_(run.targets, run.memory)
        grads = []
        for step in range(6):
            run.step([1.0 if step == 0 else 1e3])
            grads.append(float(run.weight.grad))
        return grads

    assert last_gradient(0) == last_gradient(30)
    assert last_gradient(30)[:3] == [1.0, 1e3, 1e3]
    assert last_gradient(30)[3] < 1e3


def test_the_first_step_after_a_reset_is_as_long_as_the_learning_rate_says(targets_of):
    moved = {}
    for reset_count in (True, False):
        transform = SpikeAware(reset_steps=1000, warmup_steps=0, wait_steps=1, reset_count=reset_count)
        run = Run(transform, [0.0], targets_of, lr=0.1, betas=(0.9, 0.999), weight_decay=0.0)
        for _ in range(999):
            run.step([1.0])
        before = float(run.weight.detach())
        run.step([1.0])
        moved[reset_count] = before - float(run.weight.detach())
    assert moved[True] == pytest.approx(0.1, rel=1e-6)
    assert moved[False] > 0.2


def test_amsgrads_largest_moment_is_reset_too(targets_of):
    transform = SpikeAware(reset_steps=5, warmup_steps=0, wait_steps=1, threshold=1e9)
    run = Run(transform, [0.0], targets_of, lr=0.1, amsgrad=True)
    for size in (1.0, 1e3, 1.0, 1.0, 1.0):
        run.step([size])
    assert float(run.optimizer.state[run.weight]["max_exp_avg_sq"]) == pytest.approx(1e-3)


def test_a_learning_rate_that_is_a_tensor_is_not_changed_in_place(targets_of):
    rate = torch.tensor(0.1)
    transform = SpikeAware(reset_steps=3, warmup_steps=2, wait_steps=1)
    run = Run(transform, [0.0], targets_of, lr=rate, foreach=False, dtype=torch.float32)
    used = [run.step([1.0]) for _ in range(5)]
    assert used == pytest.approx([0.1, 0.1, 0.001, 0.1 * (1 - 0.99 / 2), 0.1])
    assert float(rate) == pytest.approx(0.1)


def test_every_group_is_warmed_up_once_whatever_it_holds(targets_of):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [{"params": list(layer.parameters()), "lr": 10.0**-k} for k, layer in enumerate(model)]
    targets = targets_of(model, torch.optim.AdamW(groups))
    transform = SpikeAware(reset_steps=2, warmup_steps=1, wait_steps=1)
    transform.before_(targets, transform.before_(targets, transform.init(targets)))
    rates = [group["lr"] for group in targets[0].optimizer.param_groups]
    assert rates == pytest.approx([0.01, 0.001])


def stable_adamw(weight, grads, *, lr, betas, eps, weight_decay, rms_eps=None):
    """arXiv:2304.13013, algorithm 2: decays that correct themselves, and the update divided by max(1, RMS)."""
    mean, squares = np.zeros_like(weight), np.zeros_like(weight)
    weights, divisors = [], []
    for step, grad in enumerate(grads, start=1):
        decay1, decay2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in betas)
        mean = decay1 * mean + (1 - decay1) * grad
        squares = decay2 * squares + (1 - decay2) * grad**2
        rms = np.sqrt(np.mean(grad**2 / np.maximum(squares, (rms_eps or eps) ** 2)))
        rate = lr / max(1.0, rms)
        weight = weight - rate * weight_decay * weight - rate * mean / (np.sqrt(squares) + eps)
        weights.append(weight)
        divisors.append(max(1.0, rms))
    return weights, divisors


@adams
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.8, 0.999), (0.0, 0.9)])
def test_adamw_with_update_clip_is_stable_adamw(how, weight_decay, betas, targets_of):
    start, grads = np.linspace(-1, 1, 12).reshape(3, 4), spiky(40, (3, 4), 1)
    adam = {"lr": 0.05, "betas": betas, "eps": 1e-6, "weight_decay": weight_decay}
    wanted, divisors = stable_adamw(start, grads, **adam)
    assert sum(divisor > 1.5 for divisor in divisors) >= 3
    run = Run(UpdateClip(), start, targets_of, **adam, **how)
    for grad, weight in zip(grads, wanted, strict=True):
        run.step(grad)
        np.testing.assert_allclose(run.weight.detach().numpy(), weight, rtol=1e-10, atol=1e-12)


@adams
def test_the_update_is_divided_by_the_rms_in_float32(how, targets_of):
    start, grads = np.linspace(-1, 1, 500), spiky(12, (500,), 2)
    adam = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    wanted, _ = stable_adamw(start, grads, **adam)
    run = Run(UpdateClip(), start, targets_of, dtype=torch.float32, **adam, **how)
    for grad, weight in zip(grads, wanted, strict=True):
        run.step(grad)
        np.testing.assert_allclose(run.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)


def test_maximize_and_adam_without_decay_are_taken(targets_of):
    start, grads = np.linspace(-1, 1, 6), spiky(20, (6,), 3, every=4)
    adam = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6}
    wanted, _ = stable_adamw(start, grads, **adam, weight_decay=0.0)
    up = Run(UpdateClip(), start, targets_of, torch.optim.Adam, **adam, maximize=True)
    for grad in grads:
        up.step(-grad)
    np.testing.assert_allclose(up.weight.detach().numpy(), wanted[-1], rtol=1e-10, atol=1e-12)


def test_a_larger_eps_lets_small_gradients_through(targets_of):
    start, grads = np.zeros(4), spiky(12, (4,), 4, every=3) * 1e-5
    adam = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-12, "weight_decay": 0.0}
    wanted, divisors = stable_adamw(start, grads, **adam, rms_eps=1e-2)
    assert divisors == [1.0] * 12
    run = Run(UpdateClip(eps=1e-2), start, targets_of, **adam)
    for grad in grads:
        run.step(grad)
    np.testing.assert_allclose(run.weight.detach().numpy(), wanted[-1], rtol=1e-10, atol=1e-15)


def test_a_tensor_whose_rms_is_at_most_1_is_adamws_to_the_bit(targets_of):
    run, plain = (Run(UpdateClip(eps=1e3), np.linspace(-1, 1, 5), targets_of, dtype=torch.float32) for _ in range(2))
    for grad in spiky(10, (5,), 6):
        run.step(grad)
        plain.weight.grad = torch.tensor(grad, dtype=torch.float32)
        plain.optimizer.step()
    assert torch.equal(run.weight, plain.weight)


def test_on_another_device_the_correction_is_made_without_numbers_of_the_host():
    from evengrad.clip.transforms._adam import correction

    for beta in (0.9, 0.999, 0.99999):
        for step in (1, 2, 1000, 10**6):
            assert float(correction(torch.tensor(float(step)), beta)) == pytest.approx(1 - beta**step, rel=1e-9)
    assert correction(torch.zeros((), device="meta"), 0.9).device.type == "meta"
    assert correction(torch.zeros((), device="meta"), 0.0).device.type == "meta"


@pytest.mark.parametrize(
    ("kind", "settings", "came"),
    [
        (torch.optim.AdamW, {"amsgrad": True}, "AdamW with amsgrad=True"),
        (torch.optim.Adam, {"weight_decay": 0.1}, "Adam with weight decay in the gradient"),
    ],
)
def test_what_update_clip_cannot_be_exact_with_is_refused(kind, settings, came, targets_of):
    with pytest.raises(OptimizerError, match=f"UpdateClip: got {came}, want torch.optim.AdamW without amsgrad"):
        Run(UpdateClip(), [0.0], targets_of, kind, lr=0.1, **settings)
