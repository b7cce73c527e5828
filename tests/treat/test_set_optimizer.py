"""Single settings of the optimizer: which groups, what stays, what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from evengrad.nouns import SettingError, TreatmentError
from evengrad.treat import SetOptimizer


def pasted(code, **names):
    exec(compile(code, "pasted", "exec"), names)
    return names


def adamw(model):
    weights = [value for value in model.parameters() if value.dim() > 1]
    rest = [value for value in model.parameters() if value.dim() == 1]
    groups = [{"params": weights, "weight_decay": 5.0}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, eps=1.0, betas=(0.8, 0.9999))


def settings_of(optimizer):
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("treatment", "wanted", "spared"),
    [
        (SetOptimizer(eps=1e-8), {"eps": 1e-8}, ()),
        (SetOptimizer(weight_decay=0.01), {"weight_decay": 0.01}, (1,)),
        (SetOptimizer(beta2=0.95), {"betas": (0.8, 0.95)}, ()),
        (SetOptimizer(), {"eps": 1e-8, "weight_decay": 0.01, "betas": (0.9, 0.999)}, ()),
    ],
)
def test_what_is_set_is_set_in_every_group_that_has_it_and_the_rest_stays(task, treatment, wanted, spared):
    treated = treatment.treat_task(replace(task, optimizer=adamw))
    model = task.model()
    made = treated.subject.optimizer(model)
    by_hand = pasted(treated.code, optimizer=adamw(model))["optimizer"]
    for optimizer in (made, by_hand):
        for place, (group, before) in enumerate(zip(settings_of(optimizer), settings_of(adamw(model)), strict=True)):
            new = {} if place in spared else wanted
            new = {key: value for key, value in new.items() if before[key] or key != "weight_decay"}
            assert group == before | new
    assert isinstance(made, torch.optim.AdamW)
    assert all(" -> " in change for change in treated.changes)


def test_an_epsilon_of_one_slows_adam_down_until_it_is_set(task):
    def loss_after(factory):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = factory(model)
        data = torch.randn(64, 3)
        target = data.sum(1, keepdim=True)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (1e-3 * (model(data) - target).square()).mean()  # small gradients
            loss.backward()
            optimizer.step()
        return loss.item()

    def slow(model):
        return torch.optim.Adam(model.parameters(), lr=0.03, eps=1.0)

    cured = SetOptimizer(eps=1e-8).treat_task(replace(task, optimizer=slow)).subject.optimizer
    assert loss_after(cured) < 1e-3 * loss_after(slow)


def test_decay_is_given_to_all_where_none_has_any(task):
    plain = replace(task, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = SetOptimizer(weight_decay=0.5).treat_task(plain).subject.optimizer(task.model())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5]


@pytest.mark.parametrize(
    ("treatment", "said"),
    [
        (SetOptimizer(momentum=0.9), "AdamW, which has no momentum"),
        (SetOptimizer(eps=1.0), "AdamW with these settings"),
    ],
)
def test_a_setting_that_is_not_there_or_changes_nothing_is_refused(task, treatment, said):
    with pytest.raises(TreatmentError, match=said):
        treatment.treat_task(replace(task, optimizer=adamw))


def test_default_settings_are_not_set_again(task):
    with pytest.raises(TreatmentError, match="SGD with these settings"):
        SetOptimizer().treat_task(replace(task, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)))


@pytest.mark.parametrize("settings", [{"eps": -1.0}, {"momentum": 1.0}, {"weight_decay": float("inf")}, {"beta2": 1.5}])
def test_a_number_out_of_range_is_named(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        SetOptimizer(**settings)
