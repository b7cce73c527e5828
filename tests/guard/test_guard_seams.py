"""The call seam, closures, and GradScaler."""

import logging
import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByGlobalNorm
from evengrad.diagnose import diagnose
from evengrad.guard import Guard
from evengrad.nouns import UnguardedStepWarning
from evengrad.runlog import read


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def counted(optimizer):
    return [float(state["step"]) for state in optimizer.state.values() if "step" in state]


def test_clip_is_a_drop_in_for_clip_grad_norm():
    model, other = net(), net()
    optimizer, plain = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=0.7)
    for x in batches(5):
        for module, stepper in ((model, optimizer), (other, plain)):
            stepper.zero_grad()
            module(x).square().sum().backward()
        norm = guard.clip_()
        wanted = nn.utils.clip_grad_norm_(other.parameters(), 0.7)
        assert norm.shape == ()
        assert norm.dtype == torch.float32
        torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)
        optimizer.step()
        plain.step()
    assert guard.step == 5
    assert len(guard.record.readings) == 5
    assert guard.record.readings[-1].total_norm == pytest.approx(float(norm), rel=1e-6)


def test_a_bad_clip_skips_the_step_that_follows_and_only_that():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    guard = Guard(model, optimizer)
    for x, moves in ((torch.full((5, 3), math.nan), False), (batches(1)[0], True)):
        before = weights(model)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        norm = guard.clip_()
        optimizer.step()
        assert bool(torch.isfinite(norm)) is moves
        assert torch.equal(before, weights(model)) is not moves
        assert bool(guard.skipped) is not moves
    assert counted(optimizer) == [1.0] * 4


def closure_of(model, optimizer, x, guard=None):
    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        if guard is not None:
            guard.clip_()
        return loss

    return closure


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_closure_without_clip_warns_once_and_says_what_to_do(by_keyword):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    closure = closure_of(model, optimizer, batches(1)[0])
    settings = {"closure": closure} if by_keyword else {}
    with pytest.warns(UnguardedStepWarning, match=r"call guard\.clip_\(\) in the closure, after backward\(\)"):
        optimizer.step(*([] if by_keyword else [closure]), **settings)
    for _ in range(2):  # a second warning would be an error here
        optimizer.step(*([] if by_keyword else [closure]), **settings)
    assert guard.step == 3
    assert guard.record.readings[0].total_norm is None
    assert guard.record.readings[0].grad_norms == ()


def test_clip_inside_a_closure_clips_and_does_not_warn():
    model, other = net(), net()
    optimizer, plain = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=0.7)
    for x in batches(4):
        optimizer.step(closure_of(model, optimizer, x, guard))
        closure_of(other, plain, x)()
        nn.utils.clip_grad_norm_(other.parameters(), 0.7)
        plain.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-7)
    assert guard.step == 4


def test_a_bad_clip_inside_a_closure_skips_and_gives_the_gradients_back():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    guard = Guard(model, optimizer)
    before = weights(model)
    loss = optimizer.step(closure_of(model, optimizer, torch.full((5, 3), math.nan), guard))
    assert torch.isnan(loss)
    assert torch.equal(before, weights(model))
    assert not optimizer.state
    assert all(torch.isnan(parameter.grad).any() for parameter in model.parameters())
    optimizer.step(closure_of(model, optimizer, batches(1)[0], guard))
    assert not torch.equal(before, weights(model))
    assert (guard.step, guard.skips) == (2, 1)


def test_lbfgs_may_evaluate_its_closure_many_times():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    guard = Guard(model, optimizer, clip=math.inf)
    first = optimizer.step(closure_of(model, optimizer, batches(1)[0], guard)).item()
    last = optimizer.step(closure_of(model, optimizer, batches(1)[0], guard)).item()
    assert last < first
    assert guard.step == 2


def scaled_runs(fused, inputs, *, seam="hook", clip=math.inf):
    model = net()
    optimizer = torch.optim.AdamW(
        model.parameters(), weight_decay=0.5, fused=fused, foreach=False if not fused else None
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    guard = None
    if seam != "plain":
        guard = Guard(model, optimizer, clip=clip, scaler=scaler if seam == "clip, scaler given" else None)
    norms = []
    for x in inputs:
        optimizer.zero_grad()
        scaler.scale(model(x).square().sum()).backward()
        if seam == "unscale, clip":
            scaler.unscale_(optimizer)
        if "clip" in seam:
            norms.append(float(guard.clip_()))
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")
    return model, optimizer, scaler, guard, norms


@pytest.mark.parametrize("seam", ["hook", "unscale, clip", "clip, scaler given"])
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler_norms_are_unscaled_and_an_overflow_is_skipped_by_both(fused, seam):
    good = batches(4)
    bad = torch.full((5, 3), math.inf)
    model, optimizer, scaler, guard, norms = scaled_runs(fused, [*good[:2], bad, *good[2:]], seam=seam)
    other, plain, plain_scaler, *_ = scaled_runs(fused, [*good[:2], bad, *good[2:]], seam="plain")
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-6, atol=1e-8)
    assert counted(optimizer) == counted(plain) == [4.0] * 4
    assert scaler.get_scale() == plain_scaler.get_scale() == 512.0
    reference = net()
    loss = reference(good[0]).square().sum()
    wanted = math.hypot(*(float(g.norm()) for g in torch.autograd.grad(loss, list(reference.parameters()))))
    assert guard.record.readings[0].total_norm == pytest.approx(wanted, rel=1e-6)
    unseen = seam == "hook" and not fused  # the scaler does not call step
    assert guard.skips == (0 if unseen else 1)
    assert guard.step == (4 if unseen else 5)
    if norms:
        assert norms[0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("seam", ["hook", "unscale, clip", "clip, scaler given"])
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler_the_threshold_is_in_unscaled_units(fused, seam):
    model, *_ = scaled_runs(fused, batches(3), seam=seam, clip=0.7)
    other = net()
    optimizer = torch.optim.AdamW(other.parameters(), weight_decay=0.5, foreach=False)
    for x in batches(3):
        optimizer.zero_grad()
        other(x).square().sum().backward()
        assert float(nn.utils.clip_grad_norm_(other.parameters(), 0.7)) > 0.7
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-7)


def half_precision_run(fused, seam, log=None, *, steps=30):
    """A healthy training in float16 whose scale starts too high: the first steps overflow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused, foreach=False if not fused else None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    losses = []
    given = scaler if "given" in seam else None
    with Guard(model, optimizer, scaler=given, max_consecutive_skips=20, log=log) as guard:
        for x in batches(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                output = model(x)
            loss = guard.loss((output.float() - x.sum(1, keepdim=True)).square().mean())
            scaler.scale(loss).backward()
            if "unscale" in seam:
                scaler.unscale_(optimizer)
            if "clip" in seam:
                guard.clip_()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    return guard, round(math.log2(2.0**22 / scaler.get_scale()))


@pytest.mark.parametrize(
    ("fused", "seam"),
    [
        (True, "hook"),
        (False, "hook"),
        (True, "unscale, clip"),
        (True, "clip, scaler given"),
        (False, "clip, scaler given"),
        (True, "unscale, clip, scaler given"),
        (False, "unscale, clip, scaler given"),
    ],
)
def test_the_overflows_of_a_scaler_that_looks_for_its_scale_are_skips_but_no_findings(fused, seam, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="evengrad.guard")
    guard, overflows = half_precision_run(fused, seam, tmp_path / "run")
    assert overflows >= 3
    assert guard.findings() == ()
    assert diagnose(tmp_path / "run").findings == ()
    if (fused, seam) == (False, "hook"):  # the scaler does not call step
        assert guard.skips == 0
        return
    assert guard.skips == overflows
    first, *_ = [record for record in caplog.records if record.levelno == logging.INFO]
    assert "step 0 skipped (1 in a row): the GradScaler's scale is too large for these gradients" in first.getMessage()
    told = [record for record in caplog.records if record.levelno > logging.INFO]
    assert told == []
    for record in (guard.record, read(tmp_path / "run")):
        left_out = [reading for reading in record.readings if reading.skipped]
        assert [reading.step for reading in left_out] == list(range(overflows))
        assert all((reading.grad_norms, reading.total_norm, reading.scale) == ((), None, 1.0) for reading in left_out)
        assert all(math.isfinite(reading.loss) for reading in left_out)
        assert all(len(reading.grad_norms) == 4 for reading in record.readings[overflows:])


@pytest.mark.parametrize(
    "seam", ["hook", "clip", "clip, step left out", "clip, disabled scaler", "clip, finite scaler"]
)
def test_a_gradient_that_is_not_finite_is_a_finding_where_it_was_no_scaler_who_left_the_step_out(seam):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=seam == "clip, finite scaler")
    scaler = torch.amp.GradScaler("cpu", enabled=False) if seam == "clip, disabled scaler" else None
    guard = Guard(model, optimizer, scaler=scaler)
    for x in batches(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        model[2].bias.grad.fill_(math.nan)
        if "clip" in seam:
            guard.clip_()
        if seam == "clip, finite scaler":
            optimizer.found_inf = torch.tensor(0.0)
        if "left out" not in seam:
            optimizer.step()
    guard.detach()
    (finding,) = guard.findings()
    assert (finding.code, finding.severity, finding.where) == ("EG202", "warning", ("2.bias",))
    assert finding.when == (0, 1)
    assert guard.skips == 2


def test_a_norm_too_large_for_float32_is_a_finding_also_under_a_scaler_that_does_not_mind():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    guard = Guard(model, optimizer, scaler=scaler)
    scaler.scale(1e25 * model(batches(1)[0]).sum()).backward()
    guard.clip_()
    scaler.step(optimizer)
    (finding,) = guard.findings()
    assert (finding.code, finding.severity) == ("EG202", "warning")


def test_an_overflow_that_two_devices_report_is_skipped_too():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    guard = Guard(model, optimizer, clip=ByGlobalNorm(math.inf))
    model(batches(1)[0]).sum().backward()
    before = weights(model)
    optimizer.found_inf = torch.tensor(2.0)  # the sum that a scaler makes of two devices
    optimizer.step()
    assert torch.equal(before, weights(model))
    assert not optimizer.state
    assert guard.skips == 1
    assert float(optimizer.found_inf) == 2.0


def test_a_disabled_scaler_is_as_none():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False))
    model(batches(1)[0]).sum().backward()
    wanted = math.hypot(*(float(parameter.grad.norm()) for parameter in model.parameters()))
    assert float(guard.clip_()) == pytest.approx(wanted, rel=1e-6)
