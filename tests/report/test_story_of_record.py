"""A plain run as a story."""

import math
from dataclasses import replace

from evengrad.nouns import Finding, Reading, Record
from evengrad.report import page, story_of_record, text
from evengrad.report._headline import badge


def test_the_maps_hold_the_norms_of_parameters_and_of_weighted_layers(record):
    parameters, layers = story_of_record(record, title="run").heat_maps
    assert parameters.rows == record.parameters
    assert parameters.steps == (0, 1, 2, 3, 4, 5)
    assert parameters.values[0] == tuple(0.1 / (step + 1) for step in range(6))
    assert parameters.values[1] == (0.0,) * 6
    assert layers.rows == ("fc", "frozen")
    assert layers.steps == (0, 2, 4)
    assert layers.values[0][:2] == (2.5, 2.5)  # rms 0.25 over 100 elements
    assert math.isnan(layers.values[0][2])
    assert layers.values[1] == (0.0, 0.0, 0.0)


def test_facts_curve_and_notes_come_from_the_record(record):
    story = story_of_record(record, title="run")
    facts = dict(story.facts)
    assert facts["source"] == "runs/a"
    assert facts["measured"] == "steps 0 to 5, 6 readings"
    assert facts["learning rate"] == "0.1"
    assert (facts["clipped"], facts["left out"]) == ("1 step", "1 step")
    assert story.notes == ("two steps are missing",)
    assert story.curves[0].values == tuple(2.3 * 0.9**step for step in range(6))


def test_the_headline_counts_findings_and_names_them(record):
    finding = Finding(code="EG101", symptom="vanishing with depth", severity="critical", where=("fc",))
    other = replace(finding, symptom="dead units", severity="warning")
    assert story_of_record(record, title="r").headline == "No findings in 6 steps"
    told = story_of_record(record, (finding, other), title="r").headline
    assert told == "2 findings in 6 steps: vanishing with depth (critical), dead units (warning)"
    assert story_of_record(Record(), title="r").headline == "No steps were recorded"


def test_a_run_without_layer_readings_is_no_clean_bill_of_health(record):
    norms_only = replace(record, readings=tuple(replace(reading, layers=()) for reading in record.readings))
    story = story_of_record(norms_only, title="r")
    assert story.headline == "No findings in 6 steps; only gradient norms were recorded"
    assert "were not judged" in story.notes[0]
    assert "evengrad checkup" in story.notes[0]
    assert story.notes[1:] == ("two steps are missing",)
    assert badge(story) == ("gradient norms only", "fair")
    assert "no findings" not in text(story)
    assert '<span class="badge fair">gradient norms only</span>' in page(story)
    assert badge(story_of_record(record, title="r")) == ("no findings", "good")


def test_findings_from_norms_alone_keep_their_badge_and_the_note(record):
    finding = Finding(code="EG202", symptom="non-finite gradient", severity="critical", where=("fc",))
    norms_only = replace(record, readings=tuple(replace(reading, layers=()) for reading in record.readings))
    story = story_of_record(norms_only, (finding,), title="r")
    assert story.headline == "1 finding in 6 steps: non-finite gradient (critical)"
    assert badge(story) == ("1 finding", "bad")
    assert "were not judged" in story.notes[0]


def test_an_empty_run_was_not_judged_healthy():
    story = story_of_record(Record(), title="r")
    assert badge(story) == ("nothing recorded", "fair")
    assert story.notes[0] == "Nothing was judged: no steps were recorded."


def test_an_incomplete_record_never_stays_without_a_note(record):
    assert story_of_record(replace(record, complete=False, note=""), title="r").notes
    assert story_of_record(replace(record, complete=True, note=""), title="r").notes == ()


def test_readings_that_do_not_fit_are_left_out_and_counted(record):
    odd = replace(record.readings[0], step=9, grad_norms=(1.0, 2.0, 3.0))
    story = story_of_record(replace(record, readings=(*record.readings, odd)), title="r")
    assert story.heat_maps[0].steps == (0, 1, 2, 3, 4, 5)
    assert "1 reading with other than 2 norms" in story.notes[-1]


def test_a_long_run_makes_a_small_story():
    readings = tuple(Reading(step=step, grad_norms=(1.0,) * 5) for step in range(5000))
    story = story_of_record(Record(readings=readings, parameters=tuple("abcde")), title="r")
    assert len(story.heat_maps[0].steps) <= 600
    assert story.heat_maps[0].steps[0] == 0


def test_records_with_little_in_them_can_be_shown(record):
    for poor in (Record(), Record(readings=(Reading(),)), replace(record, readings=record.readings[:1])):
        story = story_of_record(poor, title="poor")
        assert "poor" in page(story)
        assert text(story, width=80).startswith("poor\n")
