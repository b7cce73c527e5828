"""Who goes on, who is combined, and when choosing ends, on made-up trainings."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.nouns import Cure, Finding, Record, Task, Trial
from evengrad.treat import AddNormalization, ClipGradients, Reinitialize, ScaleLearningRate, SwapActivation
from evengrad.trial._choosing import Choosing
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine
from evengrad.trial._partners import hopes_for
from evengrad.trial._plan import Plan
from evengrad.trial._rungs import rungs_of
from evengrad.trial._runs import Runs
from evengrad.trial._spared import settled

STEPS = 160  # rungs at 10, 40 and 80
SINGLES = (Reinitialize(), SwapActivation(to="tanh"), AddNormalization(), ScaleLearningRate(factor=0.1))


@dataclass
class Script(AbstractEngine):
    """Gives each treatment the metrics that were written down for it, by the share of the steps."""

    metrics: dict
    sick: dict = field(default_factory=dict)
    ran: list = field(default_factory=list)

    @property
    def at_once(self):
        return 1

    def run(self, plans, tick):
        for place, plan in enumerate(plans):
            self.ran.append((plan.label, plan.seed, plan.end))
            tick(plan.end)
            yield place, self.course(plan)

    def course(self, plan):
        metric = self.metrics.get(plan.label, lambda part, seed: 0.1)(plan.end / STEPS, plan.seed)
        findings = self.sick.get(plan.label, ())
        known = [end for label, seed, end in self.ran if (label, seed) == (plan.label, plan.seed)]
        trial = Trial(
            label=plan.label,
            seed=plan.seed,
            steps=plan.end,
            stage=plan.stage,
            metric=metric,
            metrics=tuple(
                (end, self.metrics.get(plan.label, lambda part, seed: 0.1)(end / STEPS, plan.seed)) for end in known
            ),
            findings=tuple(finding.code for finding in findings),
            losses=(1.0,) * plan.end,
            error="" if metric is not None else "the loss is nan",
        )
        return Course(
            trial=trial, record=Record(readings=(), parameters=("0.weight",), dtype="float32"), findings=findings
        )

    def forget(self, plans):
        pass

    def close(self):
        pass


def steady(value):
    return lambda part, seed: value


def sick_with(*cures):
    return (Finding(code="EG601", symptom="", severity="critical", where=("0",), cures=cures),)


@pytest.fixture
def task():
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    return Task(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=functional.cross_entropy,
        train=lambda: [(inputs, inputs[:, :2].argmax(1))],
        validate=lambda model: 0.0,
        steps=STEPS,
    )


def chosen(task, engine, treatments=SINGLES):
    runs = Runs(engine, lambda: None)
    untreated = Trial(label="untreated", seed=0, steps=STEPS, stage="scout", metric=0.1, metrics=((STEPS, 0.1),))
    choosing = Choosing(task, runs, rungs_of(STEPS), seeds=(0, 1), untreated=untreated, floor=0.1)
    return [candidate.treatment.name for candidate in choosing.run(list(treatments))], choosing


def labels_at(engine, end, seed=0):
    return [label.split("(")[0] for label, of, at in engine.ran if at == end and of == seed and "+" not in label]


def label(treatment):
    return treatment.label


def test_the_best_metric_wins_and_the_worse_half_stops_early(task):
    metrics = {label(one): steady(0.2 + 0.1 * place) for place, one in enumerate(SINGLES)}
    engine = Script(metrics | {label(SINGLES[2]): lambda part, seed: 0.9 * part**0.1})
    order, _ = chosen(task, engine)
    assert order[:2] == ["AddNormalization", "ScaleLearningRate"]
    assert set(labels_at(engine, 40)) == {one.name for one in SINGLES}
    assert labels_at(engine, 80) == [], "it has shown something after a quarter, and goes to another seed"


def test_no_combination_is_tried_where_a_single_treatment_suffices(task):
    engine = Script({label(one): steady(0.9) for one in SINGLES[:2]})
    chosen(task, engine)
    assert not any("+" in label for label, _, _ in engine.ran)


def test_the_only_one_that_suffices_gets_a_rival_and_the_whole_costs_no_more_than_was_promised(task):
    engine = Script({label(SINGLES[0]): lambda part, seed: 0.5 + part / 2})
    chosen(task, engine)
    assert max(end for label, _, end in engine.ran if "+" in label) >= 40
    furthest = {}
    for label_, seed, end in engine.ran:
        furthest[label_, seed] = max(end, furthest.get((label_, seed), 0))
    assert sum(furthest.values()) <= 3 * STEPS


def test_what_the_trial_of_the_best_is_found_to_lack_is_combined_with_it(task):
    cure = Cure(treatment="ClipGradients", settings=(("max_norm", 1.0),))
    engine = Script({label(SINGLES[0]): steady(0.5)}, sick={label(SINGLES[0]): sick_with(cure)})
    chosen(task, engine)
    assert any(label == f"{SINGLES[0].label} + {ClipGradients(max_norm=1.0).label}" for label, _, _ in engine.ran)


def test_treatments_that_fail_alone_are_tried_together(task):
    engine = Script({label(one): steady(None) for one in SINGLES})
    order, _ = chosen(task, engine)
    together = [label for label, _, _ in engine.ran if "+" in label]
    assert together
    assert set(order) == {"Combined"}


def test_a_leader_that_nobody_can_overtake_ends_the_choosing(task):
    metrics = {label(SINGLES[0]): steady(0.9)}
    engine = Script(metrics)
    order, choosing = chosen(task, engine)
    assert order[0] == "Reinitialize"
    assert "could have gained" in choosing.stopped
    assert max(end for _, _, end in engine.ran) == 40


def test_a_rival_that_is_still_rising_keeps_it_going(task):
    engine = Script({label(SINGLES[0]): steady(0.9), label(SINGLES[1]): lambda part, seed: min(1.0, 0.2 + part)})
    _, choosing = chosen(task, engine)
    assert not choosing.stopped


def test_where_nobody_has_learnt_anything_two_go_on_to_half(task):
    engine = Script({})
    chosen(task, engine)
    assert sum(end == 80 for _, _, end in engine.ran) == 2
    assert {seed for _, seed, _ in engine.ran} == {0, 1}


def test_who_has_shown_nothing_is_not_trained_on_another_seed_but_the_leader_refined_once_more(task):
    engine = Script({label(SINGLES[0]): lambda part, seed: 0.5 + part / 2})
    chosen(task, engine)
    assert {seed for _, seed, _ in engine.ran} == {0}
    refinements = {name for name, _, end in engine.ran if "+" in name and end == 40}
    assert len(refinements) > rungs_of(STEPS).refined
    assert all(SINGLES[0].label in name for name in refinements)
    rivals = Script({label(one): lambda part, seed: 0.5 + part / 2 for one in SINGLES[:2]})
    chosen(task, rivals)
    assert {name for name, seed, _ in rivals.ran if seed == 1} == {label(one) for one in SINGLES[:2]}


def test_a_treatment_that_one_seed_was_kind_to_loses_on_the_second(task):
    kind = {0: 0.95, 1: 0.4}
    engine = Script({label(SINGLES[0]): lambda part, seed: kind[seed], label(SINGLES[1]): steady(0.9)})
    order, _ = chosen(task, engine)
    assert order[0] == "SwapActivation"


def test_what_fails_on_the_second_seed_is_not_chosen(task):
    fails = {0: 0.95, 1: None}
    engine = Script({label(SINGLES[0]): lambda part, seed: fails[seed], label(SINGLES[1]): steady(0.9)})
    order, _ = chosen(task, engine)
    assert order[0] == "SwapActivation"
    assert "Reinitialize" not in order


def test_a_leader_that_is_fine_and_slow_is_tried_with_larger_steps(task):
    engine = Script({label(one): lambda part, seed: 0.5 + part / 2 for one in SINGLES[:3]})
    chosen(task, engine)
    assert any(name == f"{SINGLES[0].label} + ScaleLearningRate(factor=10.0)" for name, _, _ in engine.ran)


def test_a_refinement_that_leads_is_refined_again(task):
    fast = f"{SINGLES[0].label} + ScaleLearningRate(factor=10.0)"
    engine = Script({label(SINGLES[0]): lambda part, seed: 0.5 + part / 4, fast: lambda part, seed: 0.6 + part / 4})
    order, _ = chosen(task, engine, SINGLES[:1])
    assert max(name.count("+") for name, _, _ in engine.ran) == 1, "nothing else goes with it"
    assert (fast, 0, 10) in engine.ran, "its metric is measured on the way as that of the others"
    engine = Script({label(SINGLES[0]): lambda part, seed: 0.5 + part / 4, fast: lambda part, seed: 0.6 + part / 4})
    order, _ = chosen(task, engine, SINGLES[:3])
    assert any("factor=100.0" in name for name, _, _ in engine.ran), "it is still slow: the rate is followed"
    assert order[0] == "Combined"


def test_a_higher_rate_is_spared_where_it_had_nothing_to_gain_after_a_tenth(task):
    slow, fast = label(SINGLES[0]), f"{SINGLES[0].label} + ScaleLearningRate(factor=10.0)"
    at_once = Script({slow: lambda part, seed: 0.4 + part, fast: steady(0.9)})
    order, _ = chosen(task, at_once, SINGLES[:1])
    assert order[0] == "Reinitialize", "ten times the steps lead as far"
    later = Script({slow: lambda part, seed: 0.4 + part, fast: lambda part, seed: 0.9 if part > 0.1 else 0.8})
    order, _ = chosen(task, later, SINGLES[:1])
    assert order[0] == "Combined"
    one_seed = Script({slow: lambda part, seed: 0.4 + part, fast: lambda part, seed: 0.9 if part > 0.1 * seed else 0.8})
    order, _ = chosen(task, one_seed, SINGLES[:1])
    assert order[0] == "Combined"


def test_a_training_whose_loss_still_comes_down_has_not_gained_all_it_has():
    def trial(losses):
        return Trial(
            label="", seed=0, steps=40, stage="", metric=0.75, metrics=((16, 0.75), (40, 0.75)), losses=tuple(losses)
        )

    assert settled(trial([1.0] + [0.1] * 39), 16)
    assert settled(trial([2.3] * 8 + [0.05] * 16 + [0.01] * 16), 16), "a cross-entropy comes down for ever"
    assert not settled(trial([1.0 - step / 40 for step in range(40)]), 16)
    assert not settled(replace(trial([1.0] * 40), metrics=((16, 0.7), (40, 0.75))), 16)
    assert not settled(trial([1.0] + [0.1] * 39), 40), "a third of the rate needs more than it has trained"


def test_a_training_that_was_given_up_costs_its_steps_again_and_keeps_its_longer_trial(task):
    runs = Runs(Script({}), lambda: None)
    plan = Plan(task=task, label="x", seed=0, steps=STEPS, stage="halving 1", until=80)
    list(runs.run([plan]))
    list(runs.run([replace(plan, until=120)]))
    assert runs.done == 120
    runs.forget([plan])
    list(runs.run([replace(plan, until=40)]))
    assert runs.done == 160
    assert [trial.steps for trial in runs.trials] == [120]


def test_what_learns_nothing_is_combined_with_what_it_leaves_as_it_is_and_with_what_it_changes():
    weights = [one.name for one in hopes_for(Reinitialize())]
    assert weights[:2] == ["SwapOptimizer", "ScaleLearningRate"]
    rate = [one.name for one in hopes_for(ScaleLearningRate(factor=0.1))]
    assert rate[0] == "Reinitialize"
    assert rate.index("SwapOptimizer") < rate.index("ScaleLearningRate")
    assert rate[-2:] == ["ScaleLearningRate", "ScaleLearningRate"], "what acts on the same has not helped"
