"""Rules of the course of the loss: on series made by hand, on noise, and on trainings that go well or do not."""

import math
import random

import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of, rules
from evengrad.nouns import Ends, Reading, Record, TensorReading
from evengrad.probe import EndsSample

BY_CODE = {rule.code: rule for rule in rules.ALL}
CODES = ("EG801", "EG802", "EG803", "EG804")
SQUARED, CE = ("MseLoss",), ("NllLoss", "LogSoftmax")


def record(losses, constant=None, *, ops=SQUARED, every=5, count=64, lrs=None, first_step=0, **settings):
    """A run with these losses whose batches have this constant loss."""
    whole = ops == CE
    target = TensorReading(
        name="target", dtype="int64" if whole else "float32", shape=(count,), minimum=0.0, maximum=3.0
    )
    ends = Ends(
        loss_ops=ops,
        target=target,
        constant_loss=constant,
        softmax_size=4 if whole else None,
        output=TensorReading(name="output", std=1.0),
    )
    readings = [
        Reading(
            step=first_step + step,
            loss=loss,
            lrs=() if lrs is None else (lrs[step],),
            ends=ends if every and step % every == 0 else None,
        )
        for step, loss in enumerate(losses)
    ]
    return Record(readings=tuple(readings), **{"source": "guard"} | settings)  # as it stands while it runs


def speaking(run):
    signs = {code: BY_CODE[code].judge(run) for code in CODES}
    return [code for code, sign in signs.items() if sign is not None and sign.speaks]


def noisy(course, std=0.05, count=200, seed=0):
    rng = random.Random(seed)
    return [course(step) + rng.gauss(0.0, std) for step in range(count)]


def flat(level, **settings):
    return noisy(lambda _: level, **settings)


def test_losses_too_few_and_runs_without_any_cannot_be_told():
    for run in (Record(), record([1.0] * 9, 1.0), record([None] * 300, 1.0)):
        assert all(run.readings == () or BY_CODE[code].judge(run) is None for code in CODES)


# --- EG804, EG801: no better than a constant ---


def test_a_loss_that_stays_where_a_constant_has_it_is_not_learning():
    seen = BY_CODE["EG804"].judge(record(flat(1.0), 1.0))
    assert seen.speaks
    assert seen.where == ("loss",)
    assert seen.evidence[0].value == pytest.approx(1.0, abs=0.02)
    assert speaking(record(flat(1.0), 1.0)) == ["EG804"]


@pytest.mark.parametrize(
    ("level", "std", "speaks"),
    [
        (1.00, 0.05, True),
        (1.60, 0.05, True),  # worse than a constant
        (0.93, 0.05, False),  # 7 % better
        (0.97, 0.01, False),  # 3 % better, and sure of it
        (1.00, 0.50, False),  # too noisy to say
        (0.93, 0.25, False),  # not sure to be less than 5 % better
    ],
)
def test_not_learning_needs_a_level_and_to_be_sure_of_it(level, std, speaks):
    assert ("EG804" in speaking(record(flat(level, std=std), 1.0))) == speaks


def test_a_hard_task_with_a_signal_of_four_per_cent_is_never_told_in_fifty_runs():
    assert not any(speaking(record(flat(0.96, std=0.03, seed=seed, count=400), 1.0)) for seed in range(50))


def test_a_loss_that_came_down_to_the_constant_is_a_plateau():
    losses = noisy(lambda step: 1.0 + 30.0 * 0.8**step)
    run = record(losses, 1.0)
    assert speaking(run) == ["EG801"]
    first, last = BY_CODE["EG801"].judge(run).when
    assert 5 <= first <= 40
    assert last == 199


def test_a_run_that_has_converged_below_the_constant_is_no_plateau():
    assert speaking(record(noisy(lambda step: 0.3 + 2.0 * 0.9**step), 1.0)) == []
    assert speaking(record(flat(0.3), 1.0)) == []  # fine-tuning of what was good to begin with


def test_a_loss_that_still_falls_is_told_only_when_the_run_has_ended():
    losses = noisy(lambda step: 2.0 - 0.002 * step)
    assert speaking(record(losses, 1.0)) == []
    assert speaking(record(losses, 1.0, source="run")) == ["EG804"]
    assert speaking(record(losses, 1.0, source="run", complete=False)) == []
    assert "still falling" in BY_CODE["EG804"].judge(record(losses, 1.0, source="run")).message


@pytest.mark.parametrize(
    ("count", "live", "ended"), [(29, False, False), (31, False, True), (199, False, True), (201, True, True)]
)
def test_a_run_is_judged_after_two_hundred_steps_or_thirty_if_it_has_ended(count, live, ended):
    losses = flat(1.0, count=count)
    assert (speaking(record(losses, 1.0, every=2)) != []) == live
    assert (speaking(record(losses, 1.0, every=2, source="run")) != []) == ended


def test_a_learning_rate_that_warms_up_is_waited_for():
    warm = [0.001 * (step + 1) for step in range(300)]
    assert speaking(record(flat(1.0, count=300), 1.0, lrs=warm)) == []
    assert speaking(record(flat(1.0, count=300), 1.0, lrs=[min(rate, 0.05) for rate in warm])) == ["EG804"]
    assert speaking(record(flat(1.0, count=300), 1.0, lrs=[1.0] * 50 + [1e-3] * 250)) == []  # hardly any steps


def test_a_run_that_was_better_in_between_has_learnt_something():
    game = noisy(lambda step: 1.0 - 0.4 * math.exp(-(((step - 80) / 20) ** 2)))
    assert speaking(record(game, 1.0)) == []


@pytest.mark.parametrize("ops", [(), ("Neg", "Mean"), ("Add", "MseLoss"), ("Mean", "Mul", "NllLoss", "LogSoftmax")])
def test_losses_of_unknown_form_have_no_level(ops):
    assert speaking(record(flat(1.0), 1.0, ops=ops)) == []


def test_small_batches_are_fitted_by_their_constant_and_not_compared_with_it():
    rng = random.Random(0)
    assert speaking(_with_constants(flat(1.0), [0.5 + 0.3 * rng.random() for _ in range(200)], count=4)) == []


def test_what_a_constant_owes_to_its_fit_is_taken_from_it():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(200, 16, generator=generator, dtype=torch.float64)  # batches of 16 from a variance of 1
    fitted = targets.var(1, correction=0).tolist()
    assert sum(fitted) / 200 == pytest.approx(15 / 16, abs=0.05)
    assert speaking(_with_constants([0.93 * one for one in targets.var(1).tolist()], fitted, count=16)) == []
    assert speaking(_with_constants(targets.var(1).tolist(), fitted, count=16)) == ["EG804"]


def _with_constants(losses, constants, **settings):
    run = record(losses, 1.0, **settings)
    given = [
        Reading(step=one.step, loss=one.loss, ends=one.ends and Ends(**_but(one.ends, constant_loss=constant)))
        for one, constant in zip(run.readings, constants, strict=True)
    ]
    return Record(readings=tuple(given), source="guard")


def _but(ends, **settings):
    return {name: getattr(ends, name) for name in ends.__slots__} | settings


def test_a_cross_entropy_of_single_samples_is_held_against_guessing():
    guessing, learning = flat(math.log(4), std=0.1), noisy(lambda _: 0.9, std=0.5)
    assert speaking(record(guessing, None, ops=CE, count=1)) == ["EG804"]
    assert speaking(record(learning, None, ops=CE, count=1)) == []
    assert speaking(record([0.1, *guessing[1:]], None, ops=CE, count=1)) == ["EG804"]  # one is its own mean


def test_small_batches_are_held_against_guessing_only_if_their_loss_is_a_mean():
    mean, total = flat(math.log(4), std=0.1), flat(4 * math.log(4), std=0.1)
    assert speaking(record(mean, None, ops=CE, count=4)) == ["EG804"]
    assert speaking(record(total, None, ops=CE, count=4)) == []


def test_a_loss_without_noise_that_has_not_moved_is_told_without_a_constant():
    still = [0.5 - 1e-7 * step for step in range(2000)]
    assert speaking(record(still, None, count=4)) == ["EG804"]
    assert speaking(record([0.01 * one for one in still], None, count=4)) == []  # a good fit to begin with
    assert speaking(record([0.5 - 1e-4 * step for step in range(2000)], None, count=4)) == []
    assert speaking(record(flat(0.5, std=0.01, count=2000), None, count=4)) == []


def test_only_as_a_root_a_loss_that_stands_still_says_where_to_look():
    (alone,) = findings_of(record(flat(1.0), 1.0))
    assert "look at the data, the labels" in alone.message
    assert alone.follows == ()


# --- EG802 ---


def test_a_loss_that_swings_above_the_constant_oscillates():
    swinging = [max(0.0, loss) for loss in flat(6.0, std=5.0, count=600)]
    run = record(swinging, 1.0)
    assert "EG802" in speaking(run)
    assert BY_CODE["EG802"].judge(run).severity == "warning"
    assert "EG802" not in speaking(record([loss / 10 for loss in swinging], 1.0))  # as noisy, but better than it


def test_a_strict_alternation_that_grows_is_told_without_a_constant():
    growing = [1.0 + (-1) ** step * min(0.9, 0.01 * 1.02**step) for step in range(400)]
    assert speaking(record(growing, None)) == ["EG802"]
    assert speaking(record([loss - 5.0 for loss in growing], None)) == []  # a loss below zero has no level
    rng = random.Random(1)
    any_turns = [1.0 + rng.uniform(-1.0, 1.0) * min(0.98, 0.01 * 1.02**step) for step in range(400)]
    assert speaking(record(any_turns, None)) == []
    steady = [1.0 + 0.9 * (-1) ** step for step in range(400)]  # two batches in turn, one easy and one hard
    assert speaking(record(steady, None)) == []
    falling = [2.0 * 0.99**step * (1.0 + 0.2 * (-1) ** step) for step in range(400)]
    assert speaking(record(falling, None)) == []


def test_white_noise_of_any_size_around_any_level_is_no_oscillation():
    for seed, (level, std) in enumerate([(1.0, 0.1), (1.0, 3.0), (0.0, 1.0), (-4.0, 2.0), (100.0, 30.0)] * 8):
        assert "EG802" not in speaking(record(flat(level, std=std, seed=seed, count=400), None))


# --- EG803 ---


@pytest.mark.parametrize(("factor", "speaks"), [(2.2, True), (1.8, False)])
def test_a_loss_above_the_constant_diverges_from_twice_its_start_on(factor, speaks):
    rising = noisy(lambda step: 1.5 + 1.5 * (factor - 1.0) * min(1.0, step / 100), std=0.02, count=300)
    assert ("EG803" in speaking(record(rising, 1.0))) == speaks


def test_a_rise_below_the_constant_is_no_divergence():
    rising = noisy(lambda step: 0.1 + 0.4 * min(1.0, step / 100), std=0.02, count=300)
    assert speaking(record(rising, 1.0)) == []


@pytest.mark.parametrize(("top", "speaks"), [(3e4, True), (3e3, False)])
def test_a_loss_of_unknown_form_diverges_at_four_decades(top, speaks):
    rising = noisy(lambda step: top ** (min(step, 250) / 250), std=0.02, count=300)
    assert ("EG803" in speaking(record(rising, None, ops=()))) == speaks


def test_a_loss_that_overflows_has_diverged_however_few_steps_it_took():
    run = record([2.0, 8.0, 70.0, math.nan, math.nan], None, ops=())
    seen = BY_CODE["EG803"].judge(run)
    assert seen.speaks
    assert seen.when[0] == 2
    assert "from 2 to 70" in seen.message
    assert BY_CODE["EG803"].judge(record([2.0, 2.1, 1.9, math.nan], None)) is None  # that is a number, no course


def test_a_cross_entropy_that_gives_back_what_it_had_gained_diverges():
    lost = noisy(lambda step: 1.3 - 1.1 * min(1.0, step / 100) if step < 200 else 1.25, std=0.02, count=300)
    assert "EG803" in speaking(record(lost, None, ops=CE, every=400))
    back = noisy(lambda step: lost[step] if step < 220 else 1.25 - 0.01 * (step - 220), std=0.0, count=300)
    assert "EG803" not in speaking(record(back, None, ops=CE, every=400))
    assert "EG803" not in speaking(record(lost, None, ops=("Neg",), every=400))  # a game


def test_a_resumed_run_is_not_compared_with_its_first_loss():
    rising = noisy(lambda step: 0.1 + min(step, 200) * 10.0, std=0.02, count=300)
    assert speaking(record(rising, None, ops=(), first_step=1000)) == []


# --- trainings ---


def trained(model, optimizer, batches, loss, every=5):
    readings = []
    for step, (inputs, target) in enumerate(batches):
        optimizer.zero_grad()
        output = model(inputs)
        value = loss(output, target)
        ends = None
        if step % every == 0:
            sample = EndsSample(inputs, output, loss=value)
            ends = sample.readings(sample.packed().tolist())
        value.backward()
        optimizer.step()
        readings.append(Reading(step=step, loss=value.item(), ends=ends, lrs=(optimizer.param_groups[0]["lr"],)))
        if not math.isfinite(value.item()):
            break
    return Record(readings=tuple(readings), source="guard")


def drawn(inputs, target, size, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        rows = torch.randint(0, len(target), (size,), generator=generator)
        yield inputs[rows], target[rows]


def digits():
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def diabetes():
    data = load_diabetes()
    inputs, target = torch.tensor(data.data), torch.tensor(data.target)[:, None]
    return ((inputs - inputs.mean(0)) / inputs.std(0)).float(), target.float()


def net(features, outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, outputs))


def test_a_training_on_shuffled_labels_is_not_learning_and_one_on_the_right_ones_is():
    inputs, labels = digits()
    shuffled = ((x, y[torch.randperm(len(y))]) for x, y in drawn(inputs, labels, 64, 300))
    for batches, told in ((shuffled, ["EG804"]), (drawn(inputs, labels, 64, 300), [])):
        model = net(64, 10)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        assert speaking(trained(model, adam, batches, functional.cross_entropy)) == told


@pytest.mark.parametrize(("lr", "told"), [(0.05, ["EG803"]), (1e-5, [])])
def test_a_regression_whose_steps_are_too_long_diverges(lr, told):
    model = net(10, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    assert speaking(trained(model, sgd, drawn(*diabetes(), 32, 150), functional.mse_loss)) == told


def test_inputs_that_say_nothing_leave_the_mean_of_the_target_as_a_plateau():
    inputs, target = diabetes()
    batches = ((torch.zeros_like(x), y) for x, y in drawn(inputs, target / 50, 64, 400))
    model = net(10, 1)
    adam = torch.optim.Adam(model.parameters(), lr=3e-2)
    assert speaking(trained(model, adam, batches, functional.mse_loss)) == ["EG801"]


@pytest.mark.parametrize("joined", [False, True])
def test_two_players_are_not_told_that_they_do_not_learn(joined):
    torch.manual_seed(0)
    makes, tells = net(4, 2), net(2, 1)
    optimizers = [torch.optim.Adam(one.parameters(), lr=3e-4) for one in (makes, tells)]
    bce, ones, zeros = functional.binary_cross_entropy_with_logits, torch.ones(64, 1), torch.zeros(64, 1)
    courses = ([], [])
    for step in range(400):
        real, fake = 0.5 * torch.randn(64, 2) + 1.0, makes(torch.randn(64, 4))
        both = tells(torch.cat([real, fake.detach()]))
        told = bce(both, torch.cat([ones, zeros])) if joined else bce(both[:64], ones) + bce(both[64:], zeros)
        made = bce(tells(fake), ones)
        for course, value, output, optimizer in zip(courses, (made, told), (fake, both), optimizers, strict=True):
            sample = EndsSample(real, output, loss=value)
            course.append(Reading(step=step, loss=value.item(), ends=sample.readings(sample.packed().tolist())))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for course in courses:
        assert speaking(Record(readings=tuple(course), source="guard")) == []


def test_a_policy_gradient_has_no_level_and_is_not_told():
    policy = net(4, 3)
    adam = torch.optim.Adam(policy.parameters(), lr=1e-3)
    best = torch.randn(4, 3)

    def loss(output, target):
        choice = torch.distributions.Categorical(logits=output.detach()).sample()
        reward = (choice == target).float()
        return (functional.cross_entropy(output, choice, reduction="none") * (reward - reward.mean())).mean()

    states = (torch.randn(64, 4) for _ in range(400))
    assert speaking(trained(policy, adam, ((x, (x @ best).argmax(1)) for x in states), loss)) == []
