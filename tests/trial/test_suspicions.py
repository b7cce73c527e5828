"""What is tried though no rule speaks, and what is not."""

import pytest

from evengrad.nouns import Record, Trial
from evengrad.trial import _suspicions
from evengrad.trial._course import Course
from evengrad.trial._suspicions import fell_back, suspected


def trial(*metrics):
    steps = [100 * (place + 1) for place in range(len(metrics))]
    return Trial(
        label="untreated",
        seed=0,
        steps=100 * len(metrics),
        stage="scout",
        metric=metrics[-1],
        metrics=tuple(zip(steps, metrics, strict=True)),
    )


def course(*metrics):
    return Course(trial=trial(*metrics), record=Record(readings=(), parameters=(), dtype="float32"), findings=())


@pytest.mark.parametrize(
    "metrics",
    [
        (0.2, 0.6, 0.9),
        (0.5, 0.98, 0.97, 0.95),  # overfitting takes a little
        (-9.0, -2.0, -2.1),
        (0.5, 0.5, 0.5),
        (0.9, 0.1),  # two points are no course
        (None, 0.8, None),
    ],
)
def test_a_metric_that_rises_or_holds_is_no_reason(metrics):
    assert fell_back(trial(*metrics)) == ""


@pytest.mark.parametrize("metrics", [(0.2, 0.9, 0.5), (0.5, 0.8, 0.55, 0.6), (-9.0, -1.0, -4.0)])
def test_a_metric_that_fell_far_back_is_named_with_its_numbers(metrics):
    said = fell_back(trial(*metrics))
    assert f"{max(metrics):.3g} after" in said
    assert f"{metrics[-1]:.3g} at the end" in said


def nothing_before(monkeypatch, left):
    monkeypatch.setattr(_suspicions, "loss_left", lambda record: left)
    monkeypatch.setattr(_suspicions, "spoke_early", lambda record: {})


@pytest.mark.parametrize("left", [None, 0.1, 0.49])
def test_a_training_without_anything_odd_is_left_alone(monkeypatch, left):
    nothing_before(monkeypatch, left)
    assert suspected(course(0.2, 0.6, 0.9)) == ([], [])


def test_much_loss_that_is_left_is_a_reason_to_try_other_steps(monkeypatch):
    nothing_before(monkeypatch, 0.83)
    treatments, (note,) = suspected(course(0.2, 0.6, 0.9))
    assert {one.name for one in treatments} == {"ScaleLearningRate", "ClipGradients", "SwapOptimizer"}
    assert "83%" in note


def test_the_cures_of_a_rule_that_fell_silent_are_tried(monkeypatch):
    monkeypatch.setattr(_suspicions, "loss_left", lambda record: None)
    monkeypatch.setattr(_suspicions, "spoke_early", lambda record: {"EG301": 64})
    treatments, (note,) = suspected(course(0.2, 0.6, 0.9))
    assert "SwapActivation" in {one.name for one in treatments}
    assert "EG301 spoke until step 64" in note
