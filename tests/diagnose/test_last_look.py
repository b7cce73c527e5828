"""A look at the model after the last step: it is judged as the readings are, and no message counts it as a step."""

import math
import random

import pytest
from made_readings import CONSTANT

from evengrad.diagnose import rules
from evengrad.nouns import (
    LayerReading,
    ParameterReading,
    Reading,
    Record,
    Setup,
    without_last_look,
)

BY_CODE = {rule.code: rule for rule in rules.ALL}
LAYERS = (
    LayerReading(name="front", kind="Linear", weighted=True, grad_rms=None),
    LayerReading(name="back", kind="Linear", weighted=True, grad_rms=1.0),
)
CLEARED = tuple(LayerReading(name=name, kind="Linear", weighted=True, grad_rms=1.0) for name in ("front", "back"))


def watched(steps, *, each=lambda step: {}, weight=lambda step: {}, **settings):
    """Steps with a rate and a moved weight, and a look at the end that has neither."""
    readings = []
    for step in range(steps + 1):
        loss = math.log(2) + 1e-3 * random.Random(step).gauss(0.0, 1.0)
        moved = {"update_ratio": 1e-6} if step < steps else {}
        shape = {"name": "front.weight", "numel": 16, "fan_in": 4, "weight_rms": 0.5, "grad_rms": 0.1}
        one = ParameterReading(**(shape | moved | {"moved_ratio": 0.1} | weight(step)))
        known = {"loss": loss, "grad_norms": (1.0,), "total_norm": 1.0, "ends": CONSTANT} | each(step)
        if step == steps:
            known |= {"lrs": (), "scale": 1.0}
        readings.append(Reading(step=step, weights=(one,), **({"lrs": (0.1,)} | known)))
    known = {"parameters": ("front.weight",), "setup": Setup(optimizer="SGD", numels=(16,))}
    return Record(readings=tuple(readings), **(known | settings))


def message_of(code, record):
    sign = BY_CODE[code].judge(record)
    assert sign.speaks
    return sign.message


def test_a_look_is_told_from_a_step_by_what_it_lacks():
    record = watched(5)
    assert [one.step for one in without_last_look(record.readings)] == [0, 1, 2, 3, 4]
    assert without_last_look(record.readings[:-1]) == record.readings[:-1]
    bare = [Reading(step=step, loss=1.0) for step in range(3)]
    assert without_last_look(bare) == bare  # nobody knows of any step
    left_out = [*record.readings[:-1], Reading(step=5, skipped=True)]
    assert without_last_look(left_out) == left_out
    assert without_last_look([]) == []


def test_without_rates_a_look_shows_by_weights_that_have_not_moved():
    record = watched(5, each=lambda step: {"lrs": ()})
    assert len(without_last_look(record.readings)) == 5


def test_gradients_that_were_clipped_are_counted_among_the_steps():
    message = message_of("EG604", watched(100, each=lambda step: {"scale": 1e-3}))
    assert message.startswith("100 of 100 gradients were clipped")


def test_a_front_without_a_gradient_is_told_of_the_steps_that_were_made():
    parameters = ("front.weight", "back.weight")
    record = watched(30, each=lambda step: {"layers": LAYERS, "grad_norms": (0.0, 1.0)}, parameters=parameters)
    assert "in any of 30 steps; `back` behind it has one" in message_of("EG108", record)


def test_gradients_that_are_cleared_are_told_of_the_steps_that_were_made():
    parameters = ("front.weight", "front.bias", "back.weight", "back.bias")
    record = watched(30, each=lambda step: {"layers": CLEARED, "grad_norms": (0.0,) * 4}, parameters=parameters)
    assert "to be zero at each of 30 steps" in message_of("EG111", record)


@pytest.mark.parametrize("steps", [250, 300])
def test_what_each_step_takes_of_the_weights_is_that_of_the_last_step(steps):
    """A decay of a fortieth a step holds the weights down; the look at the end has no rate to tell it by."""
    course = lambda step: {"weight_rms": 0.5 * max(0.45, 1 - step / 20)}  # noqa: E731
    record = watched(
        steps,
        weight=course,
        each=lambda step: {"lrs": (0.0025,)},
        setup=Setup(optimizer="AdamW", weight_decay=10.0, numels=(16,)),
    )
    assert message_of("EG606", record).startswith("each step takes 0.025 of the weights")
