"""Samples of a real training: equal to the exact probe where they are whole, near it elsewhere, never in the way."""

import copy
import io
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from evengrad.nouns import SettingError
from evengrad.probe import Sampler, probe

CLOSE = {"rel": 1e-5, "abs": 1e-12}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.conv, self.act = (
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return x + self.conv(self.act(self.norm(x)))


class Text(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2) if kind == "encoder" else nn.LSTM(8, 8, 2, dropout=0.2)

    def forward(self, x):
        h = self.body(self.embed(x))
        return self.head(h[0] if isinstance(h, tuple) else h)


class Tied(nn.Module):
    """One module called three times, a class token of its own, outputs that are a dict and a tuple."""

    def __init__(self):
        super().__init__()
        self.same, self.two, self.token = nn.Linear(6, 6), Two(), nn.Parameter(torch.ones(6))

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.same(x))
        one = self.two(x)
        return one["first"] * self.token + one["second"][0]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((6, 6), 0.1))

    def forward(self, x):
        return {"first": x @ self.weight, "second": (x * 2, 3)}


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant, whole=False):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh()) for _ in range(2))
        self.reentrant, self.whole = reentrant, whole

    def forward(self, x):
        if self.whole:
            return checkpoint(self.run, x, use_reentrant=False)
        x = self.first(x)
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=self.reentrant) if torch.is_grad_enabled() else part(x)
        return self.last(x)

    def run(self, x):
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        return self.last(x).square().sum(1, keepdim=True)


def images():
    return torch.randn(4, 3, 8, 8)


def letters():
    return torch.randint(0, 11, (5, 7))


def vectors():
    return torch.randn(9, 6)


MODELS = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), Block(6), Block(6), nn.Flatten(), nn.Dropout(0.3)),
        images,
    ),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(3, 200, 3), Block(200)).to(memory_format=torch.channels_last),
        images,
    ),
    "encoder": (lambda: Text("encoder"), letters),
    "lstm": (lambda: Text("lstm"), letters),
    "tied": (Tied, vectors),
    "checkpointed": (lambda: Checkpointed(reentrant=False), vectors),
    "checkpointed as a whole": (lambda: Checkpointed(reentrant=False, whole=True), vectors),
    "reentrant": (lambda: Checkpointed(reentrant=True), vectors),
}


def trained(name, *, sampled=True, autocast=False, steps=4):
    """Train a few steps, with an evaluation after each; give all that a step leaves behind."""
    torch.manual_seed(0)
    make, data = MODELS[name]
    model, left = make(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = Sampler(model)
    for step in range(steps):
        if sampled and step % 2:
            sampler.arm()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(data()).square().mean()
        loss.backward()
        if sampler.armed:
            readings = sampler.readings(sampler.packed().tolist())
            sampler.disarm()
            assert readings
        left += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            left.append(model.eval()(data()))
        model.train()
    return [*left, *model.state_dict().values(), torch.get_rng_state(), torch.tensor(random.getstate()[1])]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_sampled_run_is_equal_to_the_bit(name, autocast):
    plain = trained(name, sampled=False, autocast=autocast)
    sampled = trained(name, autocast=autocast)
    assert len(plain) == len(sampled)
    assert all(torch.equal(one, other) for one, other in zip(plain, sampled, strict=True))


def sampled_once(model, loss, data, sampler=None):
    sampler = sampler or Sampler(model)
    sampler.arm()
    loss(model(data)).backward()
    numbers = sampler.packed()
    sampler.disarm()
    return sampler.readings(numbers.tolist())


def exact(model, loss, data):
    """What the probe says, without the non-linearities that are called as functions."""
    layers = probe(model, lambda output, _: loss(output), (data, torch.zeros(1))).readings[0].layers
    return [layer for layer in layers if "()" not in layer.name]


def is_close(one, other, **tolerance):
    for name in ("activation_rms", "activation_absmax", "zero_frac", "saturated_frac", "grad_rms"):
        value, wanted = getattr(one, name), getattr(other, name)
        if value is None or wanted is None:
            assert value is wanted, f"{one.name}.{name}: {value} instead of {wanted}"
        else:
            assert value == pytest.approx(wanted, **tolerance), f"{one.name}.{name}"
    names = (
        "name",
        "kind",
        "weighted",
        "nonlinearity",
        "numel",
        "units",
        "input_finite",
        "output_finite",
        "grad_finite",
    )
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
    return True


def saturating():
    kinds = nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU, nn.GELU
    return nn.Sequential(*(layer for kind in kinds for layer in (nn.Linear(6, 6), kind())))


@pytest.mark.parametrize("name", ["convolutions", "lstm", "tied", "checkpointed", "saturating"])
def test_small_layers_are_read_as_by_the_exact_probe(name):
    torch.manual_seed(0)
    make, data = (saturating, vectors) if name == "saturating" else MODELS[name]
    model, x = make(), data()
    if name == "saturating":
        x = 30 * x  # so that something saturates
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.LSTM):
            module.dropout = module.p = 0.0
    sampler = Sampler(model)
    for _ in range(3):  # rows are used again
        x = x[torch.randperm(len(x))]
        wanted = exact(model, lambda out: out.square().sum(), x)
        found = sampled_once(model, lambda out: out.square().sum(), x, sampler)
        assert [layer.name for layer in found] == [layer.name for layer in wanted]
        assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))
    if name == "saturating":
        assert any(layer.saturated_frac for layer in found)


def test_a_module_that_is_called_again_has_a_reading_per_call():
    torch.manual_seed(0)
    names = [layer.name for layer in sampled_once(Tied(), torch.sum, vectors())]
    assert names == ["same", "same#2", "same#3", "two", "(model)"]


WIDE = {
    "contiguous": lambda x: x,
    "turned": lambda x: x.transpose(0, 1),
    "every other": lambda x: x[:, ::2],
    "repeated": lambda x: x[:, :1].expand(-1, 300),
}


class Passing(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


@pytest.mark.parametrize("layout", WIDE)
@pytest.mark.parametrize("seed", range(3))
def test_estimates_of_large_layers_are_within_5_percent(layout, seed):
    torch.manual_seed(seed)
    size = (40_000, 300) if layout == "repeated" else (400, 300)
    x = torch.randn(size, requires_grad=True).relu()
    pull = torch.randn(WIDE[layout](x).shape)
    model = nn.Sequential(Passing(WIDE[layout]))
    found = sampled_once(model, lambda out: (out * pull).sum(), x)[0]
    y = WIDE[layout](x)
    assert found.numel == y.numel() > 16 * 4096 // 2
    assert found.activation_rms == pytest.approx(y.square().mean().sqrt().item(), rel=0.05)
    assert found.zero_frac == pytest.approx(0.5, rel=0.05)
    assert found.grad_rms == pytest.approx(1.0, rel=0.05)
    assert 3 < found.activation_absmax <= y.max()


def test_what_lies_between_the_elements_is_not_sampled_whatever_was_there_before():
    junk = torch.full((100, 200), 1e9)
    junk[:, ::2] = 1.0
    cut = torch.full((100, 150), 1e9)
    cut[:, 10:110] = 1.0
    shapes = [torch.ones(100, 100), junk[:, ::2], torch.ones(100, 1).expand(100, 100), cut[:, 10:110]]
    model = nn.Sequential(Passing(None), nn.Identity())
    sampler = Sampler(model)
    weight = torch.ones((), requires_grad=True)
    for value in shapes:
        model[0].change = partial(Scaled.apply, value)
        layers = sampled_once(model, torch.sum, weight, sampler)
        assert [layer.activation_absmax for layer in layers] == [1.0, 1.0]
        assert [layer.activation_rms for layer in layers] == [1.0, 1.0]


class Scaled(torch.autograd.Function):
    """Gives a tensor as it lies in memory, with a graph."""

    @staticmethod
    def forward(ctx, value, weight):
        return value.detach()

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient.sum()


def test_a_recurrent_module_of_which_only_the_state_is_used_has_no_gradient_at_its_output():
    class State(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[1][0])

    torch.manual_seed(0)
    model, x = State(), torch.randn(4, 3, 6)
    found, wanted = sampled_once(model, torch.sum, x), exact(model, torch.sum, x)
    assert found[0].grad_rms is None
    assert found[1].grad_rms == pytest.approx(1.0)
    assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))


def test_blocks_reach_from_the_beginning_to_the_end():
    x = torch.arange(100_000.0, requires_grad=True)
    found = sampled_once(nn.Sequential(nn.Identity()), torch.sum, x)[0]
    places = torch.cat([torch.arange(256) + block * ((100_000 - 256) // 15) for block in range(16)]).double()
    assert found.activation_rms == pytest.approx(places.square().mean().sqrt().item(), rel=1e-6)
    assert found.activation_absmax == places.max() >= 99_985


@pytest.mark.parametrize("count", [1, 16, 17, 4095, 4096, 4097, 5000])
def test_widths_at_the_edges_count_every_element_once(count):
    x = torch.ones(count)
    x[: count // 2] = 0.0
    found = sampled_once(nn.Sequential(nn.Identity()), lambda out: 3 * out.sum(), x.requires_grad_())[0]
    tolerance = 1e-6 if count <= 4096 else 0.15
    assert found.zero_frac == pytest.approx((count // 2) / count, abs=tolerance)
    assert found.activation_rms == pytest.approx((1 - (count // 2) / count) ** 0.5, abs=tolerance)
    assert found.grad_rms == pytest.approx(3.0)  # the gradient of a sum is one number, repeated


def test_shapes_may_change_from_step_to_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 30))
    sampler = Sampler(model)
    for count in (10, 9, 200, 3, 100, 1, 10, 9):
        x = torch.randn(count, 6) - 1.0
        wanted = exact(model, lambda out: out.square().sum(), x)
        found = sampled_once(model, lambda out: out.square().sum(), x, sampler)
        limits = CLOSE if count * 30 <= 4096 else {"rel": 0.1}
        assert all(is_close(one, other, **limits) for one, other in zip(found[:2], wanted[:2], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_of_output_and_gradient_and_of_what_comes_after(bad):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Passing(lambda x: x / x.new_tensor([1.0] * 5 + [bad])), nn.Linear(6, 6))
    model[1].change = lambda x: torch.cat([x[:, :5], x[:, 5:] * bad], dim=1)
    found = sampled_once(model, torch.sum, vectors())
    assert [layer.output_finite for layer in found] == [True, False, False]
    assert [layer.input_finite for layer in found] == [True, True, False]
    assert [layer.grad_finite for layer in found] == [False, True, True]
    assert found[1].activation_rms == pytest.approx(model[0](vectors()).std().item(), rel=0.9)
    x = vectors()
    x[0, 0] = bad
    assert not sampled_once(model, torch.sum, x)[0].input_finite


def test_float64_and_complex_layers_keep_their_range():
    x = torch.full((3, 4), 1e200, dtype=torch.float64, requires_grad=True)
    found = sampled_once(nn.Sequential(nn.Identity()), lambda out: out.sum() * 1e-300, x)[0]
    assert found.activation_rms == pytest.approx(1e200)
    assert (found.grad_rms, found.output_finite) == (pytest.approx(1e-300), True)
    z = torch.full((3, 4), 3 + 4j, requires_grad=True)
    found = sampled_once(nn.Sequential(nn.Identity()), lambda out: out.abs().sum(), z)[0]
    assert (found.numel, found.activation_absmax) == (12, 4.0)
    assert found.activation_rms == pytest.approx(12.5**0.5)


def test_what_a_sample_cannot_tell_lets_no_rule_speak():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LSTM(6, 6))
    nn.init.constant_(model[0].bias, -100.0)
    for layer in sampled_once(model, lambda out: out[0].sum(), vectors()):
        assert (layer.dead_frac, layer.observations, layer.time_grad_rms) == (0.0, 0, ())
        assert layer.weight_norm is layer.weight_grad_norm is None


def test_only_the_first_micro_batch_counts_and_no_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    x, sampler = vectors(), Sampler(model)
    wanted = sampled_once(model, torch.sum, x)
    sampler.arm()
    with torch.no_grad():
        model(5 * x)
    model.eval()(7 * x).sum().backward()
    model.train()(x).sum().backward()
    model(9 * x).sum().backward()
    assert sampler.readings(sampler.packed().tolist()) == wanted


def test_a_frozen_part_in_evaluation_mode_is_read():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval(), nn.Linear(6, 1))
    assert [layer.name for layer in sampled_once(model, torch.sum, vectors())] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["checkpointed as a whole", "checkpointed", "reentrant"])
def test_what_a_checkpoint_computes_again_counts_once_in_forward_order(kind):
    torch.manual_seed(0)
    model = MODELS[kind][0]()
    found = sampled_once(model, torch.sum, vectors().requires_grad_())
    parts = [f"parts.{part}.{place}" for part in range(2) for place in range(3)]
    assert [layer.name for layer in found] == ["first", *parts, "last"]
    assert all(layer.grad_rms for layer in found)


def test_a_graph_that_is_kept_does_not_reach_into_the_next_step():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6)), vectors()
    sampler = Sampler(model)
    sampler.arm()
    kept = model(x).sum()
    kept.backward(retain_graph=True)
    sampler.disarm()
    sampler.arm()
    (1000 * kept).backward(retain_graph=True)
    model(x).sum().backward()
    (1000 * kept).backward()
    assert [layer.grad_rms for layer in sampler.readings(sampler.packed().tolist())] == [1.0]


def test_the_last_gradient_of_several_counts_and_a_loss_scale_is_divided_out():
    model, x = nn.Sequential(nn.Linear(6, 6)), vectors()
    sampler = Sampler(model)
    sampler.arm()
    output = model(x)
    (inner,) = torch.autograd.grad(output.sum(), model[0].weight, create_graph=True)
    (512 * (2 * output.sum() + 0 * inner.sum())).backward()
    assert sampler.readings(sampler.packed().tolist(), loss_scale=512.0)[0].grad_rms == pytest.approx(2.0)


def test_numbers_may_be_read_after_the_next_step_was_packed():
    torch.manual_seed(0)
    model, sampler = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), None
    sampler = Sampler(model)
    first = sampled_once(model, torch.sum, vectors(), sampler)
    layout = sampler.layout
    sampler.arm()
    model(torch.randn(2, 6)).sum().backward()
    early = sampler.packed().tolist()
    early_layout = sampler.layout
    assert len(sampled_once(model, torch.sum, torch.randn(90, 6), sampler)) == 2
    assert sampler.readings(early, early_layout)[0].numel == 12
    assert first[0].numel == 54
    assert layout.size == len(early)
    with pytest.raises(SettingError, match=r"numbers: got 3 numbers, want the \d+ of the layout"):
        sampler.readings([1.0, 2.0, 3.0])


def test_a_cell_in_a_long_loop_keeps_its_last_calls():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            for step in range(200):
                x = self.cell(x) * 0 + step
            return self.head(x)

    model = Loop()
    model.cell.register_forward_hook(lambda module, args, out: out * 0 + args[0].mean(), prepend=True)
    found = sampled_once(model, torch.sum, torch.zeros(3, 4))
    assert len(found) == 65
    assert [layer.activation_rms for layer in found[:64]] == pytest.approx([float(step) for step in range(135, 199)])
    assert (found[63].name, found[64].name) == ("cell#64", "head")


def test_no_more_than_2048_calls_are_kept():
    shared = [nn.Linear(2, 2, bias=False) for _ in range(40)]
    model = nn.Sequential(*(shared * 60))
    assert len(sampled_once(model, torch.sum, torch.ones(1, 2))) == 2048


class Waits(TorchDispatchMode):
    """Fails on what would wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), f"{function} waits for the device"
        assert "nonzero" not in str(function)
        return function(*args, **(kwargs or {}))


def test_packing_does_not_wait_and_takes_few_operations_however_many_layers():
    class Counting(Waits):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return super().__torch_dispatch__(function, types, args, kwargs)

    counts = []
    for depth in (3, 90):
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)), nn.Tanh())
        sampler = Sampler(model)
        sampled_once(model, torch.sum, vectors(), sampler)
        sampler.arm()
        with Waits():
            model(vectors()).sum().backward()
            with Counting() as mode:
                sampler.packed()
        counts.append(mode.count)
    assert counts[0] == counts[1] < 60


def hooks(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_nothing_is_attached_before_and_after():
    model = Tied()

    class Gives(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.weight

    model.gives = Gives()
    model.register_forward_hook(lambda module, args, out: out * module.gives(out))
    before = hooks(model)
    sampler = Sampler(model)
    assert hooks(model) == before
    sampler.arm()
    sampler.arm()
    assert sum(hooks(model)) == sum(before) + 4
    model(vectors()).sum().backward()
    sampler.disarm()
    assert hooks(model) == before
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    sampler.disarm()
    assert not sampler.armed


def test_copies_and_pickles_of_an_armed_model_have_hooks_that_do_nothing():
    model = nn.Sequential(nn.Linear(6, 6))
    sampler = Sampler(model)
    sampler.arm()
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied(vectors()).sum().backward()
    torch.load(file, weights_only=False)(vectors()).sum().backward()
    assert sampler.readings(sampler.packed().tolist()) == ()
    assert sampler.packed().shape == (0,)


@pytest.mark.parametrize("armed_first", [False, True])
def test_a_compiled_model_gives_no_readings_and_no_error(armed_first):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), vectors()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    sampler = Sampler(compiled)
    if not armed_first:
        compiled(x)
    assert sampled_once(compiled, torch.sum, x, sampler) == ()
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_a_transform_of_torch_func_is_left_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), vectors()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values, one):
        return torch.func.functional_call(model, values, (one,)).sum()

    wanted = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    sampler = Sampler(model)
    sampler.arm()
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    torch.func.grad(loss)(parameters, x)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    model(x).sum().backward()
    assert [layer.name for layer in sampler.readings(sampler.packed().tolist())] == ["0", "1"]
    sampler.arm()
    torch.func.grad(loss)(parameters, x)
    wanted = exact(model, torch.sum, x)
    found = sampled_once(model, torch.sum, x, sampler)
    assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_a_cuda_device_and_the_numbers_are_those_of_the_cpu():
    torch.manual_seed(0)
    model, x = saturating(), torch.randn(2000, 6)
    wanted = sampled_once(model, torch.sum, x)
    model, x = model.cuda(), x.cuda()
    sampler = Sampler(model)
    for _ in range(2):
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler.arm()
            model(x).sum().backward()
            numbers = sampler.packed()
            sampler.disarm()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert numbers.is_cuda
        found = sampler.readings(numbers.tolist())
        assert all(is_close(one, other, rel=1e-3) for one, other in zip(found, wanted, strict=True))
