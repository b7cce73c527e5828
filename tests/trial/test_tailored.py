"""Numbers of cures that come from the readings."""

import pytest

from evengrad.nouns import Cure, Finding, ParameterReading, Reading, Record
from evengrad.trial._tailored import tailored


def record(ratios=(), norms=()):
    count = max(len(ratios), len(norms))
    readings = tuple(
        Reading(
            step=step,
            total_norm=norms[step] if step < len(norms) else None,
            weights=(weight(ratios[step]),) if step < len(ratios) else (),
        )
        for step in range(count)
    )
    return Record(readings=readings, parameters=("0.weight",), dtype="float32")


def weight(ratio):
    return ParameterReading(name="0.weight", numel=16, update_ratio=ratio)


def finding(*cures):
    return (Finding(code="EG602", symptom="", severity="critical", where=("optimizer",), cures=cures),)


def scaled(factor):
    return Cure(treatment="ScaleLearningRate", settings=(("factor", factor),))


def clipped(bound):
    return Cure(treatment="ClipGradients", settings=(("max_norm", bound),))


def labels(found):
    return [cure.label for cure in found[0].cures]


def test_steps_of_a_millionth_ask_for_a_thousand_times_the_rate():
    found = tailored(finding(scaled(10.0), scaled(100.0)), record(ratios=[1e-6] * 6))
    assert labels(found) == [one.label for one in (scaled(1000.0), scaled(10.0), scaled(100.0))]


def test_steps_as_large_as_the_weights_ask_for_a_thousandth_and_larger_ones_stay_as_they_are():
    found = tailored(finding(scaled(10.0), scaled(0.1)), record(ratios=[1.0] * 6))
    assert labels(found) == [one.label for one in (scaled(10.0), scaled(0.001), scaled(0.1))]


@pytest.mark.parametrize("ratio", [1e-3, 3e-3, 4e-4])
def test_a_ratio_that_is_usual_adds_nothing(ratio):
    cures = (scaled(10.0), scaled(0.1))
    assert tailored(finding(*cures), record(ratios=[ratio] * 6))[0].cures == cures


def test_only_the_first_half_counts_since_a_sick_training_ends_anywhere():
    found = tailored(finding(scaled(10.0)), record(ratios=[1e-6] * 3 + [10.0] * 3))
    assert labels(found)[0] == scaled(1000.0).label


def test_a_bound_is_the_usual_norm_before_the_explosion_and_stands_last():
    found = tailored(finding(clipped(1.0), scaled(0.1)), record(norms=[30.0, 33.0, 36.0, 1e9, float("nan")]))
    assert labels(found) == [clipped(1.0).label, scaled(0.1).label, clipped(33.0).label]


def test_without_readings_nothing_changes():
    cures = (scaled(10.0), clipped(1.0))
    assert tailored(finding(*cures), record())[0].cures == cures
