"""Probe, checkup and repair on a CUDA device."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import evengrad
from evengrad.probe import probe
from evengrad.probe._watch import Watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def sick():
    layers = [layer for _ in range(10) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.BatchNorm1d(32), nn.Dropout(0.1), nn.Linear(32, 4))


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 32, generator=generator)
    return inputs, inputs[:, :4].argmax(1)


def test_readings_equal_those_of_the_cpu():
    torch.manual_seed(0)
    model = sick().eval()
    inputs, labels = data()
    on_cpu = probe(model, functional.cross_entropy, (inputs, labels)).readings[0]
    on_gpu = probe(model.cuda(), functional.cross_entropy, (inputs.cuda(), labels.cuda())).readings[0]
    for one, two in zip(on_cpu.layers, on_gpu.layers, strict=True):
        assert two.activation_rms == pytest.approx(one.activation_rms, rel=1e-3)
        assert two.grad_rms == pytest.approx(one.grad_rms, rel=1e-3)
        assert two.zero_frac == pytest.approx(one.zero_frac, abs=1e-3)
    assert on_gpu.grad_norms == pytest.approx(on_cpu.grad_norms, rel=1e-3)


def test_the_hooks_do_not_wait_for_the_device():
    model = sick().cuda()
    inputs, labels = (tensor.cuda() for tensor in data())
    functional.cross_entropy(model(inputs), labels).backward()  # kernels are loaded now
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Watch(model) as watch:
            loss = functional.cross_entropy(model(inputs), labels)
            torch.autograd.grad(loss, list(model.parameters()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(watch.entries) == 23


def test_the_model_and_the_devices_random_state_are_left_as_found():
    torch.manual_seed(0)
    model = sick().cuda()
    batch = tuple(tensor.cuda() for tensor in data())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.cuda.get_rng_state()
    assert evengrad.checkup(model, functional.cross_entropy, batch).findings
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_task_on_the_device_is_repaired():
    inputs, labels = (tensor.cuda() for tensor in data())
    layers = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    task = evengrad.Task(
        model=lambda: nn.Sequential(
            *[type(one)(*((32, 32) if isinstance(one, nn.Linear) else ())) for one in layers], nn.Linear(32, 4)
        ).cuda(),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=3e-3, fused=True),
        loss=functional.cross_entropy,
        train=lambda: [(inputs, labels)],
        validate=lambda model: (model(inputs).argmax(1) == labels).float().mean().item(),
        steps=60,
    )
    result = evengrad.repair(task, seeds=1)
    assert result.findings[0].code == "EG101"
    assert result.verdict.outcome == "cured"
    assert next(result.model.parameters()).is_cuda
