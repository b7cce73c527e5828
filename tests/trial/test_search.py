"""How trials are chosen and paired, and that nothing a candidate does ends the search."""

import random

import numpy as np
import pytest
import torch
from searched_tasks import data, deep, task
from torch import nn

import evengrad
from evengrad.nouns import BatchError, SettingError, TaskError
from evengrad.trial._engine import failure
from evengrad.trial._here import Here
from evengrad.trial._plan import Plan
from evengrad.trial._training import run_course


@pytest.fixture
def plans(monkeypatch):
    """Record every part of a training that a search asks for, and run it."""
    seen = []
    run = Here.run

    def recorded(engine, wanted, tick):
        seen.extend(wanted)
        return run(engine, wanted, tick)

    monkeypatch.setattr(Here, "run", recorded)
    return seen


def test_confirming_trainings_come_in_pairs_of_one_seed_and_equal_length(plans):
    result = evengrad.repair(task(), seeds=2, engine="here")
    confirming = [plan for plan in plans if plan.stage == "confirmation"]
    for label in {plan.label for plan in confirming} - {"untreated"}:
        treated = [(plan.seed, plan.steps) for plan in confirming if plan.label == label]
        untreated = [(plan.seed, plan.steps) for plan in confirming if plan.label == "untreated"]
        assert treated
        assert set(treated) <= set(untreated)
        assert all(steps == 24 for _, steps in treated)
    assert [seed for seed, _ in untreated] == sorted({plan.seed for plan in confirming}), "each seed has one untreated"
    assert result.verdict.seeds == tuple(plan.seed for plan in confirming if plan.label == result.verdict.label)


def test_choosing_uses_seeds_that_nothing_is_confirmed_on(plans):
    evengrad.repair(task(), seeds=1, engine="here")
    halving = {plan.seed for plan in plans if plan.stage.startswith("halving")}
    confirming = {plan.seed for plan in plans if plan.stage == "confirmation"}
    assert halving <= {0, 1}
    assert confirming
    assert not halving & confirming


def test_choosing_costs_three_trainings_at_most_and_every_rung_is_longer(plans):
    result = evengrad.repair(task(steps=200), seeds=1, engine="here")
    halving = [trial for trial in result.trials if trial.stage.startswith("halving")]
    assert sum(len(trial.losses) for trial in halving) <= 3 * 200
    ends = {stage: {plan.end for plan in plans if plan.stage == stage} for stage in ("halving 1", "halving 2")}
    assert ends["halving 1"] == {13}
    assert ends["halving 2"] == {20, 50}, "by way of a tenth"


def test_a_second_finalist_gets_seeds_of_its_own(plans):
    result = evengrad.repair(task(validate=lambda model: 0.25, steps=8), seeds=2, engine="here")
    assert result.verdict.outcome == "not cured"
    confirming = [plan for plan in plans if plan.stage == "confirmation"]
    assert [plan.seed for plan in confirming] == [2, 2, 3, 3], "each gives up after its first pair"
    assert len({plan.label for plan in confirming}) == 3


def test_a_candidate_that_breaks_the_users_code_has_failed_and_the_search_goes_on():
    def reads_the_first_layer(model):
        assert model[0].weight.isfinite().all()  # a layer that is wrapped has no weight

    result = evengrad.repair(task(after_step=reads_the_first_layer), seeds=1, engine="here")
    failed = {trial.label for trial in result.trials if "has no attribute" in trial.error}
    confirmed = {trial.label for trial in result.trials if trial.stage == "confirmation"} - {"untreated"}
    assert failed
    assert confirmed
    assert not failed & confirmed


def test_a_loss_that_raises_on_nan_ends_the_training_and_is_diagnosed():
    labels = data()[1].float().clamp(max=1).unsqueeze(1)
    inputs = data()[0]

    def with_sigmoid():
        return nn.Sequential(*deep(nn.ReLU, 12, std=0.45, outputs=1)(), nn.Tanh(), nn.Linear(1, 1), nn.Sigmoid())

    def exploding(model):
        return torch.optim.SGD(model.parameters(), lr=1e30)

    sick = task(
        with_sigmoid,
        optimizer=exploding,
        loss=nn.BCELoss(),
        train=lambda: [(inputs, labels)],
        validate=lambda model: 0.0,
    )
    course = run_course(Plan(task=sick, label="untreated", seed=0, steps=20, stage="scout"), lambda count: None)
    assert "not finite any more" in course.trial.error
    assert "EG201" in course.trial.findings


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimizer": lambda model: torch.optim.LBFGS(model.parameters())}, "whose step needs a closure"),
        ({"schedule": lambda optimizer: 1 / 0}, r"Task\.schedule: got ZeroDivisionError"),
        ({"after_step": lambda model: 1 / 0}, "after_step: got ZeroDivisionError"),
        ({"loss": lambda output, target: 1 / 0}, "ZeroDivisionError"),
    ],
    ids=["closure", "schedule", "after_step", "loss"],
)
def test_user_code_that_raises_in_the_untreated_training_is_one_clear_error(changes, match):
    with pytest.raises(evengrad.EvengradError, match=match):
        evengrad.repair(task(**changes), seeds=1, engine="here")


def test_a_schedule_that_waits_for_a_plateau_gets_the_loss():
    plateau = task(
        schedule=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2), steps=30
    )
    plan = Plan(task=plateau, label="untreated", seed=0, steps=30, stage="scout")
    readings = run_course(plan, lambda count: None).record.readings
    assert readings[-2].lrs[0] < readings[0].lrs[0]


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_inputs_that_are_tuples_or_mappings_are_trained_and_treated(form):
    inputs, labels = data()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = deep()()

        def forward(self, a, b):
            return self.body(a + b)

    batch = (inputs, inputs) if form == "tuple" else {"a": inputs, "b": inputs}
    two = task(
        Two,
        train=lambda: [(batch, labels)],
        validate=lambda model: (model(inputs, inputs).argmax(1) == labels).float().mean().item(),
        steps=8,
    )
    result = evengrad.repair(two, seeds=1, engine="here")
    assert any(cure.tried and cure.removes for cure in result.findings[0].cures)
    assert all(trial.metric is not None for trial in result.trials)


def test_all_random_states_are_seeded_and_left_alone():
    """A data set that is shuffled by torch, NumPy or Python gives the same trials for the same seed."""
    inputs, labels = data()

    def shuffled():
        order = torch.randperm(192)[torch.as_tensor(np.random.permutation(192))].tolist()
        random.shuffle(order)
        return [(inputs[order[:64]], labels[order[:64]]), (inputs[order[64:]], labels[order[64:]])]

    drawn = task(train=shuffled, steps=8)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    once = evengrad.repair(drawn, seeds=1, engine="here")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    torch.rand(3), np.random.rand(3), random.random()
    again = evengrad.repair(drawn, seeds=1, engine="here")
    assert [trial.losses for trial in once.trials] == [trial.losses for trial in again.trials]
    assert [finding.cures for finding in once.findings] == [finding.cures for finding in again.findings]


def test_batches_that_differ_between_trials_are_refused():
    inputs, labels = data()
    calls = []

    def train():
        calls.append(1)
        return [(inputs + len(calls), labels)]

    with pytest.raises(TaskError, match="another first batch in two trials of seed 0"):
        evengrad.repair(task(train=train, steps=1), seeds=1, engine="here")


def test_an_iterator_that_is_used_up_is_named():
    inputs, labels = data()
    once = iter([(inputs, labels)] * 3)
    with pytest.raises(BatchError, match="batches once and none when it was called again"):
        evengrad.repair(task(train=lambda: once, steps=20), seeds=1, engine="here")


def test_gradients_that_the_optimizer_does_not_hold_neither_pile_up_nor_count():
    part = task(optimizer=lambda model: torch.optim.SGD(model[-1].parameters(), lr=0.1), steps=6)
    course = run_course(Plan(task=part, label="untreated", seed=0, steps=6, stage="scout"), lambda count: None)
    assert course.record.parameters == ("24.weight", "24.bias")
    norms = [reading.total_norm for reading in course.record.readings[:-1]]
    assert max(norms) < 2 * min(norms)


def test_a_model_is_trained_in_training_mode_and_validated_in_evaluation_mode():
    modes = {"train": set(), "validate": set()}

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = deep(nn.ReLU, 2)().eval()  # a factory may hand over anything
            self.eval()

        def forward(self, x):
            modes["validate" if not torch.is_grad_enabled() else "train"].add(self.training)
            return self.body(x)

    run_course(Plan(task=task(Watched), label="u", seed=0, steps=3, stage="scout"), lambda count: None)
    assert modes == {"train": {True}, "validate": {False}}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_labels_drawn_at_random_are_never_cured(seed):
    inputs, _ = data()
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(4, (192,), generator=generator)
    other, truth = torch.randn(200, 16, generator=generator), torch.randint(4, (200,), generator=generator)
    noise = task(
        train=lambda: [(inputs, labels)],
        validate=lambda model: (model(other).argmax(1) == truth).float().mean().item(),
        steps=40,
    )
    result = evengrad.repair(noise, seed=10 * seed, engine="here")
    assert result.findings, "the gradients do vanish"
    assert result.verdict.outcome != "cured"


def test_a_metric_that_is_missing_on_the_way_does_not_end_a_training():
    calls = []

    def patchy(model):
        calls.append(1)
        inputs, labels = data()
        accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
        return float("nan") if len(calls) == 2 else accuracy

    result = evengrad.repair(task(deep(nn.ReLU, 1), steps=120, validate=patchy), seeds=1, engine="here")
    assert result.trials[0].steps == 120
    assert result.trials[0].error == ""
    assert None in [metric for _, metric in result.trials[0].metrics]


@pytest.mark.parametrize("steps", [4, 12, 48])
def test_the_smallest_budget_that_is_taken_pays_for_a_proof(steps):
    with pytest.raises(SettingError, match="at least") as caught:
        evengrad.repair(task(steps=steps), budget=1, engine="here")
    least = int(str(caught.value).split("at least ")[1].split()[0])
    result = evengrad.repair(task(steps=steps), budget=least, engine="here")
    assert sum(len(trial.losses) for trial in result.trials) <= least
    stages = {trial.stage.split()[0] for trial in result.trials}
    assert stages >= {"scout", "halving", "confirmation"}


def test_an_untreated_training_that_the_engine_lost_proves_nothing(monkeypatch):
    run = Here.run

    def losing(engine, plans, tick):
        for place, result in run(engine, plans, tick):
            lost = plans[place].stage == "confirmation" and plans[place].label == "untreated"
            yield place, failure(plans[place], "no end after 1 s: ended") if lost else result

    monkeypatch.setattr(Here, "run", losing)
    result = evengrad.repair(task(), seeds=2, engine="here")
    assert result.verdict.outcome == "not cured"
    assert any("Nothing was proved on seed" in note for note in result.story.notes)


def test_a_model_that_makes_a_buffer_while_it_runs_does_not_cost_the_result():
    class Counting(nn.Sequential):
        def forward(self, x):
            if not hasattr(self, "seen"):
                self.register_buffer("seen", torch.zeros(1))
            return super().forward(x)

    result = evengrad.repair(task(lambda: Counting(*deep()())), seeds=1, engine="here")
    assert result.verdict.outcome == "improved", "of one seed"
    assert result.model is None or result.model.training


def test_what_learns_nothing_is_not_called_healthy():
    still = task(deep(nn.ReLU, 1), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    verdict = evengrad.repair(still, seeds=1, engine="here").verdict
    assert verdict.outcome != "was not sick"


def test_a_fault_in_the_code_that_no_treatment_reaches_is_said_to_be_one():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(16, 16), nn.Tanh()), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.body(x).detach())

    verdict = evengrad.repair(task(Cut, steps=60), seeds=1, engine="here").verdict
    assert verdict.outcome in {"cannot be cured by a tool", "not cured"}
    assert "mistake in the code" in verdict.message


def test_a_metric_that_is_never_a_number_is_an_error_of_the_task():
    with pytest.raises(TaskError, match=r"validate\(model\): got nan, want a finite number"):
        evengrad.repair(task(deep(nn.ReLU, 1), steps=60, validate=lambda model: float("nan")), engine="here")
