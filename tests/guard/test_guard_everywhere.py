"""Guards for optimizers that nobody handed over: met at the first step, named by the models in memory."""

import copy
import gc
import logging
import math
import weakref

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_hooks

from evengrad.clip import ByGlobalNorm
from evengrad.guard import Everywhere, Guard, _everywhere
from evengrad.guard._steps import guard_of
from evengrad.nouns import ModelError, SettingError, TooManySkipsError, UnguardedStepWarning
from evengrad.runlog import is_run, read

OFF = ByGlobalNorm(math.inf)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def train(model, optimizer, values=(1.0, 2.0, 3.0)):
    for value in values:
        optimizer.zero_grad()
        model(torch.full((3, 4), value)).square().sum().backward()
        optimizer.step()


def names_of(optimizer):
    return list(guard_of(optimizer).record.parameters)


def test_the_first_step_is_guarded_already():
    model, same = net(), net()
    with Everywhere(clip=0.5) as everywhere:
        train(model, torch.optim.SGD(model.parameters(), lr=1.0), [1.0])
    same(torch.ones(3, 4)).square().sum().backward()
    nn.utils.clip_grad_norm_(same.parameters(), 0.5)
    torch.optim.SGD(same.parameters(), lr=1.0).step()
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert everywhere.summary == "SGD of Sequential: 1 step, 1 clipped, 0 skipped"


@pytest.mark.parametrize("bad", [0, 2])
def test_a_step_that_is_not_finite_is_left_out_even_the_first(bad):
    model, same = net(), net()
    values = [1.0, 2.0, 3.0]
    with Everywhere(clip=OFF) as everywhere:
        train(model, torch.optim.AdamW(model.parameters()), [*values[:bad], math.nan, *values[bad:]])
    train(same, torch.optim.AdamW(same.parameters()), values)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert everywhere.summary == "AdamW of Sequential: 4 steps, 0 clipped, 1 skipped"


def test_several_models_and_optimizers_each_get_their_own(tmp_path):
    class Generator(nn.Linear): ...

    class Critic(nn.Linear): ...

    generator, critic = Generator(4, 4), Critic(4, 1)
    with Everywhere(log=tmp_path / "run") as everywhere:
        first = torch.optim.Adam(generator.parameters())
        second = torch.optim.Adam([*critic.parameters(), *generator.parameters()])
        for _ in range(3):
            critic(generator(torch.ones(2, 4))).sum().backward()
            first.step()
            second.step()
        assert names_of(first) == ["weight", "bias"]
        assert names_of(second) == ["Critic.weight", "Critic.bias", "Generator.weight", "Generator.bias"]
    assert everywhere.summary.splitlines() == [
        f"Adam of Generator: 3 steps, 0 clipped, 0 skipped; log: {tmp_path / 'run'}",
        f"Adam of Critic, Generator: 3 steps, 0 clipped, 0 skipped; log: {tmp_path / 'run-2'}",
    ]
    assert [len(read(tmp_path / name).readings) for name in ("run", "run-2")] == [3, 3]
    assert read(tmp_path / "run-2").complete


def test_an_optimizer_with_a_guard_is_left_alone(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = Guard(model, optimizer, clip=3.0)
    with Everywhere(clip=1.0) as everywhere:
        train(model, optimizer)
        assert guard_of(optimizer) is own
    assert own.step == 3
    assert len(optimizer._optimizer_step_pre_hooks) == 1, "and it stays when the context ends"
    assert everywhere.summary == "SGD: left alone: it has a guard of its own"
    assert not caplog.records


def test_an_optimizer_inside_a_guarded_one_is_left_alone():
    class Outer(torch.optim.Optimizer):
        def __init__(self, parameters):
            parameters = list(parameters)
            super().__init__(parameters, {})
            self.inner = torch.optim.SGD(parameters, lr=0.1)

        def step(self, closure=None):
            self.inner.step()

    model, other = net(), net(1)
    with Everywhere() as everywhere:
        optimizer = Outer(model.parameters())
        train(model, optimizer)
        train(other, torch.optim.SGD(other.parameters(), lr=0.1))
        assert guard_of(optimizer).step == 3
        assert not optimizer.inner._optimizer_step_pre_hooks
    lines = everywhere.summary.splitlines()
    assert lines[0] == "Outer of Sequential: 3 steps, 0 clipped, 0 skipped"
    assert lines[1] == "SGD: left to the guard of Outer, in whose step it steps"
    assert lines[2] == "SGD of Sequential: 3 steps, 0 clipped, 0 skipped"


def test_an_optimizer_after_one_whose_step_raised_is_guarded():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("out of memory")

    first, second = net(), net(1)
    with Everywhere():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                train(first, Raises(first.parameters(), lr=0.1), [1.0])
        optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
        train(second, optimizer)
        assert guard_of(optimizer).step == 3


def test_the_inner_optimizer_of_a_plain_wrapper_is_guarded():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

        def step(self):
            self.optimizer.step()

    model = net()
    with Everywhere() as everywhere:
        train(model, Wrapper(torch.optim.AdamW(model.parameters())))
    assert everywhere.summary == "AdamW of Sequential: 3 steps, 0 clipped, 0 skipped"


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
def test_steps_with_a_closure_go_on_are_warned_of_once_and_counted(kind):
    def run(model):
        optimizer = kind(model.parameters(), lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).square().sum()
            loss.backward()
            return loss

        return [optimizer.step(closure).item() for _ in range(4)]

    plain = run(net())
    with Everywhere() as everywhere, pytest.warns(UnguardedStepWarning, match="closure") as said:
        assert run(net()) == plain
    assert len(said) == 1
    assert everywhere.summary.endswith(": 4 steps, 0 clipped, 0 skipped, 4 not guarded (step with a closure)")


@pytest.mark.parametrize("error", [ModelError("model", came="shards", wanted="whole"), ValueError("model:\nshards")])
def test_an_optimizer_that_the_guard_refuses_is_said_once_and_goes_on(monkeypatch, caplog, error):
    def refuses(*args, **kwargs):
        raise error

    model, same = net(), net()
    with Everywhere() as everywhere:
        with monkeypatch.context() as patch:
            patch.setattr(_everywhere, "Guard", type("Guard", (), {"__new__": refuses}))
            optimizer = torch.optim.AdamW(model.parameters())
            train(model, optimizer)
        train(model, optimizer)
    train(same, (twin := torch.optim.AdamW(same.parameters())))
    train(same, twin)
    assert torch.equal(model[0].weight, same[0].weight)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("AdamW of Sequential: not guarded: ")
    assert "shards" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert everywhere.summary.startswith("AdamW of Sequential: not guarded: ")


def test_an_optimizer_is_guarded_without_a_log_where_none_can_be_written(tmp_path, caplog):
    (tmp_path / "run").write_text("mine")
    model = net()
    with Everywhere(log=tmp_path / "run", clip=1e-3) as everywhere:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "without a run log" in caplog.text
    assert everywhere.summary == "SGD of Sequential: 3 steps, 3 clipped, 0 skipped"
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("fused", [True, False])
def test_a_grad_scaler_finds_its_scale_as_without(fused):
    def run(model):
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        for value in (1.0, math.inf, 2.0, 3.0, 4.0, math.nan, 5.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((3, 4), value)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        return [scaler.get_scale(), *(parameter.tolist() for parameter in model.parameters())]

    plain = run(net())
    with Everywhere(clip=OFF):
        assert run(net()) == plain
    assert plain[0] == 2.0**15, "halved twice, doubled once"


def test_sparse_gradients_are_clipped():
    def run(model, optimizer, clip):
        model(torch.tensor([1, 1, 3])).sum().backward()
        if clip:
            norm = model.weight.grad.to_dense().norm()
            model.weight.grad *= 0.5 / (norm + 1e-6)
        optimizer.step()
        return model.weight.detach().clone()

    def made():
        torch.manual_seed(0)
        return nn.Embedding(5, 2, sparse=True)

    by_hand = made()
    expected = run(by_hand, torch.optim.SGD(by_hand.parameters(), lr=1.0), clip=True)
    guarded = made()
    with Everywhere(clip=0.5):
        torch.testing.assert_close(run(guarded, torch.optim.SGD(guarded.parameters(), lr=1.0), clip=False), expected)


def test_a_copied_optimizer_and_a_new_parameter_group_are_guarded_too():
    model, more = net(), nn.Linear(2, 2)
    with Everywhere(clip=OFF) as everywhere:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer)
        both = copy.deepcopy([model, optimizer])
        train(*both)
        assert names_of(both[1]) == names_of(optimizer)
        optimizer.add_param_group({"params": list(more.parameters())})
        train(nn.Sequential(model, more), optimizer, [math.nan])
    assert more.weight.isfinite().all()
    assert [line.split(": ")[1] for line in everywhere.summary.splitlines()] == [
        "4 steps, 0 clipped, 1 skipped",
        "3 steps, 0 clipped, 0 skipped",
    ]


def test_nothing_lives_longer_and_the_counts_stay():
    with Everywhere(clip=1e-3) as everywhere:
        for seed in range(8):
            model = net(seed)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            train(model, optimizer, [1.0, math.nan])
        alive = [weakref.ref(model), weakref.ref(optimizer)]
        del model, optimizer
        gc.collect()
        assert [one() for one in alive] == [None, None]
    lines = everywhere.summary.splitlines()
    assert lines[0] == "SGD of Sequential: 2 steps, 1 clipped, 1 skipped"
    assert len(lines) == 7
    assert lines[-1] == "and 2 more optimizers: 4 steps, 2 clipped, 2 skipped"


def test_too_many_skips_in_a_row_end_the_run_and_are_counted(tmp_path):
    model = net()
    everywhere = Everywhere(max_consecutive_skips=2, log=tmp_path / "run")
    with pytest.raises(TooManySkipsError, match="3 skipped steps in a row"), everywhere:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), [1.0, *[math.nan] * 9])
    assert everywhere.summary.startswith("SGD of Sequential: 4 steps, 0 clipped, 3 skipped")
    record = read(tmp_path / "run")
    assert len(record.readings) == 4
    assert not record.complete, "the run did not end by itself"


def test_outside_of_the_context_nothing_is_guarded():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = [dict(torch_hooks._global_optimizer_pre_hooks), dict(torch_hooks._global_optimizer_post_hooks)]
    with Everywhere() as everywhere:
        train(model, optimizer)
        assert len(torch_hooks._global_optimizer_pre_hooks) == len(hooks[0]) + 1
    assert [torch_hooks._global_optimizer_pre_hooks, torch_hooks._global_optimizer_post_hooks] == hooks
    assert not optimizer._optimizer_step_pre_hooks
    train(model, optimizer)
    assert "3 steps" in everywhere.summary


def test_no_hook_is_global_or_stays_and_the_random_state_is_left_alone():
    def hooks():
        kinds = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_hooks")
        return [dict(getattr(nn.modules.module, kind)) for kind in kinds]

    before, model = hooks(), net()
    with Everywhere():
        state = torch.get_rng_state()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert torch.equal(torch.get_rng_state(), state)
        assert hooks() == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any(one._backward_hooks or one._post_accumulate_grad_hooks for one in model.parameters())


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_step_runs_as_without():
    def run(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            step()
        return model[0].weight.tolist()

    plain = run(net())
    torch.compiler.reset()
    with Everywhere(clip=OFF):
        assert run(net()) == plain


def test_no_optimizer_is_said():
    with Everywhere() as everywhere:
        net()
    assert everywhere.summary == "no step of a torch optimizer was seen: nothing was guarded"
    assert everywhere.rank == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": -1.0}, "max_norm: got -1.0"),
        ({"clip": "off"}, "clip: got 'off'"),
        ({"max_consecutive_skips": -1}, "max_consecutive_skips: got -1"),
        ({"max_consecutive_skips": True}, "max_consecutive_skips: got True"),
    ],
)
def test_a_bad_setting_is_refused_at_once(settings, said):
    with pytest.raises(SettingError, match=said):
        Everywhere(**settings)


def test_the_log_is_where_the_program_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    everywhere = Everywhere(log="runs/a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = net()
    with everywhere:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert is_run(tmp_path / "runs" / "a")
