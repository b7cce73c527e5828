"""Rules of non-finite numbers, by how the run stood before: out of nothing, after growth, with broken weights."""

import math

import pytest
import torch
from torch import nn

from evengrad import Guard
from evengrad.diagnose import findings_of, rules
from evengrad.diagnose._onset import broken_by, came_out_of_nothing, no_epsilon
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, Setup, TensorReading

NAN = math.nan
RULE = {rule.code: rule for rule in rules.ALL}
GRAPH = Ends(loss_ops=("Mean", "Log", "Softmax"))


def run(*last, norms=(1.0,) * 30, losses=(2.0,) * 30, dtype="float32", setup=None):
    steps = [
        Reading(step=at, loss=loss, total_norm=norm, grad_norms=(norm,), ends=GRAPH if at == 20 else None)
        for at, (norm, loss) in enumerate(zip(norms, losses, strict=True))
    ]
    return Record(readings=(*steps, *last), parameters=("0.weight",), dtype=dtype, setup=setup)


def broken(step=30, loss=NAN, **settings):
    return Reading(step=step, loss=loss, total_norm=NAN, grad_norms=(NAN,), **settings)


def signs(code, record):
    return RULE[code].sign(record.readings[-1], record)


@pytest.mark.parametrize(
    ("norms", "losses", "dtype", "nothing"),
    [
        ((1.0,) * 30, (2.0,) * 30, "float32", True),
        ((1.0,) * 29 + (9.9,), (2.0,) * 30, "float32", True),
        ((1.0,) * 29 + (10.1,), (2.0,) * 30, "float32", False),
        ((1.0,) * 30, (2.0,) * 29 + (20.1,), "float32", False),
        ((1.0,) * 30, (2.0,) * 30, "float16", False),
        ((1.0,) * 5, (2.0,) * 5, "float32", True),
        ((1.0,) * 4, (2.0,) * 4, "float32", False),
        ((1.0,) * 29 + (NAN,), (2.0,) * 30, "float32", False),
    ],
)
def test_nothing_has_grown_where_the_last_steps_are_within_ten_times_of_the_usual(norms, losses, dtype, nothing):
    record = run(broken(), norms=norms, losses=losses, dtype=dtype)
    assert came_out_of_nothing(record.readings[-1], record) is nothing


def test_a_loss_that_breaks_out_of_nothing_on_a_step_that_was_not_sampled_is_laid_to_batch_or_operation():
    told = findings_of(run(broken()))
    assert [(one.code, one.follows) for one in told] == [("EG203", ()), ("EG202", ("EG203",))]
    assert "the batch of step 30" in told[0].cause
    assert "a logarithm" in told[0].cause
    assert "ordinary, so nothing has grown" in told[0].message
    assert all(one.cures == () for one in told)


def test_a_loss_that_has_grown_until_it_broke_keeps_the_cures_of_growth():
    grown = run(broken(), norms=[2.0**at for at in range(30)], losses=[2.0**at for at in range(30)])
    assert signs("EG203", grown).cures is None
    assert signs("EG203", grown).cause == ""
    assert signs("EG202", grown).cures is None


def test_a_finite_loss_with_a_gradient_that_breaks_out_of_nothing_has_an_infinite_slope():
    sign = signs("EG202", run(broken(loss=2.0)))
    assert "the slope of an operation" in sign.cause
    assert "the loss takes a logarithm" in sign.cause
    assert sign.cures == ()


def test_a_loss_that_nobody_knows_is_not_told_while_the_gradient_is_finite():
    unknown = run(Reading(step=30, loss=NAN, total_norm=1.0, grad_norms=(1.0,)))
    assert signs("EG203", unknown) is None
    assert signs("EG203", run(Reading(step=30, loss=NAN))) is None


def test_weights_that_a_step_has_broken_are_not_laid_to_the_module_or_the_loss():
    layers = (LayerReading(name="0", kind="Linear", weighted=True, output_finite=False),)
    after = run(broken(loss=2.0), broken(31, layers=layers))
    sign = signs("EG201", after)
    assert "the gradient of step 30 was not finite and that step was done" in sign.message
    assert "out of a finite input" not in sign.message
    assert sign.cures == ()
    skipped = run(broken(loss=2.0, skipped=True), broken(31, layers=layers))
    assert broken_by(skipped.readings[-1], skipped) is None
    assert "out of a finite input" in signs("EG201", skipped).message
    assert signs("EG203", run(broken(loss=2.0), broken(31))) is None


@pytest.mark.parametrize(
    ("seen", "says", "cause"),
    [
        ((TensorReading(name="input"),), "the code in forward before `0`", "a mistake in the code"),
        ((TensorReading(name="input", finite_frac=0.9),), "look at the data", "the data holds NaN"),
        ((), "look at the data, and at what forward does", ""),
    ],
)
def test_an_input_of_the_first_module_is_laid_to_the_data_only_if_the_data_is_not_finite(seen, says, cause):
    layers = (LayerReading(name="0", kind="Linear", input_finite=False, output_finite=False),)
    sign = signs("EG201", run(broken(layers=layers, ends=Ends(inputs=seen))))
    assert says in sign.message
    assert sign.cause.startswith(cause)
    assert bool(sign.cause) == bool(cause)


def test_an_epsilon_that_is_zero_in_the_dtype_of_the_weights_is_none():
    small, large = Setup(optimizer="Adam", eps=1e-8), Setup(optimizer="Adam", eps=1e-7)
    for eps in (1e-8, 1e-7, 2.9e-8, 3.1e-8):
        setup = Setup(optimizer="Adam", eps=eps)
        zero = torch.tensor(eps, dtype=torch.float16).item() == 0.0
        assert bool(no_epsilon(Record(dtype="float16", setup=setup))) == zero
    assert no_epsilon(Record(dtype="float32", setup=small)) == ""
    assert no_epsilon(Record(dtype="float16", setup=large)) == ""
    assert no_epsilon(Record()) == ""
    weights = (ParameterReading(name="0.weight", dtype="float16", fan_in=4),)
    layers = (LayerReading(name="0", kind="Linear", weighted=True, output_finite=False),)
    sign = signs("EG201", run(broken(layers=layers, weights=weights), dtype="float16", setup=small))
    assert "the step is 0 / 0" in sign.cause


@pytest.mark.parametrize("bad", [True, False])
def test_a_real_training_with_one_broken_batch_is_told_as_one_root_with_its_step(bad):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    guard = Guard(model, optimizer, clip=False, tell=False)
    for step in range(60):
        inputs = torch.randn(16, 4)
        target = inputs.sum(1, keepdim=True)
        target[0] = NAN if bad and step == 33 else 0.0
        optimizer.zero_grad()
        guard.loss(nn.functional.mse_loss(model(inputs), target)).backward()
        optimizer.step()
    guard.detach()
    told = guard.findings()
    assert bool(told) == bad
    assert [one.code for one in told if not one.follows] == ["EG203"] * bad
    assert not bad or "the batch of step 33" in told[0].cause
