"""Every transform on half precision, odd shapes and layouts, sparse gradients, and tensors without numbers."""

import pytest
import torch
from torch import nn

from evengrad.clip.transforms import (
    AddNoise,
    ByUnitWeightNorm,
    ByValue,
    ClampWeights,
    Inhibit,
    MaxNorm,
    Quantize,
    Sign,
    _generator,
)
from evengrad.nouns import SettingError

WEIGHT_SIDE = (ClampWeights, MaxNorm)
SPARSE = (ByUnitWeightNorm, ByValue, Inhibit, Sign)
ADAMS = [{"fused": True}, {"foreach": True}, {"foreach": False}]


def small_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def adamw(model, lr=0.01, **settings):
    return torch.optim.AdamW(model.parameters(), lr=lr, **settings)


def fill(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)


@torch.no_grad()
def stepped(transform, targets, memory):
    """Do what a guard does in a step: before, the optimizer's own, after; learning rates are put back."""
    rates = [group["lr"] for group in targets[0].optimizer.param_groups]
    memory = transform.before_(targets, memory)
    targets[0].optimizer.step()
    memory = transform.after_(targets, memory)
    for group, rate in zip(targets[0].optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return memory


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_what_float32_gives(transform, dtype, targets_of):
    half = small_model(dtype)
    single = small_model()
    single.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    for model in (half, single):
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.grad = grad.to(dtype).to(parameter.dtype)
        targets = targets_of(model, adamw(model, eps=1e-3))  # Adam's own 1e-8 is 0 in float16
        stepped(transform, targets, transform.init(targets))
    eps = torch.finfo(dtype).eps
    for narrow, wide in zip(half.parameters(), single.parameters(), strict=True):
        assert narrow.dtype is narrow.grad.dtype is dtype
        if not isinstance(transform, Quantize):  # a rounding may go the other way
            torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2 * eps, atol=2 * eps * 0.1)
        assert bool(narrow.isfinite().all())


def test_gradients_near_the_end_of_float16_do_not_overflow(transform, targets_of):
    model = nn.Linear(2, 4).half()
    targets = targets_of(model, adamw(model))
    memory = transform.init(targets)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 6e4)
            parameter.grad[0] = 3e4
        with torch.no_grad():
            memory = transform.before_(targets, memory)
        assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
        assert all(bool(tensor.isfinite().all()) for tensor in memory.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite_raise_nothing_and_leave_the_memory_finite(transform, bad, targets_of):
    model = small_model()
    targets = targets_of(model, adamw(model))
    memory = transform.init(targets)
    for seed in range(4):
        fill(model, seed)
        memory = stepped(transform, targets, memory)
    fill(model, 4)
    for parameter in model.parameters():
        parameter.grad.view(-1)[1] = bad
    with torch.no_grad():
        memory = transform.before_(targets, memory)
    assert all(bool(tensor.isfinite().all()) for tensor in memory.values())


class Odd(nn.Module):
    """0-d, empty, complex and two that are laid out otherwise."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.number = nn.Parameter(torch.tensor(0.3))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.complex = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64, generator=generator) * 0.1)
        self.turned = nn.Parameter(torch.randn(5, 6, generator=generator).t() * 0.1)
        last = torch.randn(4, 3, 2, 2, generator=generator) * 0.1
        self.conv = nn.Conv2d(3, 4, 2, bias=False)
        self.conv.weight = nn.Parameter(last.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("settings", ADAMS[1:], ids=str)
def test_odd_tensors_are_taken(transform, settings, targets_of):
    model = Odd()
    targets = targets_of(model, adamw(model, **settings))
    memory = transform.init(targets)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(grad)
            assert parameter.grad.stride() == parameter.stride()
        before = [parameter.grad for parameter in model.parameters()]
        memory = stepped(transform, targets, memory)
        assert all(one is parameter.grad for one, parameter in zip(before, model.parameters(), strict=True))
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_the_order_of_memory_does_not_matter(transform, targets_of):
    if isinstance(transform, (AddNoise, Quantize)):  # these draw in the order of memory: see their own tests
        assert transform.needs_host
        return
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(4, 6, 2, groups=2)).to(memory_format=layout)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        targets = targets_of(model, adamw(model))
        stepped(transform, targets, transform.init(targets))
        results.append([tensor for parameter in model.parameters() for tensor in (parameter.detach(), parameter.grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_sparse_gradients_are_taken_as_dense_ones_or_refused_by_name(transform, targets_of):
    dense, sparse = nn.Embedding(6, 3), nn.Embedding(6, 3, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    tokens = torch.tensor([1, 4, 1, 1, 0])
    for model in (dense, sparse):
        (model(tokens) * torch.arange(15.0).view(5, 3)).sum().backward()
    assert not sparse.weight.grad.is_coalesced()
    target = targets_of(sparse, adamw(sparse))
    with torch.no_grad():
        if isinstance(transform, SPARSE):
            transform.before_(target, {})
            wanted = targets_of(dense, adamw(dense))
            transform.before_(wanted, {})
            assert sparse.weight.grad.is_sparse
            torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad, rtol=1e-6, atol=0)
            assert float(dense.weight.grad.abs().max()) < 10
        elif isinstance(transform, WEIGHT_SIDE):
            before = sparse.weight.grad.to_dense()
            transform.before_(target, {})
            assert torch.equal(sparse.weight.grad.to_dense(), before)
        else:
            name = type(transform).__name__
            with pytest.raises(SettingError, match=f"{name}: got a sparse gradient of weight, want dense"):
                transform.before_(target, transform.init(target))


def test_on_an_accelerator_nothing_is_read_on_the_host(transform, monkeypatch, targets_of):
    """A meta tensor has no numbers: whoever reads one raises. It takes the path of an accelerator."""
    monkeypatch.setattr(_generator.Draws, "_on", lambda self, device: None)
    model = nn.Sequential(
        *(nn.Linear(4, 4) for _ in range(3)),
        nn.ConvTranspose1d(4, 4, 3, groups=2),
        nn.LayerNorm(4),
        nn.Linear(4, 40000, dtype=torch.float16),
        nn.Linear(2, 2, dtype=torch.complex64),
    ).to("meta")
    optimizer = torch.optim.AdamW(model.parameters())
    targets = targets_of(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        optimizer.state[parameter] = {
            "step": torch.zeros((), device="meta"),
            "exp_avg": torch.empty_like(parameter),
            "exp_avg_sq": torch.empty_like(parameter),
        }
    memory = transform.init(targets)
    with torch.no_grad():
        for _ in range(7):
            memory = transform.after_(targets, transform.before_(targets, memory))
    assert all(value.device.type == "cpu" for name, value in memory.items() if not name.startswith("error:"))
