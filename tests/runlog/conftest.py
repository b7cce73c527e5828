"""Readings to write, and one comparison that takes NaN for equal to NaN."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, TensorReading

LINEAR = LayerReading(
    name="body.0",
    kind="Linear",
    weighted=True,
    numel=640,
    units=20,
    observations=32,
    activation_rms=0.5,
    activation_absmax=2.0,
    zero_frac=0.25,
    dead_frac=0.125,
    grad_rms=0.0625,
    weight_norm=4.0,
    weight_grad_norm=0.03125,
)
SIGMOID = LayerReading(name="body.1", kind="Sigmoid", nonlinearity="sigmoid", numel=640, saturated_frac=0.75)
LSTM = LayerReading(
    name="rnn",
    kind="LSTM",
    weighted=True,
    numel=8,
    time_grad_rms=(2.0**-60, 2.0**-30, 1.0),
    gate_stuck_frac=(0.0, 0.5, 0.25),
    gate_mean=(0.5, 0.75, 0.125),
)
WEIGHTS = (
    ParameterReading(name="w", numel=12, fan_in=4, weight_rms=0.5, grad_rms=2.0**-20, update_ratio=2.0**-10),
    ParameterReading(name="b", numel=3, dtype="bfloat16", weight_mean=-0.25, still_frac=1.0),
)
ENDS = Ends(
    inputs=(TensorReading(name="input", shape=(32, 4), std=1.1), TensorReading(name="input.mask", dtype="bool")),
    output=TensorReading(name="output", shape=(32, 3), maximum=math.inf),
    loss_ops=("NllLoss", "LogSoftmax"),
    softmax_size=3,
    constant_loss=1.0986,
)


@pytest.fixture
def weights() -> tuple[ParameterReading, ...]:
    return WEIGHTS


@pytest.fixture
def ends() -> Ends:
    return ENDS


@pytest.fixture
def layers() -> tuple[LayerReading, ...]:
    return LINEAR, SIGMOID, LSTM


@pytest.fixture
def make() -> Callable[..., list[Reading]]:
    """Make readings of two parameters for a range of steps; every `sample`-th is sampled."""

    def make_readings(first: int, last: int, sample: int = 0, loss: float = 0.5) -> list[Reading]:
        return [
            Reading(
                step=step,
                loss=loss,
                lrs=(0.1,),
                grad_norms=(3.0 + step, 4.0),
                total_norm=5.0,
                leftover=step % 2 == 0,
                **(_sample(step) if sample and step % sample == 0 else {}),
            )
            for step in range(first, last)
        ]

    return make_readings


def _sample(step: int) -> dict[str, Any]:
    return {
        "layers": (LINEAR, replace(SIGMOID, numel=step), LSTM),
        "weights": (replace(WEIGHTS[0], moved_ratio=float(step)), WEIGHTS[1]),
        "ends": replace(ENDS, constant_loss=0.1 * step),
    }


@pytest.fixture
def same() -> Callable[[object, object], bool]:
    def is_same(left: object, right: object) -> bool:
        if type(left) is not type(right):
            return False
        if is_dataclass(left):
            return all(is_same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
        if isinstance(left, tuple):
            return len(left) == len(right) and all(map(is_same, left, right))
        return left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))

    return is_same
