"""What a guard remembers: checkpoints, the run log, findings."""

import copy
import dataclasses
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from evengrad.clip import AbstractPolicy, ByGlobalNorm, ByZScore
from evengrad.clip.transforms import Target
from evengrad.guard import Guard
from evengrad.guard._program import Program
from evengrad.guard._saved import carried
from evengrad.nouns import SettingError
from evengrad.runlog import read


def setting(clip=None, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, Guard(model, optimizer, clip=clip, **settings)


def train(model, optimizer, guard, inputs):
    for x in inputs:
        optimizer.zero_grad()
        guard.loss(model(x).square().sum()).backward()
        optimizer.step()


def inputs():
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(5, 3, generator=generator) for _ in range(60)]
    data[20] = data[40] = torch.full((5, 3), math.nan)
    data[35], data[45] = 50 * data[35], 80 * data[45]
    return data


def plain(readings):
    """Write readings as text, in which NaN equals itself; without what compares with a step before the checkpoint."""
    return [repr(dataclasses.replace(one, layers=(), weights=(), ends=None, leftover=None)) for one in readings]


def test_a_resumed_run_goes_on_equal_to_the_bit():
    data = inputs()
    model, optimizer, guard = setting()
    train(model, optimizer, guard, data)
    first_model, first_optimizer, first = setting()
    train(first_model, first_optimizer, first, data[:30])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (first_model, first_optimizer, first)], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second_model, second_optimizer, second = setting()
    for part, state in zip((second_model, second_optimizer, second), saved, strict=True):
        part.load_state_dict(state)
    assert (second.step, second.skips) == (30, 1)
    train(second_model, second_optimizer, second, data[30:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second_model.parameters(), strict=True))
    assert plain(second.record.readings) == plain(guard.record.readings[30:])
    assert sum(reading.scale < 1 for reading in second.record.readings) >= 2
    assert (second.step, second.skips) == (60, 2)


def test_a_state_dict_is_a_copy():
    model, optimizer, guard = setting()
    train(model, optimizer, guard, inputs()[:5])
    saved = guard.state_dict()
    mean = float(saved["parts"][0]["memory"]["mean"])
    train(model, optimizer, guard, inputs()[5:10])
    assert float(saved["parts"][0]["memory"]["mean"]) == mean
    guard.load_state_dict(saved)
    train(model, optimizer, guard, inputs()[5:10])
    assert float(saved["parts"][0]["memory"]["mean"]) == mean


LONG = {name: torch.zeros(3) for name in ("seen", "mean", "var")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "state_dict: got version 2, want version 1 or older; install a newer evengrad"),
        ({"version": None}, "state_dict: got a dict without a version"),
        ({"parts": [{"kind": "ByMagic"}]}, "state_dict: got the state of ByMagic, want the state of ByZScore"),
        ({"parts": []}, "state_dict: got the state of nothing, want the state of ByZScore"),
        ({"parts": [{"kind": "ByZScore"}]}, "state_dict: got KeyError: 'memory'"),
        ({"parts": [{"kind": "ByZScore", "memory": {}}]}, r"state_dict: got ValueError: arrays called \[\]"),
        (
            {"parts": [{"kind": "ByZScore", "memory": {"seen": 1, "mean": 2, "var": 3}}]},
            "state_dict: got TypeError: a int",
        ),
        ({"parts": [{"kind": "ByZScore", "memory": LONG}]}, r"seen has the shape \(3,\), not \(1,\)"),
        (
            {"parameters": ["a", "b"]},
            "got the state of another model, with a, b, want one with 0.weight, 0.bias, 2.weight",
        ),
        ({"step": "x"}, "state_dict: got ValueError"),
        ({"lr_factor": None}, "state_dict: got TypeError"),
    ],
)
def test_a_foreign_state_dict_is_refused_and_changes_nothing(change, message):
    model, optimizer, guard = setting()
    train(model, optimizer, guard, inputs()[:3])
    before = guard.state_dict()
    with pytest.raises(SettingError, match=message):
        guard.load_state_dict({**before, **change})
    assert repr(guard.state_dict()) == repr(before)


def test_a_state_of_another_policy_is_refused():
    _, _, guard = setting(clip=1.0)
    with pytest.raises(SettingError, match="got the state of ByZScore, want the state of ByGlobalNorm"):
        guard.load_state_dict(setting()[2].state_dict())


def test_settings_may_change_between_runs():
    _, _, guard = setting(ByGlobalNorm(2.0))
    guard.load_state_dict(setting(ByGlobalNorm(1.0))[2].state_dict())
    assert "max_norm=2.0" in repr(guard)


class WithBoth(AbstractPolicy):
    """One number for the whole, one for each parameter, and a window that has two, as a model of two parameters."""

    def init(self, count, *, like=None):
        return {
            "whole": np.zeros(1, dtype=np.float32),
            "each": np.full(count, 9.0, dtype=np.float32),
            "window": np.zeros(2, np.float32),
        }

    def __call__(self, norms_P, state, signals=None):
        raise NotImplementedError


def program(names):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    rest = {"module": None, "last": False, "optimizer": optimizer, "group": optimizer.param_groups[0]}
    return Program((WithBoth(),), [Target(name=name, parameter=parameter, **rest) for name in names], None)


@pytest.mark.parametrize(
    ("old", "new", "each"),
    [
        ("ab", "bxa", [2.0, 9.0, 1.0]),
        ("ab", "ab", [1.0, 2.0]),
        ("ab", "ba", [2.0, 1.0]),
        ("ab", "b", [2.0]),
        ("a", "b", [9.0]),
        ("a", "ba", [9.0, 1.0]),
    ],
)
def test_a_state_per_parameter_is_carried_over_by_name_and_one_for_the_model_as_it_is(old, new, each):
    values = np.arange(1.0, len(old) + 1, dtype=np.float32)
    state = {"whole": np.array([5.0], dtype=np.float32), "each": values, "window": np.array([6.0, 7.0], np.float32)}
    (result,) = carried([state], list(old), program(new))
    assert result["window"].tolist() == [6.0, 7.0]
    assert result["whole"].tolist() == [5.0]
    assert result["each"].tolist() == each
    assert not np.shares_memory(result["each"], values)


def test_a_state_whose_length_does_not_fit_its_parameters_is_refused():
    state = WithBoth().init(1)
    with pytest.raises(ValueError, match=r"each has the shape \(1,\), not \(2,\)"):
        carried([state], ["a", "b"], program("a"))


def test_the_state_of_a_larger_model_may_be_loaded_for_a_single_parameter():
    model, optimizer, guard = setting()
    train(model, optimizer, guard, inputs()[:5])
    small = nn.Sequential(nn.Linear(3, 4, bias=False))
    other = Guard(small, torch.optim.AdamW(small.parameters(), lr=0.1))
    other.load_state_dict(guard.state_dict())
    assert other.step == 5
    assert other.state_dict()["parts"] == guard.state_dict()["parts"]


def test_a_run_log_holds_what_the_window_holds(tmp_path):
    model, optimizer, guard = setting(ByZScore(warmup_steps=10), log=tmp_path / "run")
    with guard:
        train(model, optimizer, guard, inputs())
    record = read(tmp_path / "run")
    assert record.parameters == guard.record.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert record.complete
    assert len(record.readings) == 60
    for logged, seen in zip(record.readings, guard.record.readings, strict=True):
        assert (logged.step, logged.skipped, logged.lrs) == (seen.step, seen.skipped, seen.lrs)
        assert logged.loss == pytest.approx(seen.loss, rel=1e-6, nan_ok=True)
        assert logged.scale == pytest.approx(seen.scale, rel=1e-6)
        assert logged.grad_norms == pytest.approx(seen.grad_norms, rel=1e-6, nan_ok=True)
    assert sum(reading.skipped for reading in record.readings) == 2


def test_a_parameter_added_after_the_log_was_opened_is_guarded_but_not_logged(tmp_path, caplog):
    model, optimizer, guard = setting(log=tmp_path / "run")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with guard:
        train(model, optimizer, guard, inputs()[:3])
    assert all(len(reading.grad_norms) == 4 for reading in read(tmp_path / "run").readings)
    assert len(guard.record.parameters) == 5
    assert caplog.text.count("guarded, but not in the log") == 1


def test_findings_are_what_the_rules_say_of_the_record():
    diagnose = pytest.importorskip("evengrad.diagnose")
    model, optimizer, guard = setting()
    train(model, optimizer, guard, inputs())
    assert guard.findings() == diagnose.findings_of(guard.record)


def test_a_run_that_an_exception_ended_is_not_called_complete(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(fails):
        with Guard(model, optimizer, log=tmp_path / str(fails)):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            if fails:
                raise RuntimeError("the data loader has died")

    train(fails=False)
    with pytest.raises(RuntimeError, match="died"):
        train(fails=True)
    assert read(tmp_path / "False").complete
    cut = read(tmp_path / "True")
    assert not cut.complete
    assert "did not end" in cut.note
    assert len(cut.readings) == 1


def test_the_state_of_a_model_of_another_width_is_refused():
    guard = setting()[2]
    wide = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    other = Guard(wide, torch.optim.Adam(wide.parameters()))
    with pytest.raises(
        SettingError, match=r"another model, where 0.weight has the shape \(4, 3\), want one with \(6, 3\)"
    ):
        other.load_state_dict(guard.state_dict())


def test_a_guarded_model_with_running_statistics_can_be_copied_and_pickled():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    guard = Guard(model, optimizer)
    twin = copy.deepcopy(model)
    thawed = pickle.loads(pickle.dumps(model))
    for other in (twin, thawed):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other[1].running_mean, model[1].running_mean)
    guard.detach()
    assert not model._load_state_dict_post_hooks
