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
