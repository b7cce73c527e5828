"""Transforms under a guard: where they stand in the order, what a skipped step leaves of them, checkpoints."""

import io
import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByGlobalNorm, BySigmaWindow, ByZScore, transforms
from evengrad.guard import Guard, Rollback
from evengrad.nouns import SettingError

TRANSFORMS = {
    "ByValue": lambda: transforms.ByValue(0.05),
    "ByUnitWeightNorm": transforms.ByUnitWeightNorm,
    "Inhibit": lambda: transforms.Inhibit(0.1),
    "Inhibit softsign": lambda: transforms.Inhibit(0.1, curve="softsign"),
    "Quantize": lambda: transforms.Quantize(bits=6),
    "Centralize": transforms.Centralize,
    "AddNoise": transforms.AddNoise,
    "Sign": transforms.Sign,
    "SpikeAware": lambda: transforms.SpikeAware(reset_steps=5, warmup_steps=3, wait_steps=2),
    "UpdateClip": transforms.UpdateClip,
    "ClampWeights": lambda: transforms.ClampWeights(0.2),
    "MaxNorm": lambda: transforms.MaxNorm(0.5),
}
ON_DEVICE = [name for name, make in TRANSFORMS.items() if not make().needs_host]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 3, generator=generator) for _ in range(count)]


def make(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1, fused=True)


def ran(clip, inputs, way=None, factors=None):
    model = net()
    optimizer = make(model)
    with Guard(model, optimizer, clip=clip, apply=way) as guard:
        train(model, optimizer, inputs, factors)
    return model, optimizer, guard


def train(model, optimizer, inputs, factors=None):
    for step, x in enumerate(inputs):
        optimizer.zero_grad()
        (model(x).square().sum() * (factors or {}).get(step, 1.0)).backward()
        optimizer.step()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_transform_is_here():
    assert {type(one()) for one in TRANSFORMS.values()} == set(transforms.ALL)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
@pytest.mark.parametrize("when", [0, 6])
def test_a_bad_step_leaves_no_trace(name, way, when):
    if way != "conditional" and name not in ON_DEVICE:
        with pytest.raises(SettingError, match=r"apply: got '\w+' with \w+, want None or 'conditional'; it must"):
            ran([ByGlobalNorm(0.5), TRANSFORMS[name]()], [], way)
        return
    if (way, name, when) in {(way, name, 0) for way in ("foreach", "folded") for name in ("ClampWeights", "MaxNorm")}:
        when = 1  # before a step has gone by they bound the first weights, which nothing else has bounded yet
    good = batches(10)
    clip = [ByGlobalNorm(0.5), TRANSFORMS[name]()]
    with_it = ran(clip, [*good[:when], good[0], *good[when:]], way, {when: math.nan})
    without = ran(clip, good, way)
    assert with_it[2].skips == 1
    assert same(with_it[0].state_dict(), without[0].state_dict())
    assert same(with_it[1].state_dict(), without[1].state_dict())
    assert same(with_it[2].state_dict()["parts"], without[2].state_dict()["parts"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_run_with_a_transform_goes_on_from_a_checkpoint_equal_to_the_bit(name):
    data = batches(24)
    clip = [ByZScore(), TRANSFORMS[name]()]
    whole, _, _ = ran(clip, data)
    first, optimizer, guard = ran(clip, data[:13])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (first, optimizer, guard)], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = net(seed=5)
    other = make(second)
    resumed = Guard(second, other, clip=clip)
    for part, state in zip((second, other, resumed), saved, strict=True):
        part.load_state_dict(state)
    train(second, other, data[13:])
    assert same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", ON_DEVICE)
def test_all_ways_do_the_same(name):
    results = [ran([0.5, TRANSFORMS[name]()], batches(12), way)[0] for way in ("conditional", "foreach", "folded")]
    for other in results[1:]:
        for mine, theirs in zip(results[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_the_order_of_the_sequence_is_the_order_of_the_deeds(way):
    def stepped(first, then):
        model, _optimizer, _ = ran([first, then], batches(1), way)
        return model

    def wanted(deeds):
        model = net()
        optimizer = make(model)
        model(batches(1)[0]).square().sum().backward()
        for deed in deeds:
            deed(list(model.parameters()))
        optimizer.step()
        return model

    def norm(parameters):
        nn.utils.clip_grad_norm_(parameters, 0.3)

    def value(parameters):
        nn.utils.clip_grad_value_(parameters, 0.02)

    by_value = transforms.ByValue(0.02)
    for ours, theirs in (
        (stepped(ByGlobalNorm(0.3), by_value), wanted([norm, value])),
        (stepped(by_value, ByGlobalNorm(0.3)), wanted([value, norm])),
    ):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
@pytest.mark.parametrize("stage", ["ready", "unscaled"])
def test_a_transform_sees_unscaled_gradients_under_a_scaler(way, stage):
    model, other = net(), net()
    optimizer, plain = make(model), make(other)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    Guard(model, optimizer, clip=[transforms.ByValue(0.02), ByGlobalNorm(0.3)], apply=way)
    for x in batches(4):
        optimizer.zero_grad()
        scaler.scale(model(x).square().sum()).backward()
        if stage == "unscaled":
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        other(x).square().sum().backward()
        nn.utils.clip_grad_value_(other.parameters(), 0.02)
        nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        plain.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_transform_alone_is_guarded_against_what_is_not_finite():
    model, _, guard = ran(transforms.ByValue(0.05), batches(6), None, {2: math.inf, 4: math.nan})
    assert guard.skips == 2
    assert "[SkipNonFinite(), ByValue(" in repr(guard)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_learning_rate_that_a_transform_changes_holds_for_its_step_only():
    model = net()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    guard = Guard(model, optimizer, clip=transforms.SpikeAware(reset_steps=4, warmup_steps=3, wait_steps=1))
    seen = []
    for x in batches(12):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert seen == pytest.approx([0.02 * 0.9**step for step in range(12)])
    guard.detach()


def test_going_back_takes_the_memory_of_transforms_back_too():
    model = net()
    optimizer = make(model)
    guard = Guard(model, optimizer, clip=transforms.AddNoise(), rollback=Rollback(every_steps=4, after_skips=2))
    train(model, optimizer, batches(9))
    counts = [int(guard.state_dict()["parts"][1]["memory"]["steps"])]
    train(model, optimizer, [x * math.nan for x in batches(2)])
    counts.append(int(guard.state_dict()["parts"][1]["memory"]["steps"]))
    assert counts == [9, 5]


def test_a_parameter_that_is_added_later_is_transformed_from_then_on():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=[ByZScore(), transforms.Quantize(bits=4)])
    train(model, optimizer, batches(3))
    before = guard.state_dict()["parts"][1]["memory"]
    optimizer.add_param_group({"params": list(model[4].parameters())})
    train(model, optimizer, batches(2))
    after = guard.state_dict()["parts"][1]["memory"]
    assert set(before) < set(after)
    assert int(after["steps"]) == 5
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_a_step_that_a_later_policy_leaves_out_has_not_happened_for_the_first(way):
    clip = [ByZScore(std_floor=1e6), transforms.Centralize(), BySigmaWindow(window=4)]
    good = batches(9)
    with_it = ran(clip, [*good[:6], good[0], *good[6:]], way, {6: 1e4})
    assert with_it[2].skips == 1
    mean = float(with_it[2].state_dict()["parts"][0]["memory"]["mean"])
    assert mean == pytest.approx(float(ran(clip, good, way)[2].state_dict()["parts"][0]["memory"]["mean"]), rel=0.3)
