"""The loss scaled against gradients that are too small for float16."""

from dataclasses import replace

import pytest
import torch
from pasted_code import ran
from torch import nn

from evengrad.nouns import SettingError, TreatmentError
from evengrad.treat import ScaleLoss


def weak_gradient(scale):
    """Differentiate a loss of 1e-7 through a layer that is computed in float16."""
    layer = nn.Linear(3, 1, bias=False)
    with torch.autocast("cpu", torch.float16):
        output = layer(torch.ones(1, 3)).float()
    (1e-8 * output.sum() * scale).backward()
    return layer.weight.grad / scale


def test_a_gradient_below_float16_is_zero_before_and_right_after():
    assert weak_gradient(1.0).abs().max().item() == 0.0
    assert weak_gradient(65536.0).flatten().tolist() == pytest.approx([1e-8] * 3, rel=1e-2)


@pytest.mark.parametrize(("scale", "wanted"), [(None, "dynamic"), (1024.0, 1024.0), (8, 8.0)])
def test_the_scale_is_set(task, scale, wanted):
    treated = ScaleLoss(scale=scale).treat_task(replace(task, autocast="float16"))
    assert treated.subject.loss_scale == wanted
    assert ("65536" if scale is None else f"{scale:g}") in treated.changes[0]


def test_the_pasted_code_divides_what_was_multiplied(task):
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    names = ran(ScaleLoss(scale=16.0).treat_task(task).code)
    (16.0 * layer(torch.ones(1, 3)).sum()).backward()
    names["unscale"](optimizer)
    assert layer.weight.grad.flatten().tolist() == [1.0] * 3
    assert "GradScaler" in ScaleLoss().treat_task(task).code
    compile(ScaleLoss().treat_task(task).code, "pasted", "exec")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"loss_scale": "dynamic"}, "loss_scale='dynamic'"), ({"autocast": "bfloat16"}, "in bfloat16")],
)
def test_a_task_that_has_a_scale_or_needs_none_is_refused(task, changes, said):
    with pytest.raises(TreatmentError, match=said):
        ScaleLoss().treat_task(replace(task, **changes))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_named(scale):
    with pytest.raises(SettingError, match="scale: got"):
        ScaleLoss(scale=scale)
