"""Repair: paired trials, honest verdicts, and nothing lost when it is interrupted."""

import copy
import math
import re
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional

import evengrad
from evengrad.nouns import BatchError, LossError, NotARunError, OptimizerError, SettingError, TaskError
from evengrad.runlog import read, read_story
from evengrad.treat import make


def data(count=192):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 16, generator=generator)
    return inputs, inputs[:, :4].argmax(1)


def deep(activation, depth, std=None):
    def make():
        layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), activation())]
        model = nn.Sequential(*layers, nn.Linear(16, 4))
        if std is not None:
            for module in model:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=std)
        return model

    return make


def task(model, **changes):
    inputs, labels = data()
    settings = {
        "model": model,
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=5e-3),
        "loss": functional.cross_entropy,
        "train": lambda: zip(inputs.split(64), labels.split(64), strict=True),
        "validate": lambda model: (model(inputs).argmax(1) == labels).float().mean().item(),
        "steps": 60,
        "name": "sixteen numbers",
    }
    return evengrad.Task(**(settings | changes))


@pytest.fixture(scope="module")
def vanished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    return evengrad.repair(task(deep(nn.Sigmoid, 12)), log=folder / "run"), folder / "run"


def test_a_vanishing_task_is_cured_on_every_confirming_seed(vanished):
    result, _ = vanished
    verdict = result.verdict
    assert verdict.outcome == "cured"
    assert [finding.code for finding in result.findings] == ["EG402", "EG101"]
    assert len(verdict.seeds) == 3
    assert all(after > before for before, after in zip(verdict.metric_before, verdict.metric_after, strict=True))
    assert all(after < before for before, after in zip(verdict.symptoms_before, verdict.symptoms_after, strict=True))


def test_the_confirming_seeds_were_not_used_for_choosing(vanished):
    result, _ = vanished
    choosing = {trial.seed for trial in result.trials if trial.stage != "confirmation"}
    assert choosing <= {0, 1}
    assert not choosing & set(result.verdict.seeds)


def test_the_verdict_is_what_its_trials_say(vanished):
    result, _ = vanished
    seeds = set(result.verdict.seeds)
    confirmed = [trial for trial in result.trials if trial.stage == "confirmation" and trial.seed in seeds]
    by_label = {
        label: [t.metric for t in confirmed if t.label == label] for label in ("untreated", result.verdict.label)
    }
    assert tuple(by_label["untreated"]) == result.verdict.metric_before
    assert tuple(by_label[result.verdict.label]) == result.verdict.metric_after


def test_the_trained_model_reaches_the_metric_of_the_verdict(vanished):
    result, _ = vanished
    with torch.no_grad():
        metric = result.task.validate(result.model.eval())
    assert metric == pytest.approx(max(result.verdict.metric_after))


def test_the_patch_turns_a_fresh_model_into_the_treated_one(vanished):
    result, _ = vanished
    torch.manual_seed(1)
    space = {"torch": torch, "nn": nn, "model": deep(nn.Sigmoid, 12)()}
    space["optimizer"] = torch.optim.Adam(space["model"].parameters(), lr=5e-3)
    exec(result.code, space)
    torch.manual_seed(1)
    wanted = result.task.model()
    assert [type(m).__name__ for m in space["model"].modules()] == [type(m).__name__ for m in wanted.modules()]


def test_the_log_holds_both_runs_and_the_story(vanished):
    result, folder = vanished
    assert read_story(folder) == result.story
    untreated = read(folder / "untreated")
    assert untreated.complete
    assert [reading.loss for reading in untreated.readings[:-1]] == pytest.approx(list(result.trials[0].losses))
    assert untreated.readings[-1].step == result.task.steps, "the last one is taken after the last step"
    assert read(folder / "treated").complete


def test_the_report_and_the_text_tell_the_same_verdict(vanished, tmp_path):
    result, _ = vanished
    page = result.report(tmp_path / "report.html").read_text()
    assert "cured" in page
    assert "cured" in str(result)
    assert result.findings[0].code in page


def test_no_cure_that_was_trained_is_told_as_not_tried(vanished):
    result, _ = vanished
    assert result.findings == result.story.findings
    trained = {part for trial in result.trials for part in trial.label.split(" + ")}
    cures = [cure for finding in result.findings for cure in finding.cures]
    told = {make(cure.treatment, cure.settings).label for cure in cures if cure.trials}
    assert told == trained & {make(cure.treatment, cure.settings).label for cure in cures}
    won = {make(cure.treatment, cure.settings).label for cure in cures if cure.trials.startswith("won")}
    assert won
    assert won <= set(result.verdict.label.split(" + "))


def test_the_floor_of_a_verdict_is_what_fresh_models_reach(vanished):
    result, _ = vanished
    reached = {"untreated": [], "treated": []}
    for seed in result.verdict.seeds:
        for name, make_model in (("untreated", deep(nn.Sigmoid, 12)), ("treated", result.task.model)):
            torch.manual_seed(seed)
            reached[name].append(result.task.validate(make_model().eval()))
    floor = max(statistics.median(metrics) for metrics in reached.values())
    assert result.verdict.metric_fresh == pytest.approx((floor,) * 3)


def test_the_same_seed_gives_the_same_trials():
    once = evengrad.repair(task(deep(nn.Sigmoid, 12), steps=16), seeds=1, engine="here")
    torch.rand(7)  # whatever happened outside must not matter
    again = evengrad.repair(task(deep(nn.Sigmoid, 12), steps=16), seeds=1, engine="here")
    assert [trial.losses for trial in once.trials] == [trial.losses for trial in again.trials]
    assert once.verdict == again.verdict


def test_an_untreated_trial_is_the_training_that_a_plain_loop_would_do():
    from evengrad.trial._plan import Plan
    from evengrad.trial._training import run_course

    with_dropout = lambda: nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 4))  # noqa: E731
    plain = task(with_dropout, steps=20)
    course = run_course(Plan(task=plain, label="untreated", seed=7, steps=20, stage="scout"), lambda count: None)
    torch.manual_seed(7)
    model = plain.model()
    optimizer = plain.optimizer(model)
    torch.manual_seed(7)
    losses = []
    for _, (inputs, labels) in zip(range(20), [batch for _ in range(7) for batch in plain.train()], strict=False):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert list(course.trial.losses) == losses
    assert all(
        torch.equal(one, two) for one, two in zip(course.state.values(), model.state_dict().values(), strict=True)
    )


def test_treated_and_untreated_trials_start_from_the_same_weights():
    plain = task(deep(nn.Sigmoid, 12))
    treated = make("SwapActivation", [("to", "tanh")]).treat_task(plain).subject
    torch.manual_seed(3)
    one = plain.model()
    torch.manual_seed(3)
    two = treated.model()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.fixture(scope="module")
def exploded():
    sick = task(deep(nn.ReLU, 12, std=1.5), optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), steps=200)
    return evengrad.repair(sick, seeds=2, engine="here")


def test_an_exploding_task_is_cured_although_its_untreated_training_failed(exploded):
    assert exploded.trials[0].metric is None
    assert "the loss is" in exploded.trials[0].error
    assert {"EG102", "EG201"} & {finding.code for finding in exploded.findings}
    assert exploded.verdict.outcome == "cured"
    assert exploded.verdict.metric_before == (None, None)


def test_a_gradient_that_is_not_finite_is_not_drawn_as_zero(exploded):
    before = exploded.story.heat_maps[0]
    assert math.isnan(before.values[0][-1])
    assert before.values[0][0] > 0


def test_a_healthy_task_is_not_touched():
    healthy = task(deep(nn.ReLU, 2))
    result = evengrad.repair(healthy, engine="here")
    assert result.verdict.outcome == "was not sick"
    assert result.findings == ()
    assert len(result.trials) == 1
    assert result.task is healthy


def test_what_only_silences_the_rule_is_not_called_cured():
    """A metric that no treatment can raise, although several of them remove the symptom."""
    result = evengrad.repair(task(deep(nn.Sigmoid, 12), validate=lambda model: 0.25, steps=16), seeds=2, engine="here")
    assert [finding.code for finding in result.findings] == ["EG402", "EG101"]
    assert any(not trial.findings for trial in result.trials), "some treatment must silence the rule"
    assert result.verdict.outcome == "not cured"
    assert result.treatment is None
    assert result.patch == ""


@pytest.mark.parametrize("after_steps", [30, 100])
def test_ctrl_c_leaves_what_was_found_so_far(after_steps, tmp_path):
    def stop(what, done, total):
        if done >= after_steps and not what.startswith("trying"):  # in the middle of a training
            raise KeyboardInterrupt

    result = evengrad.repair(task(deep(nn.Sigmoid, 12)), progress=stop, log=tmp_path / "run", engine="here")
    assert result.interrupted
    assert result.verdict.outcome == "not cured"
    assert result.verdict.said == "interrupted"
    assert "interrupted; until then EG402 initial weights too small, EG101" in result.verdict.message
    assert ("and no treatment tried" in result.verdict.message) == (after_steps == 30)
    told = " ".join(str(result).split())
    assert "interrupted: nothing was proved" in told
    assert "not cured" not in told
    assert any("interrupted" in note for note in result.story.notes)
    assert result.trials
    assert "interrupted after" in result.trials[-1].error
    assert [finding.code for finding in result.findings][:2] == ["EG402", "EG101"]  # and what follows, by when it ended
    assert read_story(tmp_path / "run") == result.story


@pytest.mark.parametrize("pair", [1, 2])
def test_ctrl_c_in_a_proof_is_an_interruption_and_says_what_there_was(pair):
    """In the first pair that is the furthest candidate; in the second, of another finalist, what the first came to."""

    def stop(what, done, total):
        seeds.update(re.findall(r"^confirmation: .* seed (\d+)", what))
        if len(seeds) == pair:
            raise KeyboardInterrupt

    seeds = set()
    sick = task(deep(nn.Sigmoid, 12), validate=lambda model: 0.25, steps=16)
    result = evengrad.repair(sick, seeds=2, progress=stop, engine="here")
    assert (result.verdict.outcome, result.verdict.said) == ("not cured", "interrupted")
    assert ("is the furthest: metric 0.250 after" in result.verdict.message) == (pair == 1)
    assert ("metric 0.250 before, 0.250 after" in result.verdict.message) == (pair == 2)
    assert "when it was interrupted" in result.story.headline


def test_a_second_search_in_the_same_folder_loses_nothing(tmp_path):
    for _ in range(2):
        evengrad.repair(task(deep(nn.ReLU, 2), steps=8), log=tmp_path / "run", engine="here")
    assert read(tmp_path / "run" / "untreated").complete
    assert read(tmp_path / "run" / "untreated-2").complete


def test_a_folder_of_something_else_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    trained = []
    watched = task(deep(nn.ReLU, 2), after_step=trained.append)
    with pytest.raises(NotARunError, match=r"want .*"):
        evengrad.repair(watched, log=tmp_path, engine="here")
    assert trained == []
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("validate", [None, lambda model: 0.25], ids=["first confirmed", "none confirmed"])
@pytest.mark.parametrize("budget", [75, 100, 120, 400])
def test_the_budget_is_kept(validate, budget):
    counted = []
    changes = {} if validate is None else {"validate": validate}
    counting = task(deep(nn.Sigmoid, 12), steps=20, after_step=lambda model: counted.append(1), **changes)
    evengrad.repair(counting, seeds=1, budget=budget, engine="here")
    assert 60 < len(counted) <= budget


def test_a_budget_that_is_too_small_is_refused():
    with pytest.raises(SettingError, match="want at least 70 optimizer steps"):
        evengrad.repair(task(deep(nn.Sigmoid, 12), steps=20), seeds=1, budget=69, engine="here")


def test_schedule_clip_and_after_step_are_part_of_the_training():
    from evengrad.trial._plan import Plan
    from evengrad.trial._training import run_course

    seen = []
    full = task(
        deep(nn.ReLU, 2),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0),
        schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        after_step=lambda model: seen.append(sum(p.detach().square().sum().item() for p in model.parameters())),
        clip=1e-3,
        steps=4,
    )
    course = run_course(Plan(task=full, label="untreated", seed=0, steps=4, stage="scout"), lambda count: None)
    readings = course.record.readings[:-1]
    assert [reading.lrs for reading in readings] == [(1.0,), (0.5,), (0.25,), (0.125,)]
    assert all(reading.scale == pytest.approx(1e-3 / (reading.total_norm + 1e-6), rel=1e-5) for reading in readings)
    assert len(seen) == 4


def test_the_random_state_outside_is_left_alone():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    evengrad.repair(task(deep(nn.Sigmoid, 12), steps=8), seeds=1, engine="here")
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_tasks_are_named():
    good = deep(nn.ReLU, 2)
    inputs, labels = data()
    with pytest.raises(BatchError, match=r"Task\.train\(\): got no batch"):
        evengrad.repair(task(good, train=list), engine="here")
    with pytest.raises(BatchError, match="pairs"):
        evengrad.repair(task(good, train=lambda: [inputs]), engine="here")
    with pytest.raises(BatchError, match="labels from 7 to 10"):
        evengrad.repair(task(good, train=lambda: [(inputs, labels + 7)]), engine="here")
    with pytest.raises(LossError, match="a tensor of shape"):
        evengrad.repair(task(good, loss=lambda output, target: output), engine="here")
    with pytest.raises(LossError, match="without a graph"):
        evengrad.repair(
            task(good, loss=lambda output, target: functional.cross_entropy(output, target).detach()), engine="here"
        )
    with pytest.raises(TaskError, match=r"Task\.model: got ZeroDivisionError"):
        evengrad.repair(task(lambda: 1 // 0), engine="here")
    with pytest.raises(TaskError, match=r"Task\.optimizer: got NoneType"):
        evengrad.repair(task(good, optimizer=lambda model: None), engine="here")
    with pytest.raises(OptimizerError, match="none of them of the model"):
        evengrad.repair(task(good, optimizer=lambda model: torch.optim.SGD(good().parameters())), engine="here")
    with pytest.raises(TaskError, match=r"validate\(model\): got KeyError"):
        evengrad.repair(task(good, validate=lambda model: {}["accuracy"]), engine="here")
    with pytest.raises(SettingError, match="seeds: got 0"):
        evengrad.repair(task(good), seeds=0, engine="here")


def test_a_batch_that_turns_bad_on_the_way_is_named():
    inputs, labels = data()
    bad = inputs.clone()
    bad[5] = float("inf")
    turning = task(deep(nn.ReLU, 2), train=lambda: [(inputs, labels), (inputs, labels), (bad, labels)])
    verdict = evengrad.repair(turning, engine="here").verdict
    assert verdict.outcome == "cannot be cured by a tool"
    assert re.search(r"batch 3 .*batch input: got 16 of 3072 values that are NaN or infinite", verdict.message)


def test_the_task_that_came_is_left_as_it_was():
    sick = task(deep(nn.Sigmoid, 12), steps=8)
    before = copy.copy(sick)
    evengrad.repair(sick, seeds=1, engine="here")
    assert sick == before


@pytest.mark.parametrize("engine", ["here", "local"])
def test_data_that_are_not_finite_are_a_verdict_that_names_the_batch_and_no_tool_can_cure(engine, tmp_path):
    inputs = torch.randn(8, 4)
    inputs[3, 1] = float("nan")
    labels = torch.zeros(8, dtype=torch.int64)
    broken = evengrad.Task(
        model=lambda: nn.Linear(4, 2),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=functional.cross_entropy,
        train=lambda: [(inputs, labels)],
        validate=lambda model: 0.5,
        steps=8,
    )
    result = evengrad.repair(broken, engine=engine, log=tmp_path / "log")
    assert result.verdict.outcome == "cannot be cured by a tool"
    assert "batch 1" in result.verdict.message
    assert "1 of 32 values that are NaN or infinite" in result.verdict.message
    result.report(tmp_path / "page.html")
    assert "the data have to change" in (tmp_path / "page.html").read_text()
