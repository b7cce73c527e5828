"""Readings to write, and one comparison that takes NaN for equal to NaN."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import pytest

from evengrad.nouns import LayerReading, Reading

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
LSTM = LayerReading(name="rnn", kind="LSTM", weighted=True, numel=8, time_grad_rms=(2.0**-60, 2.0**-30, 1.0))


@pytest.fixture
def layers() -> tuple[LayerReading, ...]:
    return LINEAR, SIGMOID, LSTM


@pytest.fixture
def make() -> Callable[..., list[Reading]]:
    """Make readings of two parameters for a range of steps; every `sample`-th has layers."""

    def make_readings(first: int, last: int, sample: int = 0, loss: float = 0.5) -> list[Reading]:
        return [
            Reading(
                step=step,
                loss=loss,
                lrs=(0.1,),
                grad_norms=(3.0 + step, 4.0),
                total_norm=5.0,
                layers=(LINEAR, replace(SIGMOID, numel=step), LSTM) if sample and step % sample == 0 else (),
            )
            for step in range(first, last)
        ]

    return make_readings


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
