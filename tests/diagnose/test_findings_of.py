"""From a record to findings: which readings count, and how they are told."""

import math
from dataclasses import replace

import pytest

from evengrad.diagnose import Diagnosis, findings_of, symptoms_of
from evengrad.nouns import LayerReading, Reading, Record


def layers(*grads, dead=0.0, saturated=0.0, finite=True):
    found = [
        LayerReading(name=f"{i}", kind="Linear", weighted=True, numel=1, activation_rms=1.0, grad_rms=grad)
        for i, grad in enumerate(grads)
    ]
    act = LayerReading(name="act", kind="ReLU", nonlinearity="relu", units=9, observations=64, dead_frac=dead)
    tanh = LayerReading(name="tanh", kind="Tanh", nonlinearity="tanh", saturated_frac=saturated, output_finite=finite)
    return (act, tanh, *found)


HEALTHY = layers(1, 1, 1, 1)
VANISHED = layers(1e-6, 1e-4, 1e-2, 1)
EXPLODED = layers(1e6, 1e4, 1e2, 1, 1, 1)


def record(*seen, step=10, **settings):
    readings = tuple(Reading(step=step * number, layers=layers) for number, layers in enumerate(seen))
    return Record(readings=readings, **settings)


def codes(*seen):
    return [finding.code for finding in findings_of(record(*seen))]


def test_a_run_that_ends_healthy_gets_no_finding_even_if_it_began_sick():
    assert codes(VANISHED, VANISHED, HEALTHY) == []
    assert codes(EXPLODED, layers(1, 1, 1, 1, dead=1.0), HEALTHY) == []


def test_a_run_that_ends_sick_is_told_from_its_beginning():
    dead = layers(0.0, 0.0, 0.0, 1, dead=1.0)
    found = findings_of(record(HEALTHY, EXPLODED, EXPLODED, dead, dead))
    assert [(one.code, one.when) for one in found] == [("EG102", (10, 20)), ("EG301", (30, 40))]
    assert all(one.severity == "critical" for one in found)


def test_the_numbers_are_those_of_the_reading_where_it_was_seen_first():
    worse = layers(1e-9, 1e-4, 1e-2, 1)
    (finding,) = findings_of(record(HEALTHY, VANISHED, worse))
    assert finding.when == (10, 20)
    assert finding.decades == pytest.approx(6.0)
    assert "6.0 decades" in finding.message
    assert finding.where == ("0", "1")


def test_readings_without_layers_after_the_last_sampled_one_do_not_make_a_run_healthy():
    assert codes(HEALTHY, VANISHED, (), ()) == ["EG101"]
    assert codes(VANISHED, HEALTHY, (), ()) == []


def test_a_finding_is_critical_if_it_once_was_and_critical_roots_come_first():
    half, all_of_it = layers(1, 1, 1, 1, dead=0.95), layers(1, 1, 1, 1, dead=1.0)
    assert [one.severity for one in findings_of(record(half))] == ["warning"]
    assert [one.severity for one in findings_of(record(half, all_of_it, half))] == ["critical"]
    found = findings_of(record(layers(1e-6, 1e-4, 1e-2, 1, dead=0.95, saturated=1.0)))
    assert [(one.code, one.severity, one.follows) for one in found] == [
        ("EG302", "critical", ()),
        ("EG101", "critical", ("EG301", "EG302")),
        ("EG301", "warning", ()),
    ]


def test_a_non_finite_forward_counts_even_where_the_run_ends_healthy():
    assert codes(HEALTHY, layers(1, 1, 1, 1, finite=False), HEALTHY) == ["EG201"]
    assert codes(VANISHED, layers(1, 1, 1, 1, finite=False), HEALTHY) == ["EG101", "EG201"]


@pytest.mark.parametrize(("skipped", "told"), [(True, ["EG202"]), (False, ["EG101", "EG202"])])
def test_a_skipped_step_is_told_but_brings_no_symptom_back_that_is_long_gone(skipped, told):
    seen = record(VANISHED, HEALTHY, HEALTHY, parameters=("w",))
    for place in (1, 2):  # also where it is the last reading of all
        readings = list(seen.readings)
        readings[place] = replace(readings[place], grad_norms=(math.nan,), skipped=skipped)
        assert [one.code for one in findings_of(replace(seen, readings=tuple(readings)))] == told
    sick = record(VANISHED, VANISHED, parameters=("w",)).readings
    sick = (replace(sick[0], grad_norms=(math.nan,), skipped=skipped), sick[1])
    assert [one.code for one in findings_of(replace(seen, readings=sick))] == ["EG101", "EG202"]


@pytest.mark.parametrize(("skipped", "severity"), [(True, "warning"), (False, "critical")])
def test_a_non_finite_gradient_counts_without_any_layers_and_less_where_the_step_was_skipped(skipped, severity):
    steps = tuple(
        Reading(step=step, grad_norms=(1.0, math.nan if step == 3 else 1.0), skipped=skipped and step == 3)
        for step in range(6)
    )
    (finding,) = findings_of(Record(readings=steps, parameters=("w", "b")))
    assert (finding.code, finding.severity, finding.where, finding.when) == ("EG202", severity, ("b",), (3, 3))


def test_a_record_without_layers_and_with_finite_gradients_gets_no_finding():
    steps = tuple(Reading(step=step, grad_norms=(1.0, 10.0**-step)) for step in range(9))
    assert findings_of(Record(readings=steps, parameters=("w", "b"))) == ()


def test_symptoms_have_their_size_below_the_threshold_too():
    reading = Reading(layers=layers(0.1, 1, 1, 1, dead=0.5, saturated=0.5))
    half = -math.log10(math.sqrt(0.5))
    found = symptoms_of(reading, Record(readings=(reading,)))
    assert set(found) == {"EG101", "EG102", "EG105", "EG201", "EG301", "EG302"}
    assert [found[code] for code in sorted(found)] == pytest.approx([1.0, 0.0, 0.0, 0.0, half, half])


def test_a_finding_holds_the_cures_and_the_source_of_its_rule():
    (finding,) = findings_of(record(VANISHED))
    assert finding.cures[0].treatment == "Reinitialize"
    assert not any(cure.tried for cure in finding.cures)
    assert "Glorot" in finding.source
    assert finding.cause == ""


def test_a_diagnosis_prints_its_findings_or_that_there_are_none_and_what_is_missing():
    healthy = record(HEALTHY, HEALTHY, source="runs/a", note="the log is torn")
    assert str(Diagnosis(findings=(), record=healthy)) == "no findings in 2 readings of runs/a\nnote: the log is torn"
    sick = replace(healthy, readings=record(VANISHED).readings, note="")
    text = str(Diagnosis(findings=findings_of(sick), record=sick))
    assert text.startswith("1 finding in 1 reading of runs/a\n\nEG101 vanishing with depth (critical)\n")
    assert "note:" not in text
