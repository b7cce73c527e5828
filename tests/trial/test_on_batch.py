"""What does not fit is told with the task, the batch by number, shapes and dtypes, and torch's own words."""

import re
import warnings

import pytest
import torch
from searched_tasks import data, task
from torch import nn
from torch.nn import functional

import evengrad
from evengrad.nouns import BatchError, LossError, ModelError, TaskError
from evengrad.trial._on_batch import in_shape, on_batch

INPUTS, LABELS = data()


def torchs_words(work):
    with pytest.raises(RuntimeError, match=r"\d") as caught:
        work()
    return " ".join(str(caught.value).split())


def told(**changes):
    sick = task(lambda: nn.Linear(16, 4), name="mine.py:task", **changes)
    with pytest.raises(TaskError, match=r"^mine\.py:task, batch \d") as caught:
        evengrad.repair(sick, seeds=1, engine="here")
    return str(caught.value)


def test_a_model_that_does_not_fit_its_batch_is_told_with_both():
    sick = task(lambda: nn.Linear(12, 4), name="mine.py:task")
    with pytest.raises(TaskError, match="mat1 and mat2") as caught:
        evengrad.repair(sick, seeds=1, engine="here")
    assert str(caught.value).startswith(
        "mine.py:task, batch 1 (input float32 (192, 16), target int64 (192,)), forward of Linear: got RuntimeError: "
    )
    assert torchs_words(lambda: nn.Linear(12, 4)(INPUTS)) in str(caught.value)


def test_a_loss_that_does_not_fit_its_target_is_told_with_both():
    target = functional.one_hot(LABELS, 5).float()
    said = told(train=lambda: [(INPUTS, target)])
    assert said.startswith("mine.py:task, batch 1 (input float32 (192, 16), target float32 (192, 5)), loss(output, ")
    assert torchs_words(lambda: functional.cross_entropy(torch.zeros(192, 4), target)) in said
    assert "an output of shape (192, 4)" in said


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", [2, 4, 7, 8])
def test_the_batch_that_does_not_fit_is_counted_from_the_first(bad, accumulate):
    """Some of them come at a step whose layers are read, some at others, some as the second of their step."""
    good = [(INPUTS[:8], LABELS[:8])] * (bad - 1)
    said = told(train=lambda: [*good, (INPUTS[:5, :10], LABELS[:5])], accumulate=accumulate)
    assert f"mine.py:task, batch {bad} (input float32 (5, 10), target int64 (5,))" in said
    assert torchs_words(lambda: nn.Linear(16, 4)(INPUTS[:5, :10])) in said


def test_a_backward_that_raises_names_the_batch():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            if len(passes) == 4:
                raise ValueError("no way back")
            return gradient

    passes = []

    def loss(output, target):
        passes.append(1)
        return functional.cross_entropy(Once.apply(output), target)

    assert re.search(r"mine\.py:task, batch \d+ \(input float32 .*no way back", told(loss=loss))


@pytest.mark.parametrize(("kind", "cause"), [(BatchError, True), (LossError, False), (ModelError, False)])
def test_what_is_wrong_by_itself_keeps_its_class_and_gets_the_batch(kind, cause):
    def work():
        raise kind("thing", came="this", wanted="that", advice="do") from (ValueError() if cause else None)

    with pytest.raises(kind, match=r"^task, batch 3 \(input float32 \(2,\), target NoneType\), thing: got this"):
        on_batch(task(), 3, (torch.zeros(2), None), work)


def test_inputs_of_several_parts_are_told_part_by_part_and_not_without_end():
    parts = (torch.zeros(2, 3), [torch.zeros(1, dtype=torch.int64)], {"mask": torch.ones(4, dtype=torch.bool)})
    assert in_shape(parts) == "(float32 (2, 3), (int64 (1,)), {mask: bool (4,)})"
    assert in_shape((torch.zeros(1),) * 40) == f"({'float32 (1,), ' * 4}36 more)"


def test_an_input_that_cannot_be_told_by_its_parts_is_told_by_its_type():
    class Hostile:
        def __str__(self):
            raise ValueError("no name")

    class Broken(dict):
        def items(self):
            raise RuntimeError("no items")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of nested tensors once in a process
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    assert in_shape((nested, torch.zeros(1))) == "(Tensor, float32 (1,))"
    assert in_shape({Hostile(): torch.zeros(1)}) == "{Hostile: float32 (1,)}"
    assert in_shape([Broken(a=1), 2]) == "(Broken, int)"


def test_an_input_within_inputs_is_told_three_levels_deep():
    assert in_shape([[[[torch.zeros(1)]]]]) == "(((list)))"
    assert in_shape([[[torch.zeros(1)]]]) == "(((float32 (1,))))"
    itself = []
    itself.append(itself)
    assert in_shape(itself) == "(((list)))"


def test_of_an_input_without_end_no_more_is_looked_at_than_is_told():
    class Endless(list):
        def __iter__(self):
            for number in range(6):
                taken.append(number)
                yield number

    taken = []
    assert in_shape(Endless(range(6))) == "(int, int, int, int, 2 more)"
    assert taken == [0, 1, 2, 3]


def test_a_key_is_told_short_and_cannot_steer_the_terminal():
    parts = {"\x1b[31m" + "k" * 50_000: torch.zeros(2, 10)}
    said = told(train=lambda: [(parts, LABELS)])
    assert f"(input {{?[31m{'k' * 35}…: float32 (2, 10)}}, target int64 (192,))" in said
    assert said.isprintable()
