"""The control: the same batches with the targets of others."""

import pickle
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from evengrad.nouns import Task, Trial
from evengrad.trial._control import Shuffled, control_of, is_doubtful


def pairs():
    inputs = torch.arange(12.0).reshape(12, 1)
    return [(inputs[:6], inputs[:6] * 2), (inputs[6:], inputs[6:] * 2)]


def singles():
    return [(torch.tensor([[value]]), torch.tensor([[2 * value]])) for value in (1.0, 2.0, 3.0)]


def nested():
    (data, target), _ = pairs()
    return [(data, {"a": target, "b": (target + 1, target + 2)})]


def test_targets_change_places_within_their_batch_and_inputs_do_not():
    for (data, target), (same, other) in zip(pairs(), Shuffled(train=pairs)(), strict=True):
        assert torch.equal(data, same)
        assert not torch.equal(target, other)
        assert torch.equal(target.sort(dim=0).values, other.sort(dim=0).values)


def test_every_call_shuffles_in_the_same_way():
    shuffled = Shuffled(train=pairs)
    assert all(torch.equal(one[1], two[1]) for one, two in zip(shuffled(), shuffled(), strict=True))


def test_parts_of_a_target_stay_together():
    ((_, target),) = Shuffled(train=nested)()
    assert torch.equal(target["a"] + 1, target["b"][0])
    assert torch.equal(target["a"] + 2, target["b"][1])


def test_a_batch_of_one_takes_the_target_before_it():
    targets = [float(target) for _, target in Shuffled(train=singles)()]
    assert targets == [2.0, 2.0, 4.0]


def drawn_anew():
    inputs = torch.arange(40.0).reshape(20, 2)
    for _ in range(6):
        places = torch.randperm(20)[:8]
        yield inputs[places], 3 * inputs[places].sum(1)


def test_a_sample_that_comes_again_in_another_batch_has_the_target_that_it_was_given():
    torch.manual_seed(0)
    shuffled = Shuffled(train=drawn_anew)
    given = {}
    for data, target in [*shuffled(), *shuffled()]:
        for sample, one in zip(data, target, strict=True):
            given.setdefault(tuple(sample.tolist()), set()).add(float(one))
    assert len(given) == 20
    assert all(len(targets) == 1 for targets in given.values())
    wrong = [float(next(iter(targets))) != 3 * sum(sample) for sample, targets in given.items()]
    assert sum(wrong) >= 15


def test_each_control_has_an_order_of_its_own():
    one, other = (torch.cat([target for _, target in Shuffled(train=pairs, seed=seed)()]) for seed in (2, 3))
    assert not torch.equal(one, other)


def test_with_more_samples_than_can_be_remembered_no_sample_gets_its_own_target_back(monkeypatch):
    monkeypatch.setattr("evengrad.trial._control.MOST_KNOWN", 0)
    shuffled = Shuffled(train=pairs)
    for (_, target), (_, other) in zip(pairs(), shuffled(), strict=True):
        assert not torch.equal(target, other)
        assert torch.equal(target.sort(dim=0).values, other.sort(dim=0).values)
    assert not shuffled.given


def test_targets_of_unlike_lengths_and_inputs_that_are_no_rows_are_shuffled_within_their_batch():
    data = torch.zeros(3, 2)
    lengths = [(data, torch.arange(3 * length).reshape(3, length)) for length in (2, 5)]
    for _, target in Shuffled(train=lambda: lengths)():
        assert target.shape in {(3, 2), (3, 5)}
        assert not torch.equal(target, torch.arange(target.numel()).reshape(target.shape))
    ((_, target),) = Shuffled(train=lambda: [("text", torch.arange(9))])()
    assert sorted(target.tolist()) == list(range(9))
    assert target.tolist() != list(range(9))


def test_the_metric_is_still_that_of_the_true_targets_and_the_task_can_be_pickled():
    task = Task(
        model=nn.Identity, optimizer=len, loss=functional.mse_loss, train=pairs, validate=len, steps=1, name="x"
    )
    control = control_of(task)
    assert control.validate is task.validate
    assert replace(control, train=task.train) == task
    assert pickle.loads(pickle.dumps(control)).train() is not None


def trial(metric):
    return Trial(label="x", seed=0, steps=1, stage="confirmation", metric=metric)


def test_a_gain_of_a_tenth_is_doubtful_and_of_half_is_not():
    assert is_doubtful([0.03, 0.2], [trial(0.3), trial(0.5)])
    assert not is_doubtful([0.4, 0.5], [trial(0.9), trial(0.95)])
    assert is_doubtful([], [])
