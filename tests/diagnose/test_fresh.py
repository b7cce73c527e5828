"""Checkups of untrained models: causes are told where the loss is far above that of guessing, and only there."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad import checkup
from evengrad.diagnose import findings_of
from evengrad.diagnose._fresh import starts_far_above_guessing
from evengrad.nouns import Ends, Reading, Record


def fresh(loss, constant=2.0, step=0, count=1, ops=("NllLoss", "LogSoftmax")):
    reading = Reading(step=step, loss=loss, ends=Ends(constant_loss=constant, loss_ops=ops))
    return Record(readings=(reading,) * count)


@pytest.mark.parametrize(
    ("record", "sick"),
    [
        (fresh(20.0), True),
        (fresh(19.9), False),
        (fresh(20.0, step=1), False),
        (fresh(20.0, count=2), False),
        (fresh(float("inf")), False),
        (fresh(20.0, constant=None), False),
        (fresh(20.0, constant=0.0), False),
        (fresh(20.0, ops=("Add", "NllLoss", "LogSoftmax")), False),
        (fresh(None), False),
        (Record(), False),
    ],
)
def test_one_reading_of_an_untrained_model_at_ten_times_the_loss_of_guessing_is_sick(record, sick):
    assert starts_far_above_guessing(record) is sick


def looked_at(scale_weights=False, scale_input=1.0, scale_target=None):
    torch.manual_seed(0)
    out = 10 if scale_target is None else 1
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, out))
    if scale_weights:
        for layer in model[::2]:
            nn.init.normal_(layer.weight)
    inputs = torch.randn(64, 20) * scale_input
    if scale_target is None:
        return checkup(model, functional.cross_entropy, (inputs, torch.arange(64) % 10), counterfactuals=False)
    target = inputs.sum(1, keepdim=True) * scale_target
    return checkup(model, functional.mse_loss, (inputs, target), counterfactuals=False)


def test_weights_of_a_unit_normal_are_told_from_one_batch_and_as_torch_draws_them_not():
    assert "EG401" in [one.code for one in looked_at(scale_weights=True).findings]
    assert looked_at().findings == ()


def test_inputs_of_ten_thousand_are_told_from_one_batch():
    told = looked_at(scale_input=1e4)
    assert "EG701" in [one.code for one in told.findings]
    assert findings_of(Record()) == ()
