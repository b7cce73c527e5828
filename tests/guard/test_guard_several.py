"""Several optimizers under one guard, closures, and gradients of every kind in every way of applying decisions."""

import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByTensorNorm
from evengrad.guard import Guard
from evengrad.nouns import OptimizerError, SettingError

WAYS = (None, "conditional", "foreach", "folded")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


def two(model):
    return (
        torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9, fused=True),
        torch.optim.AdamW(model[2].parameters(), lr=0.01, fused=True),
    )


def close(model, other, rtol=1e-5, atol=1e-6):
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


def equal(model, other):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_two_optimizers_of_one_model_are_clipped_by_their_norm_together(way):
    model, other = net(), net()
    pair, plain = two(model), two(other)
    guard = Guard(model, pair, clip=0.3, apply=way)
    for x in batches(6):
        model.zero_grad()
        model(x).square().sum().backward()
        for optimizer in pair:
            optimizer.step()
        other.zero_grad()
        other(x).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        for optimizer in plain:
            optimizer.step()
        assert float(guard.last_norm) == pytest.approx(float(norm), rel=1e-6)
    assert (guard.step, guard.clips) == (6, 6)
    assert guard.record.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert len(guard.record.readings[0].lrs) == 2
    close(model, other)


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_gradient_in_one_skips_the_step_of_both(way):
    model, other = net(), net()
    pair, plain = two(model), two(other)
    guard = Guard(model, pair, clip=math.inf, apply=way)
    for number, x in enumerate([*batches(3), batches(1)[0], *batches(3)]):
        model.zero_grad()
        model(x).square().sum().backward()
        if number == 3:
            model[2].bias.grad[0] = math.nan
        for optimizer in pair:
            optimizer.step()
    for x in [*batches(3), *batches(3)]:
        other.zero_grad()
        other(x).square().sum().backward()
        for optimizer in plain:
            optimizer.step()
    assert (guard.step, guard.skips) == (7, 1)
    assert equal(model, other)


@pytest.mark.parametrize("way", WAYS)
def test_a_backward_between_the_steps_of_two_optimizers_is_decided_anew(way):
    model, other = net(), net()
    pair, plain = two(model), two(other)
    guard = Guard(model, pair, clip=0.3, apply=way)
    for x in batches(4):
        for optimizer in pair:  # a game: each has its own backward
            model.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        for optimizer in plain:
            other.zero_grad()
            other(x).square().sum().backward()
            nn.utils.clip_grad_norm_(other.parameters(), 0.3)
            optimizer.step()
    guard.detach()  # the last decision was for both, and only one has stepped
    close(model, other, rtol=1e-4, atol=3e-5)
    assert guard.step == 8


@pytest.mark.parametrize("fused", [True, False])
def test_two_optimizers_under_one_scaler_are_unscaled_before_they_are_measured(fused):
    def make(net_):
        return (
            torch.optim.SGD(net_[0].parameters(), lr=0.1, momentum=0.9, fused=fused),
            torch.optim.AdamW(net_[2].parameters(), lr=0.01, fused=fused),
        )

    model, other = net(), net()
    pair, plain = make(model), make(other)
    ours, theirs = (torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2))
    guard = Guard(model, pair, clip=0.3, scaler=ours)
    for x in batches(5):
        model.zero_grad()
        ours.scale(model(x).square().sum()).backward()
        for optimizer in pair:
            ours.step(optimizer)
        ours.update()
        other.zero_grad()
        theirs.scale(other(x).square().sum()).backward()
        for optimizer in plain:
            theirs.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        for optimizer in plain:
            theirs.step(optimizer)
        theirs.update()
        assert float(guard.last_norm) == pytest.approx(float(norm), rel=1e-5)
    close(model, other)


def test_several_fused_optimizers_under_a_scaler_that_the_guard_does_not_know_are_refused():
    model = net()
    pair = two(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    guard = Guard(model, pair)
    scaler.scale(model(batches(1)[0]).sum()).backward()
    with pytest.raises(SettingError, match="scaler: got None, with several optimizers under one, want the GradScaler"):
        scaler.step(pair[0])
    guard.detach()


def test_the_call_seam_decides_for_all_optimizers_at_once():
    model = net()
    pair = two(model)
    guard = Guard(model, pair, clip=0.3)
    model(batches(1)[0]).square().sum().backward()
    guard.clip_()
    total = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert total == pytest.approx(0.3, rel=1e-5)
    for optimizer in pair:
        optimizer.step()
    assert (guard.step, guard.clips) == (1, 1)


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        (lambda m: [], r"optimizer: got an empty sequence, want at least one torch\.optim\.Optimizer"),
        (lambda m: list(m.parameters()), r"optimizer: got a tensor \(a parameter or a gradient\), want a torch"),
        (lambda m: m.parameters(), r"optimizer: got generator, want a torch\.optim\.Optimizer"),
        (lambda m: [two(m)[0]] * 2, "optimizer: got the same one twice, want each optimizer once"),
        (lambda m: [two(m)[0], two(net())[1]], "got AdamW with none of the parameters of Sequential"),
    ],
)
def test_what_is_no_set_of_optimizers_of_the_model_is_refused(optimizers, message):
    model = net()
    with pytest.raises(OptimizerError, match=message):
        Guard(model, optimizers(model))


@pytest.mark.parametrize("clip", [[], [None, 1.0], [1.0, "x"], {"a": 1}])
def test_what_is_no_sequence_of_policies_is_refused(clip):
    model = net()
    with pytest.raises(SettingError, match="clip: got "):
        Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), clip=clip)


class Odd(nn.Module):
    """Parameters of every kind: sparse, complex, without dimensions, without elements, tied, half precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(6, 3, sparse=True)
        self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, 4))
        self.narrow = nn.Parameter(torch.randn(3, 2).to(torch.bfloat16))
        self.tied = self.narrow

    def forward(self, numbers):
        hidden = (self.rows(numbers) * self.turn).abs() * self.gain
        return (hidden.to(torch.bfloat16) @ self.narrow + self.nothing.sum()).float() @ self.tied.float().t()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("clip", [0.05, ByTensorNorm(0.02)])
@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_gradients_of_every_kind_are_clipped_and_skipped(clip, way):
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    guard = Guard(model, optimizer, clip=clip, apply=way)
    assert len(guard.record.parameters) == 5
    numbers = torch.tensor([0, 1, 1, 5])
    for number in range(6):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        (model(numbers).square().sum() * (math.nan if number == 3 else 1.0)).backward()
        exact = [float(torch.linalg.vector_norm(dense(parameter.grad))) for parameter in model.parameters()]
        optimizer.step()
        unchanged = all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        assert unchanged == (number == 3)
        if number != 3:
            assert guard.record.readings[-1].grad_norms == pytest.approx(exact, rel=1e-5)
            after = [float(torch.linalg.vector_norm(dense(parameter.grad))) for parameter in model.parameters()]
            bound = 0.02 if isinstance(clip, ByTensorNorm) else 0.05
            kept = max(after) if isinstance(clip, ByTensorNorm) else math.hypot(*after)
            assert kept <= bound * 1.01
    assert (guard.skips, guard.clips) == (1, 5)


def dense(grad):
    grad = grad.to_dense() if grad.is_sparse else grad
    return grad.to(torch.complex128 if grad.is_complex() else torch.float64)


@pytest.mark.parametrize("way", WAYS)
def test_lbfgs_and_closures_take_the_call_seam_in_every_way_that_they_can(way):
    model = net()
    x = batches(1)[0]
    if way == "folded":
        with pytest.raises(OptimizerError, match="got LBFGS without a fused kernel"):
            Guard(model, torch.optim.LBFGS(model.parameters()), apply=way)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    else:
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5)
    guard = Guard(model, optimizer, clip=5.0, apply=way)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        guard.clip_()
        return loss

    first = float(closure().detach())
    for _ in range(8):
        optimizer.step(closure)
    assert float(model(x).square().sum().detach()) < 0.5 * first
    assert guard.step == 8
    assert guard.skips == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_model_is_guarded_as_any_other(way):
    torch._dynamo.reset()
    model, other = net(), net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer, plain = (torch.optim.AdamW(one.parameters(), lr=0.01, fused=True) for one in (model, other))
    guard = Guard(compiled, optimizer, clip=0.3, apply=way)
    for x in batches(4):
        optimizer.zero_grad()
        compiled(x).square().sum().backward()
        optimizer.step()
        plain.zero_grad()
        other(x).square().sum().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        plain.step()
    assert guard.clips == 4
    assert guard.record.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    close(model, other)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_step_is_guarded_too(way):
    torch._dynamo.reset()
    model, other = net(), net()
    optimizer, plain = (torch.optim.AdamW(one.parameters(), lr=0.01, fused=True) for one in (model, other))
    guard = Guard(model, optimizer, clip=0.3, apply=way)

    @torch.compile(backend="eager")
    def step():
        optimizer.step()

    for number, x in enumerate([*batches(2), batches(1)[0], *batches(2)]):
        optimizer.zero_grad()
        (model(x).square().sum() * (math.nan if number == 2 else 1.0)).backward()
        step()
    for x in [*batches(2), *batches(2)]:
        plain.zero_grad()
        other(x).square().sum().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        plain.step()
    assert (guard.step, guard.skips, guard.clips) == (5, 1, 4)
    close(model, other)
    torch._dynamo.reset()


class Twice(torch.optim.AdamW):
    """Steps through its base class, whose step has hooks of its own once there is an AdamW."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_a_step_inside_the_step_of_the_same_optimizer_is_the_same_step(way):
    other = net()
    plain = torch.optim.AdamW(other.parameters(), lr=0.01)
    model = net()
    optimizer = Twice(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, clip=math.inf, apply=way)
    for number, x in enumerate([*batches(2), batches(1)[0], *batches(2)]):
        optimizer.zero_grad()
        (model(x).square().sum() * (math.nan if number == 2 else 1.0)).backward()
        optimizer.step()
    for x in [*batches(2), *batches(2)]:
        plain.zero_grad()
        other(x).square().sum().backward()
        plain.step()
    assert (guard.step, guard.skips) == (5, 1)
    assert equal(model, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_survives_a_skipped_step():
    model = torch.jit.script(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    for factor in (1.0, math.nan, math.nan, 1.0):
        optimizer.zero_grad()
        (model(batches(1)[0]).square().sum() * factor).backward()
        optimizer.step()
    assert (guard.step, guard.skips) == (4, 2)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_running_statistics_of_a_network_that_another_guard_has_are_left_to_it():
    model = nn.ModuleDict({"maker": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "judge": nn.BatchNorm1d(3)})
    optimizer = torch.optim.SGD(model["maker"].parameters(), lr=0.1)
    Guard(model, optimizer)
    model["judge"](batches(1)[0])
    moved = model["judge"].running_mean.clone()
    (model["maker"](batches(1)[0]).sum() * math.nan).backward()
    optimizer.step()
    assert torch.equal(model["judge"].running_mean, moved)
    assert torch.equal(model["maker"][1].running_mean, torch.zeros(4))
