"""What the guard samples: what readings and logs hold, and that the run stays what it was."""

import pytest
import torch
from torch import nn

from evengrad.guard import Guard
from evengrad.nouns import SettingError
from evengrad.probe import probe
from evengrad.runlog import read


def net(dropout=0.1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)) for _ in range(count)]


def ran(steps, way=None, scaler=None, dropout=0.1, **settings):
    model = net(dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    guard = Guard(model, optimizer, apply=way, scaler=scaler, **settings)
    torch.manual_seed(2)
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss = guard.loss(nn.functional.mse_loss(model(x), y))
        losses.append(float(loss.detach()))
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return model, guard, losses


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_layers_are_sampled_at_every_so_many_steps_and_the_run_is_the_same(way, tmp_path):
    model, guard, losses = ran(25, way, sample_every_steps=10, log=tmp_path / "run")
    other, _, same = ran(25, way, sample_every_steps=None)
    guard.detach()
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for record in (guard.record, read(tmp_path / "run")):
        sampled = [reading.step for reading in record.readings if reading.layers]
        assert sampled == [0, 10, 20]
        assert [layer.name for layer in record.readings[10].layers] == ["0", "1", "2", "3", "4", "5"]
        assert all(layer.grad_rms > 0 for layer in record.readings[10].layers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_sampled_is_what_the_probe_measures_on_that_batch(scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    _, guard, _ = ran(1, scaler=scaler, dropout=0.0, sample_every_steps=1)
    seen = {layer.name: layer for layer in guard.record.readings[0].layers}
    exact = probe(net(0.0), nn.functional.mse_loss, batches(1)[0]).readings[0].layers
    for layer in exact:
        if layer.name in seen:
            assert seen[layer.name].activation_rms == pytest.approx(layer.activation_rms, rel=1e-5)
            assert seen[layer.name].grad_rms == pytest.approx(layer.grad_rms, rel=1e-4)
    assert len(set(seen) & {layer.name for layer in exact}) >= 6


def test_without_sampling_nothing_is_attached_to_a_module():
    model, guard, _ = ran(3, sample_every_steps=None)
    assert not any(reading.layers or reading.weights for reading in guard.record.readings)
    assert not any(module._forward_hooks for module in model.modules())


def test_by_default_every_early_step_is_sampled_and_few_later_ones():
    _, guard, _ = ran(120)
    sampled = [reading.step for reading in guard.record.readings if reading.layers and reading.weights]
    assert sampled[:8] == list(range(8))
    assert [step // 25 for step in sampled[8:]] == [1, 2, 3, 4]
    assert len(sampled) <= 25


def test_a_healthy_run_with_layers_has_no_finding():
    _, guard, _ = ran(60, sample_every_steps=5)
    assert guard.findings() == ()


def test_a_network_that_vanishes_is_found_in_a_guarded_run():
    torch.manual_seed(0)
    layers = [layer for _ in range(10) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, sample_every_steps=5) as guard:
        for step in range(20):
            generator = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randn(64, 32, generator=generator)), torch.arange(64) % 2)
            guard.loss(loss).backward()
            optimizer.step()
    assert "EG101" in {finding.code for finding in guard.findings()}


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "10"])
def test_a_number_of_steps_out_of_range_is_refused(every):
    model = net()
    with pytest.raises(SettingError, match=r"sample_every_steps: got .*, want a whole number from 1, 'auto' or None"):
        Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), sample_every_steps=every)
