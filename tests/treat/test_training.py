"""Treatments of the training: clipping, learning rate, optimizer, and several at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pasted_code import ran
from torch import nn

from evengrad.clip import policy_of
from evengrad.nouns import SettingError, TaskError, TreatmentError
from evengrad.treat import (
    ClipGradients,
    Combined,
    Reinitialize,
    ScaleLearningRate,
    SwapActivation,
    SwapOptimizer,
    bound_from,
    factor_from_update_ratio,
)


def two_groups(model):
    weights = [value for value in model.parameters() if value.dim() > 1]
    biases = [value for value in model.parameters() if value.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.1, "lr": 0.3}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.2, maximize=True)


def test_clipping_is_set_and_the_old_bound_is_said(task):
    treated = ClipGradients(max_norm=0.5).treat_task(replace(task, clip=9.0))
    assert treated.subject.clip == 0.5
    assert "0.5" in treated.changes[0]
    assert "instead of 9.0" in treated.changes[0]


def test_clipping_that_is_there_already_is_refused(task):
    with pytest.raises(TreatmentError, match="another bound"):
        ClipGradients(max_norm=2.0).treat_task(replace(task, clip=2))


def test_adaptive_clipping_is_the_default_policy_and_needs_no_number(task):
    treated = ClipGradients(policy="adaptive").treat_task(replace(task, clip=9.0))
    assert policy_of(treated.subject.clip) == policy_of(None)
    assert "unusual" in treated.changes[0]
    with pytest.raises(TreatmentError, match="clips at adaptive"):
        ClipGradients(policy="adaptive").treat_task(treated.subject)
    with pytest.raises(SettingError, match="None where the policy is adaptive"):
        ClipGradients(policy="adaptive", max_norm=1.0)
    with pytest.raises(SettingError, match="policy: got 'value'"):
        ClipGradients(policy="value")
    assert ClipGradients(policy="norm").treat_task(task).subject.clip == ClipGradients().treat_task(task).subject.clip


def test_the_pasted_adaptive_clipping_is_a_guard_that_clips(task):
    model = nn.Linear(3, 3)
    names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}
    ran(ClipGradients(policy="adaptive").treat_task(task).code, **names)
    moved = []
    for factor in (1.0, 1.0, 1.0, 1e6):
        before = model.weight.detach().clone()
        names["optimizer"].zero_grad()
        (factor * model(torch.ones(2, 3))).sum().backward()
        names["optimizer"].step()
        moved.append((model.weight - before).norm().item())
    assert moved[3] < 10 * moved[0]


def test_a_bound_is_the_usual_norm_before_the_first_explosion():
    rising = [1.0, 1.1, 0.9, 1.3, 1.2, 400.0, 1e9, float("inf"), 3.0]
    assert bound_from(rising) == pytest.approx(np.median(rising[:5]), rel=0.05)
    assert bound_from([0.0, 0.02, 0.03, 0.025]) == pytest.approx(0.025)
    assert bound_from([5.0, float("nan"), 0.1]) == 5.0
    assert bound_from(iter([7.0])) == 7.0


@pytest.mark.parametrize("norms", [[], [0.0], [float("nan"), 1.0]])
def test_a_bound_needs_a_norm(norms):
    with pytest.raises(SettingError, match="norms: got none"):
        bound_from(norms)


def test_a_bound_from_a_record_lets_usual_steps_through_and_no_spike():
    norms = np.random.default_rng(0).lognormal(0.0, 0.3, 200)
    bound = bound_from([*norms, 1e4])
    assert 0.3 < np.mean(norms <= bound) < 0.7
    assert np.minimum(bound / norms, 1.0).min() > 0.3


@pytest.mark.parametrize("decades", np.linspace(-8, 3, 23))
def test_a_factor_brings_the_ratio_to_a_thousandth_and_is_one_three_or_a_power_of_ten(decades):
    ratio = 10.0**decades
    factor = factor_from_update_ratio(ratio)
    assert 0.5 < ratio * factor / 1e-3 < 2.0
    assert f"{factor:.0e}"[0] in "13"
    assert factor == float(f"{factor:.0e}")
    assert factor_from_update_ratio(ratio, target=ratio) == 1.0


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_that_is_none_is_named(ratio):
    with pytest.raises(SettingError, match="ratio: got"):
        factor_from_update_ratio(ratio)


def test_the_pasted_clipping_clips(task):
    model = nn.Linear(3, 3)
    (1e6 * model(torch.ones(2, 3))).sum().backward()
    ran(ClipGradients(max_norm=0.5).treat_task(task).code, model=model)
    assert torch.cat([value.grad.flatten() for value in model.parameters()]).norm().item() == pytest.approx(
        0.5, rel=1e-3
    )


def test_every_learning_rate_is_scaled_and_said(task):
    treated = ScaleLearningRate(factor=0.01).treat_task(replace(task, optimizer=two_groups))
    optimizer = treated.subject.optimizer(task.model())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.003, 0.002])
    assert treated.changes == ("learning rate 0.3, 0.2 -> 0.003, 0.002",)
    by_hand = ran(treated.code, optimizer=two_groups(task.model()))["optimizer"]
    assert [group["lr"] for group in by_hand.param_groups] == [group["lr"] for group in optimizer.param_groups]


def test_a_schedule_starts_from_the_scaled_rate(task):
    optimizer = ScaleLearningRate(factor=0.1).treat_task(task).subject.optimizer(task.model())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert schedule.get_last_lr() == pytest.approx([0.05])


def test_a_learning_rate_in_a_tensor_is_scaled(task):
    tensor = replace(task, optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5)))
    optimizer = ScaleLearningRate(factor=0.1).treat_task(tensor).subject.optimizer(task.model())
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("to", "kind", "lr"),
    [
        ("adamw", torch.optim.AdamW, 1e-3),
        ("adam", torch.optim.Adam, 1e-3),
        ("sgd", torch.optim.SGD, 1e-2),
        ("rmsprop", torch.optim.RMSprop, 1e-2),
        ("nadam", torch.optim.NAdam, 2e-3),
        ("radam", torch.optim.RAdam, 1e-3),
        ("adagrad", torch.optim.Adagrad, 1e-2),
    ],
)
def test_a_new_optimizer_keeps_groups_weight_decay_and_direction(task, to, kind, lr):
    grouped = replace(task, optimizer=two_groups, steps=10_000)
    treated = SwapOptimizer(to=to).treat_task(grouped)
    model = task.model()
    made = treated.subject.optimizer(model)
    by_hand = ran(treated.code, optimizer=two_groups(model))["optimizer"]
    for optimizer in (made, by_hand):
        assert type(optimizer) is kind
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        assert all(group["maximize"] for group in optimizer.param_groups)
    assert made.param_groups[0]["params"][0] is model[0].weight
    assert to == "sgd" or kind([nn.Parameter(torch.zeros(1))]).defaults["lr"] == lr


def test_the_optimizer_that_is_there_already_is_refused(task):
    adam = SwapOptimizer(to="adam", lr=0.1).treat_task(task).subject
    with pytest.raises(TreatmentError, match=r"Adam with learning rate 0\.1"):
        SwapOptimizer(to="adam", lr=0.1).treat_task(adam)
    usual = replace(task, optimizer=lambda model: torch.optim.Adam(model.parameters(), betas=(0.8, 0.9)), steps=100)
    with pytest.raises(TreatmentError, match=r"Adam with learning rate 0\.001"):
        SwapOptimizer(to="adam").treat_task(usual)
    slower = SwapOptimizer(to="adam").treat_task(replace(adam, steps=10_000)).subject
    assert slower.optimizer(task.model()).defaults["lr"] == 1e-3


def distance_of(task, kind, steps):
    """Measure how far a weight gets under a constant gradient: no other gradient leads further."""
    plain = replace(task, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), steps=steps)
    treated = SwapOptimizer(to=kind).treat_task(plain)
    model = treated.subject.model()
    optimizer = treated.subject.optimizer(model)
    weight = next(model.parameters())
    before = weight.detach().clone()
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return (before - weight.detach()).max().item()


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize("steps", [200, 700, 2000])
def test_in_a_short_training_adam_moves_a_weight_by_two_and_not_by_a_fraction(task, kind, steps):
    assert distance_of(task, kind, steps) == pytest.approx(2.0, rel=0.05)


def test_in_a_very_short_training_adam_has_ten_times_its_usual_rate_and_no_more(task):
    assert distance_of(task, "adam", 50) == pytest.approx(50 * 0.01, rel=0.05)


def test_a_gradient_descent_is_no_faster_in_a_short_training(task):
    short, long = (SwapOptimizer(to="sgd").treat_task(replace(task, steps=steps)).code for steps in (50, 5000))
    assert short == long


def broken(_model=None):
    raise ValueError("no data today")


def test_a_task_that_cannot_be_built_is_named(task):
    for treatment in (Reinitialize(), ScaleLearningRate()):
        with pytest.raises(TaskError, match=r"Task\.model: got ValueError: no data today"):
            treatment.treat_task(replace(task, model=broken))
    with pytest.raises(TaskError, match=r"Task\.optimizer: got ValueError"):
        ScaleLearningRate().treat_task(replace(task, optimizer=broken))
    with pytest.raises(TaskError, match=r"Task\.model: got int"):
        Reinitialize().treat_task(replace(task, model=lambda: 3))
    with pytest.raises(TaskError, match=r"Task\.optimizer: got str"):
        SwapOptimizer().treat_task(replace(task, optimizer=lambda model: "sgd"))


def test_combined_treatments_change_model_and_training_in_their_order(task):
    parts = (SwapActivation(to="tanh"), Reinitialize(), ClipGradients(), SwapOptimizer(to="sgd", lr=0.25))
    combined = Combined(parts)
    assert combined.label == " + ".join(part.label for part in parts)
    assert combined.effort == 3 + 2 + 1 + 2
    assert not combined.changes_model
    treated = combined.treat_task(task)
    model = treated.subject.model()
    assert isinstance(model[1], nn.Tanh)
    assert treated.subject.clip == 1.0
    assert treated.subject.optimizer(model).defaults["momentum"] == 0.9
    assert any("for the tanh that follows" in change for change in treated.changes)
    assert len(treated.changes) == 5
    names = ran(treated.code, model=task.model(), optimizer=task.optimizer(model))
    assert isinstance(names["model"][1], nn.Tanh)
    assert isinstance(names["optimizer"], torch.optim.SGD)


def test_combining_needs_two_treatments():
    with pytest.raises(SettingError, match="two or more treatments"):
        Combined((Reinitialize(),))


def test_a_treated_task_learns_what_the_untreated_one_cannot(task):
    batch = torch.randn(64, 6)
    target = batch[:, :1]
    final = []
    cure = Combined((SwapActivation(to="tanh"), Reinitialize(), SwapOptimizer(to="adam", lr=0.01)))
    for this in (task, cure.treat_task(task).subject):
        torch.manual_seed(0)
        model = this.model()
        optimizer = this.optimizer(model)
        for _ in range(100):
            optimizer.zero_grad()
            loss = this.loss(model(batch), target)
            loss.backward()
            optimizer.step()
        final.append(loss.item())
    assert final[0] > 0.8 * target.var().item()
    assert final[1] < 0.2 * target.var().item()


def batches_from_numpy():
    return [(torch.from_numpy(np.random.rand(4, 6)).float(), torch.zeros(4, 1))]


def test_data_that_draws_from_numpy_leaves_its_random_state(task):
    treatment = Reinitialize(data_driven=True)
    factory = treatment.treat_task(replace(task, train=batches_from_numpy)).subject.model
    before = np.random.get_state()[1].copy(), np.random.get_state()[2]
    factory()
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert before[1] == np.random.get_state()[2]


def test_the_rate_that_a_schedule_remembers_is_scaled_too(task):
    def with_schedule(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        return optimizer

    treated = ScaleLearningRate(factor=0.1).treat_task(replace(task, optimizer=with_schedule))
    for optimizer in (
        treated.subject.optimizer(task.model()),
        ran(treated.code, optimizer=with_schedule(task.model()))["optimizer"],
    ):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
        assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.05)


def test_another_optimizer_with_the_same_rate_is_not_refused(task):
    treated = SwapOptimizer(to="adam", lr=0.5).treat_task(task)
    assert isinstance(treated.subject.optimizer(task.model()), torch.optim.Adam)
