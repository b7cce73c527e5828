"""Which settings and optimizers every transform takes, and what it says of others."""

import dataclasses

import pytest
import torch
from torch import nn

from evengrad.clip.transforms import (
    AddNoise,
    ByUnitWeightNorm,
    ByValue,
    Centralize,
    ClampWeights,
    Inhibit,
    MaxNorm,
    Quantize,
    SpikeAware,
    UpdateClip,
)
from evengrad.nouns import OptimizerError, SettingError

ADAM_ONLY = (SpikeAware, UpdateClip)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.NAdam, torch.optim.RMSprop])
def test_any_optimizer_is_taken_except_where_adams_memory_is_needed(transform, kind, targets_of):
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.LayerNorm(4), nn.Linear(4, 3))
    momentum = {} if kind is torch.optim.NAdam else {"momentum": 0.9}
    targets = targets_of(model, kind(model.parameters(), lr=0.01, **momentum))
    if isinstance(transform, ADAM_ONLY):
        came = f"{type(transform).__name__}: got {kind.__name__}, which steps 0.weight, want torch.optim.Adam or AdamW"
        with pytest.raises(OptimizerError, match=came):
            transform.init(targets)
        return
    memory = transform.init(targets)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            memory = transform.before_(targets, memory)
            targets[0].optimizer.step()
            memory = transform.after_(targets, memory)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_settings_cannot_be_changed_and_are_compared(transform):
    settings = {field.name: getattr(transform, field.name) for field in dataclasses.fields(transform)}
    assert transform == type(transform)(**settings)
    for name, value in settings.items():
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(transform, name, value)


NOT_POSITIVE = [0, 0.0, -1.0, float("nan"), float("inf"), "1", None, True]
PATTERNS = ["head.*", ["head.*"], (1,), ("",), None]


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (ByValue, "max_value", NOT_POSITIVE),
        (Inhibit, "limit", NOT_POSITIVE),
        (lambda curve: Inhibit(1.0, curve=curve), "curve", ["arctan", None, 1]),
        (ClampWeights, "max_value", NOT_POSITIVE),
        (lambda exclude: ClampWeights(1.0, exclude=exclude), "exclude", PATTERNS),
        (MaxNorm, "max_norm", NOT_POSITIVE),
        (lambda exclude: MaxNorm(1.0, exclude=exclude), "exclude", PATTERNS),
        (lambda exclude: Centralize(exclude=exclude), "exclude", PATTERNS),
        (lambda value: ByUnitWeightNorm(clip_factor=value), "clip_factor", NOT_POSITIVE),
        (lambda value: ByUnitWeightNorm(eps=value), "eps", NOT_POSITIVE),
        (lambda value: ByUnitWeightNorm(exclude_head=value), "exclude_head", [1, None, "no"]),
        (lambda value: ByUnitWeightNorm(exclude=value), "exclude", PATTERNS),
        (lambda value: AddNoise(eta=value), "eta", NOT_POSITIVE),
        (lambda value: AddNoise(gamma=value), "gamma", [-1.0, float("nan"), float("inf"), "1", True]),
        (lambda value: AddNoise(seed=value), "seed", [-1, 0.5, None, True]),
        (lambda value: Quantize(bits=value), "bits", [0, 17, 2.5, "8", True]),
        (lambda value: Quantize(bits=value), "bits", [1, 2]),
        (lambda value: Quantize(stochastic=value), "stochastic", [1, None]),
        (lambda value: Quantize(error_feedback=value), "error_feedback", [1, None]),
        (lambda value: Quantize(seed=value), "seed", [-1, 0.5]),
        (lambda value: SpikeAware(threshold=value), "threshold", NOT_POSITIVE),
        (lambda value: SpikeAware(reset_steps=value), "reset_steps", [0, 1, -5, 2.5, None]),
        (lambda value: SpikeAware(warmup_steps=value), "warmup_steps", [-1, 500, 1000, 2.5, None]),
        (lambda value: SpikeAware(wait_steps=value), "wait_steps", [0, -1, 500, 2.5, None]),
        (lambda value: SpikeAware(reset_count=value), "reset_count", [1, None]),
        (lambda value: UpdateClip(eps=value), "eps", [*NOT_POSITIVE[:6], True]),
    ],
)
def test_a_setting_out_of_range_is_refused(make, name, values):
    for value in values:
        with pytest.raises(SettingError, match=f"^{name}: got .*, want "):
            make(value)
