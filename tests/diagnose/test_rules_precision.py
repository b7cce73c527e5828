"""Half precision: gradients below its smallest number, activations beyond its largest."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of, rules
from evengrad.diagnose._half import ran_in_float16
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, TensorReading
from evengrad.probe import probe

BY_CODE = {rule.code: rule for rule in rules.ALL}


def sign(code, **settings):
    reading = Reading(**settings)
    return BY_CODE[code].sign(reading, Record(readings=(reading,), parameters=("a", "b", "c")))


def judge(code, readings, **settings):
    return BY_CODE[code].judge(Record(readings=tuple(readings), parameters=("a", "b", "c"), **settings))


# --- EG204, EG205 ---


def half(tiny, zero, name="a", dtype="float16", fan_in=8):
    return ParameterReading(name=name, dtype=dtype, fan_in=fan_in, grad_tiny_frac=tiny, grad_zero_frac=zero)


KEPT = half(0.0, 0.0, name="head")


@pytest.mark.parametrize(
    ("weights", "speaks"),
    [
        ((half(0.1, 0.4), KEPT), True),
        ((half(0.1, 0.39), KEPT), False),
        ((half(0.6, 0.0), KEPT), True),
        ((half(0.01, 0.9), KEPT), False),  # rectifiers make zeros; hardly any number is near the end
        ((half(0.1, 0.4), half(0.1, 0.4, name="head")), False),
        ((half(0.1, 0.8, fan_in=0), KEPT), False),
        ((half(0.1, 0.8, dtype="bfloat16"), half(0, 0, dtype="float32")), None),
        ((half(None, None), half(None, None)), None),
        ((), None),
    ],
)
def test_underflow_is_half_of_a_gradient_lost_in_float16_and_some_of_it_on_the_edge(weights, speaks):
    seen = sign("EG204", weights=weights)
    assert (None if seen is None else seen.speaks) == speaks


GONE = {"weights": (half(0.0, 1.0), half(0.0, 1.0, name="b.bias", fan_in=0)), "grad_norms": (0.0, 0.0), "loss": 1e-6}
OFF = LayerReading(name="0", kind="ReLU", nonlinearity="relu", dead_frac=1.0)
ARRIVED = LayerReading(name="b", kind="Linear", weighted=True, grad_rms=1e-6)


@pytest.mark.parametrize(
    ("change", "speaks"),
    [
        ({}, True),
        ({"weights": (half(0.0, 1.0), half(0.0, 0.999))}, False),
        ({"weights": (half(0.0, 1.0), half(0.0, 1.0, dtype="float32"))}, False),
        ({"grad_norms": (0.0, 1e-7)}, False),
        ({"loss": 0.0}, False),
        ({"loss": math.nan}, False),
        ({"loss": None}, False),
        ({"layers": (OFF,)}, False),
        ({"layers": (ARRIVED,)}, False),
        ({"ends": Ends(softmax_size=1)}, False),
        ({"ends": Ends(cuts=("a detach in front of the loss",))}, False),
        ({"ends": Ends(softmax_size=10)}, True),
    ],
)
def test_a_gradient_that_is_all_zero_in_float16_is_underflow_unless_something_else_explains_it(change, speaks):
    reading = Reading(**GONE | change)
    seen = BY_CODE["EG204"].sign(reading, Record(readings=(reading,), parameters=("a", "b.bias")))
    assert (seen is not None and seen.speaks) == speaks
    assert not speaks or seen.where == ("a",)


def given_by(*numbers):
    return tuple(LayerReading(name="b", kind="Linear", weighted=True, activation_absmax=number) for number in numbers)


@pytest.mark.parametrize(
    ("numbers", "speaks"),
    [
        ((0.3330078125, 1.234375), True),
        ((0.3330078125, 1.234376), False),  # a number of float32 among them
        ((0.3330078125,), False),  # one may be so by chance
        ((0.333984375, 1.234375), False),  # bfloat16 is coarser
        ((0.3330078125, 1.234375, 0.0, math.inf), True),
        ((0.3330078125, 1e5), False),
    ],
)
def test_a_forward_in_float16_shows_by_its_numbers_under_autocast(numbers, speaks):
    weights = (half(0.0, 1.0, dtype="float32"), half(0.0, 1.0, dtype="float32", name="head"))
    seen = sign("EG204", **GONE | {"weights": weights, "layers": given_by(*numbers)})
    assert (seen is not None and seen.speaks) == speaks


@pytest.mark.parametrize(("dtype", "ran"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_a_real_forward_under_autocast_is_known_by_its_numbers(dtype, ran):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def loss(output, target):
        return functional.cross_entropy(output.float(), target)

    with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
        record = probe(model, loss, (torch.randn(64, 8), torch.randint(0, 4, (64,))))
    assert ran_in_float16(record.readings[0]) == ran


@pytest.mark.parametrize(("scale", "found"), [(1e-6, [("EG204", ()), ("EG108", ("EG204",))]), (1.0, [])])
def test_a_loss_too_small_for_float16_is_a_matter_of_precision_and_no_cut(scale, found):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).half()
    batch = torch.randn(64, 8).half(), torch.randint(0, 4, (64,))
    record = probe(model, lambda output, target: scale * functional.cross_entropy(output, target), batch)
    assert [(finding.code, finding.follows) for finding in findings_of(record)] == found


def skipped(count, start=0):
    return [Reading(step=start + step, skipped=True) for step in range(count)]


@pytest.mark.parametrize(("count", "speaks"), [(16, False), (17, True)])
def test_more_skips_in_a_row_than_a_scaler_needs_are_told(count, speaks):
    seen = judge("EG205", [Reading(step=0, grad_norms=(1.0,)), *skipped(count, 1)])
    assert seen.speaks == speaks
    assert (seen.when == (1, count)) == speaks


def test_skips_that_ended_and_skips_by_a_policy_are_no_overflow():
    assert judge("EG205", [*skipped(30), Reading(step=30, grad_norms=(1.0,))]) is None
    assert judge("EG205", [Reading(step=step, skipped=True, grad_norms=(9e9,)) for step in range(30)]) is None


def overflowing(size, dtype="float16", **settings):
    before = LayerReading(name="0", kind="Linear", activation_absmax=size)
    after = LayerReading(name="1", kind="Linear", output_finite=False, activation_absmax=1.0, **settings)
    return [Reading(step=4, layers=(before, after))], dtype


@pytest.mark.parametrize(("size", "speaks"), [(32751.0, False), (32752.0, True), (65504.0, True)])
def test_a_module_that_is_not_finite_behind_activations_near_the_end_of_float16_overflows(size, speaks):
    readings, dtype = overflowing(size)
    seen = judge("EG205", readings, dtype=dtype)
    assert seen.speaks == speaks
    assert (seen.where == ("1",)) == speaks
    assert judge("EG205", readings, dtype="float32") is None


def test_autocast_shows_by_the_dtype_of_the_output():
    readings, _ = overflowing(6e4)
    named = replace(readings[0], ends=Ends(output=TensorReading(name="output", dtype="float16")))
    assert judge("EG205", [named]).speaks is True


def test_large_activations_alone_are_no_overflow():
    layers = (LayerReading(name="0", kind="Linear", activation_absmax=6e4),)
    assert judge("EG205", [Reading(layers=layers)], dtype="float16").speaks is False
