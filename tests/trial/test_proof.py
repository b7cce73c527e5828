"""What is proved, and what is not: floors, controls, other diseases, and whose turn is next."""

import copy

import torch
from searched_tasks import deep, task
from torch import nn
from torch.nn import functional

import evengrad
from evengrad.nouns import Trial
from evengrad.treat import AddNormalization, Combined, Reinitialize, ScaleLearningRate
from evengrad.trial._candidates import Candidate
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._course import Course
from evengrad.trial._engine import failure
from evengrad.trial._here import Here
from evengrad.trial._spared import tried_with


def test_a_fresh_model_that_is_lucky_with_one_seed_is_no_floor():
    confirmation = Confirmation(None, ())
    courses = [Course(trial=None, record=None, findings=())] * 3
    for course, fresh in zip(courses, [(0.5, 0.5), (0.4, 1.0), (0.9, 0.5)], strict=True):
        confirmation.add(course, course, fresh)
    assert confirmation.floors == [0.5] * 3
    confirmation = Confirmation(None, ())
    confirmation.add(courses[0], courses[0], (None, 0.7))
    confirmation.add(courses[0], courses[0], (None, None))
    assert confirmation.floors == [0.7] * 2


def test_an_offset_that_is_learnt_and_nothing_else_is_not_cured():
    """A target of 100 and noise: normalised, even a fresh model is near the mean, which is all there is to know."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    targets = 100 + torch.randn(64, 1, generator=generator)
    held = 100 + torch.randn(64, 1, generator=generator)
    noise = evengrad.Task(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
        loss=functional.mse_loss,
        train=lambda: [(inputs, targets)],
        validate=lambda model: -functional.mse_loss(model(inputs), held).item(),
        steps=48,
    )
    verdict = evengrad.repair(noise, engine="here").verdict
    assert (verdict.label, verdict.outcome) != ("NormalizeTarget()", "cured")


def test_a_disease_that_only_confirming_seeds_have_is_searched_for_a_cure_too():
    lucky = deep(nn.ReLU, depth=2)

    def make_model():
        model = lucky()
        for parameter in model.parameters() if torch.initial_seed() > 1 else ():
            nn.init.zeros_(parameter)
        return model

    result = evengrad.repair(
        task(make_model, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=5e-2), steps=60), engine="here"
    )
    assert [finding.code for finding in result.findings] == ["EG303", "EG301"], "dead units, not the rate of the scout"
    assert any("with seed 2 EG303" in note for note in result.story.notes)
    assert any(trial.seed == 2 and trial.stage.startswith("halving") for trial in result.trials)
    assert result.verdict.outcome == "cured"
    assert "Reinitialize" in result.verdict.label


def test_a_disease_of_some_seeds_is_looked_for_where_the_proof_would_be_and_proved_on_sick_seeds():
    lucky = deep(nn.ReLU, depth=2)

    def make_model():
        model = lucky()
        for parameter in model.parameters() if torch.initial_seed() in {4, 5, 7} else ():
            nn.init.zeros_(parameter)
        return model

    fickle = task(make_model, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.2), steps=60)
    result = evengrad.repair(fickle, engine="here", seed=1)
    assert {trial.seed for trial in result.trials if trial.stage == "halving 1"} == {4}
    assert result.verdict.seeds == (3, 5, 7)
    assert min(result.verdict.metric_after) > 0.9
    assert result.verdict.outcome == "improved", "of seven untreated four are fine: so may three be by luck"
    assert "43% were sick" in result.verdict.message
    assert "left out, as not sick untreated: seed 6" in result.verdict.message
    untreated = [trial.seed for trial in result.trials if trial.label == "untreated"]
    assert untreated == [1, 2, 3, 4, 5, 6, 7], "each once"
    assert any("with seed 1 no rule speaks at the end; with seed 4" in note.lower() for note in result.story.notes)
    assert any("leaves out 6" in note for note in result.story.notes)


def odd(**changes):
    """Make a training in which no rule speaks, and of whose loss more than half is left: noise."""
    generator = torch.Generator().manual_seed(0)
    inputs, held = torch.randn(256, 8, generator=generator), torch.randn(256, 8, generator=generator)
    targets = 0.6 * inputs[:, :1] + torch.randn(256, 1, generator=generator)
    settings = {
        "model": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)),
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
        "loss": functional.mse_loss,
        "train": lambda: [(inputs, targets)],
        "validate": lambda model: 1.0 - functional.mse_loss(model(held), 0.6 * held[:, :1]).item() / 0.36,
        "steps": 80,
    }
    return evengrad.Task(**(settings | changes))


def test_a_budget_counts_the_untreated_trainings_that_a_proof_has_already():
    result = evengrad.repair(odd(), engine="here", budget=960)
    assert not result.findings
    treated = [trial for trial in result.trials if trial.stage == "confirmation" and trial.label != "untreated"]
    assert treated
    assert sum(len(trial.losses) for trial in result.trials) <= 960


def test_a_training_whose_metric_is_that_of_an_untrained_model_is_not_called_fine():
    labels = torch.randint(0, 4, (192,), generator=torch.Generator().manual_seed(1))
    by_heart = task(
        deep(nn.ReLU, depth=1),
        train=lambda: [(torch.randn(192, 16, generator=torch.Generator().manual_seed(2)), labels)],
        validate=lambda model: 0.25,
        steps=150,
    )
    verdict = evengrad.repair(by_heart, engine="here").verdict
    assert verdict.outcome == "not cured"
    assert "untrained models reach 0.250: nothing it has learnt carries over" in verdict.message


def test_a_seed_with_which_the_untreated_training_cannot_be_made_is_followed_by_the_next():
    sick = deep(nn.Sigmoid, depth=12)

    def make_model():
        if torch.initial_seed() == 3:
            raise RuntimeError("no room for seed 3")
        return sick()

    result = evengrad.repair(task(make_model), engine="here")
    assert result.verdict.seeds == (2, 4, 5)
    assert any("proved on seed 3: untreated" in note and "no room" in note for note in result.story.notes)


def noise():
    """Make a training that diverges, of noise: nothing but its mean is there to be learnt, which looks like a gain."""
    generator = torch.Generator().manual_seed(0)
    inputs, held = torch.randn(512, 4, generator=generator), torch.randn(256, 4, generator=generator)
    targets, others = 2 + torch.randn(512, 1, generator=generator), 2 + torch.randn(256, 1, generator=generator)

    def r2(model):
        return 1.0 - functional.mse_loss(model(held), others).item() / others.var().item()

    return evengrad.Task(
        model=lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=10.0),
        loss=functional.mse_loss,
        train=lambda: zip(inputs.split(64), targets.split(64), strict=True),
        validate=r2,
        steps=120,
    )


def test_a_training_that_no_longer_diverges_and_learns_no_more_than_the_mean_is_not_cured():
    result = evengrad.repair(noise(), engine="here")
    assert result.findings
    assert any(trial.stage == "control" for trial in result.trials)
    assert result.verdict.outcome == "not cured"


def test_a_control_that_the_budget_has_no_room_for_leaves_nothing_proved():
    result = evengrad.repair(noise(), engine="here", budget=1140)
    assert any("no room for a control" in note for note in result.story.notes)
    assert result.verdict.outcome == "not cured"
    assert "not held against" in result.verdict.message


def test_a_control_that_is_interrupted_leaves_nothing_proved():
    def stop(text, done, total):
        if text.startswith("control"):
            raise KeyboardInterrupt

    result = evengrad.repair(noise(), engine="here", progress=stop)
    assert result.interrupted
    assert result.verdict.outcome == "not cured"


def test_a_control_that_was_lost_proves_nothing_and_one_that_diverges_does(monkeypatch):
    run = Here.run

    def lost(engine, wanted, tick):
        for place, result in run(engine, wanted, tick):
            lost = wanted[place].stage == "control"
            yield place, failure(wanted[place], "no end after 80 s") if lost else result

    monkeypatch.setattr(Here, "run", lost)
    result = evengrad.repair(noise(), engine="here")
    assert any("came to nothing: no end after 80 s" in note for note in result.story.notes)
    assert result.verdict.outcome == "not cured"


def test_targets_of_double_precision_are_shuffled_too():
    single = noise()
    double = evengrad.Task(
        model=lambda: single.model().double(),
        optimizer=single.optimizer,
        loss=single.loss,
        train=lambda: [(inputs.double(), targets.double()) for inputs, targets in single.train()],
        validate=lambda model: single.validate(copy.deepcopy(model).float()),
        steps=single.steps,
    )
    result = evengrad.repair(double, engine="here")
    assert any(trial.stage == "control" for trial in result.trials)


def test_a_treated_model_that_cannot_be_built_with_another_seed_has_failed_and_the_search_goes_on():
    def optimizer(model):
        if torch.initial_seed() > 1 and any(
            isinstance(module, nn.BatchNorm1d | nn.LayerNorm) for module in model.modules()
        ):
            raise ValueError("no norms")
        return torch.optim.Adam(model.parameters(), lr=5e-3)

    result = evengrad.repair(task(optimizer=optimizer, steps=120), engine="here")
    failed = [trial for trial in result.trials if "no norms" in trial.error]
    assert failed
    assert all(trial.metric is None for trial in failed)
    assert result.verdict.outcome in {"cured", "improved"}, "something else has helped"


def confirmed(*metrics):
    confirmation = Confirmation(None, ())
    for seed, metric in enumerate(metrics):
        trial = Trial(label="", seed=seed, steps=1, stage="confirmation", metric=metric)
        course = Course(trial=trial, record=None, findings=())
        confirmation.add(course, course, (None, None))
    return confirmation


def test_a_cure_that_one_seed_of_three_does_not_take_to_is_uneven():
    assert confirmed(1.0, 1.0, 0.5).uneven
    assert not confirmed(1.0, 0.9, 0.8).uneven
    assert not confirmed(0.5).uneven


def test_the_same_at_a_lower_rate_has_not_been_tried_with_what_failed():
    def candidate(*parts):
        return Candidate(treatment=Combined(parts) if len(parts) > 1 else parts[0], treated=None)

    fresh, fast, norm = Reinitialize(), ScaleLearningRate(factor=10.0), AddNormalization()
    assert not tried_with(candidate(fresh, fast), candidate(fresh))
    assert tried_with(candidate(fresh), candidate(fresh, fast)), "and a higher rate has less hope"
    assert tried_with(candidate(norm, fresh, fast), candidate(norm, fast))
    assert not tried_with(candidate(fresh), candidate(norm))
