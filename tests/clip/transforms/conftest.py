"""Targets as a guard would make them, and an example of every transform."""

import pytest

from evengrad.clip.transforms import (
    AddNoise,
    ByUnitWeightNorm,
    ByValue,
    Centralize,
    ClampWeights,
    Inhibit,
    MaxNorm,
    Quantize,
    Sign,
    SpikeAware,
    Target,
    UpdateClip,
)

EXAMPLES = (
    AddNoise(eta=1e-4),
    ByUnitWeightNorm(clip_factor=0.02, exclude_head=False),
    ByValue(0.01),
    Centralize(),
    ClampWeights(0.4),
    Inhibit(0.05),
    Inhibit(0.05, curve="softsign"),
    MaxNorm(0.7),
    Quantize(),
    Quantize(bits=1, stochastic=False),
    Quantize(bits=2, error_feedback=False),
    Sign(),
    SpikeAware(threshold=2.0, reset_steps=6, warmup_steps=3, wait_steps=2),
    UpdateClip(),
)


def _targets_of(model, optimizer):
    owners = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), (f"{path}.{name}" if path else name, module))
    matrices = [m for m in model.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    return [
        Target(
            name=owners[id(parameter)][0],
            parameter=parameter,
            module=owners[id(parameter)][1],
            last=bool(matrices) and owners[id(parameter)][1] is matrices[-1],
            optimizer=optimizer,
            group=group,
        )
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


@pytest.fixture
def targets_of():
    """Make the targets of a model and its optimizer."""
    return _targets_of


@pytest.fixture
def examples():
    """All examples."""
    return EXAMPLES


def pytest_generate_tests(metafunc):
    """Run a test that asks for a `transform` with every example."""
    if "transform" in metafunc.fixturenames:
        metafunc.parametrize("transform", EXAMPLES, ids=repr)
