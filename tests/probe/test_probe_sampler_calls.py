"""Which calls of which modules a sampler reads."""

from dataclasses import replace

import pytest
import torch
from sampled_models import MODELS, Checkpointed, Passing, Tied, sampled_once, vectors
from torch import nn

from evengrad.probe import Sampler


def test_a_module_that_is_called_again_has_a_reading_per_call():
    torch.manual_seed(0)
    names = [layer.name for layer in sampled_once(Tied(), torch.sum, vectors())]
    assert names == ["same", "tanh()", "same#2", "tanh()#2", "same#3", "tanh()#3", "two", "(model)"]


def test_only_the_first_micro_batch_counts_and_no_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    x, sampler = vectors(), Sampler(model)
    wanted = sampled_once(model, torch.sum, x)
    sampler.arm()
    with torch.no_grad():
        model(5 * x)
    model.eval()(7 * x).sum().backward()
    model.train()(x).sum().backward()
    model(9 * x).sum().backward()
    assert sampler.readings(sampler.packed().tolist()) == wanted


def test_a_frozen_part_in_evaluation_mode_is_read():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval(), nn.Linear(6, 1))
    assert [layer.name for layer in sampled_once(model, torch.sum, vectors())] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["checkpointed as a whole", "checkpointed", "reentrant"])
def test_what_a_checkpoint_computes_again_counts_once_in_forward_order(kind):
    torch.manual_seed(0)
    model = MODELS[kind][0]()
    x, sampler = vectors().requires_grad_(), Sampler(model)
    sampler.arm()
    with torch.no_grad():
        model(x)  # an evaluation in training mode
    model(x).sum().backward()
    found = sampler.readings(sampler.packed().tolist())
    parts = [f"parts.{part}.{place}" for part in range(2) for place in range(3)]
    assert [layer.name for layer in found] == ["first", *parts, "last"]
    assert all(layer.grad_rms for layer in found)


def test_a_checkpoint_may_change_its_kind_between_steps():
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant=False), vectors().requires_grad_()
    sampler = Sampler(model)
    names = []
    for reentrant in (False, True, False):
        model.reentrant = reentrant
        names.append([layer.name for layer in sampled_once(model, torch.sum, x, sampler)])
    assert names[0] == names[1] == names[2]


def test_evaluations_without_gradients_leave_little_behind():
    model = nn.Sequential(nn.Linear(6, 6))
    sampler = Sampler(model)
    sampler.arm()
    with torch.no_grad():
        for _ in range(1000):
            model(vectors())
    assert len(sampler._layers[0].waiting) <= 64
    assert sampler.readings(sampler.packed().tolist()) == ()


class Own(torch.Tensor):
    """Somebody's own kind of tensor."""


UNUSUAL = {
    "sparse": lambda x: x.to_sparse(),
    "of another kind": lambda x: x.as_subclass(Own),
    "without data": lambda x: x.to("meta"),
    "whole numbers": lambda x: x.long(),
    "none": lambda x: None,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_outputs_that_cannot_be_sampled_are_passed_over(kind):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.aside, self.after = nn.Linear(6, 6), Passing(UNUSUAL[kind]), nn.Tanh()

        def forward(self, x):
            h = self.before(x)
            self.aside(h)
            return self.after(h)

    assert [layer.name for layer in sampled_once(Aside(), torch.sum, vectors())] == ["before", "after"]


def test_a_graph_that_is_kept_does_not_reach_into_the_next_step():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6)), vectors()
    sampler = Sampler(model)
    sampler.arm()
    kept = model(x).sum()
    kept.backward(retain_graph=True)
    sampler.disarm()
    sampler.arm()
    (1000 * kept).backward(retain_graph=True)
    model(x).sum().backward()
    (1000 * kept).backward()
    assert [layer.grad_rms for layer in sampler.readings(sampler.packed().tolist())] == pytest.approx([1.0])


def test_the_last_gradient_of_several_counts_and_a_loss_scale_is_divided_out():
    model, x = nn.Sequential(nn.Linear(6, 6)), vectors()
    sampler = Sampler(model)
    sampler.arm()
    output = model(x)
    (inner,) = torch.autograd.grad(output.sum(), model[0].weight, create_graph=True)
    (512 * (2 * output.sum() + 0 * inner.sum())).backward()
    assert sampler.readings(sampler.packed().tolist(), loss_scale=512.0)[0].grad_rms == pytest.approx(2.0)


def test_a_cell_in_a_long_loop_keeps_its_last_calls():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            for step in range(200):
                x = self.cell(x) * 0 + step
            return self.head(x)

    model = Loop()
    model.cell.register_forward_hook(lambda module, args, out: out * 0 + args[0].mean(), prepend=True)
    sampler = Sampler(model)
    found = sampled_once(model, torch.sum, torch.zeros(3, 4), sampler)
    assert len(found) == 65
    assert sampler.layout.size == 9 * (65 + 1)  # and what the first module took
    assert [layer.activation_rms for layer in found[:64]] == pytest.approx([float(step) for step in range(135, 199)])
    assert (found[63].name, found[64].name) == ("cell#64", "head")


def test_no_more_than_2048_calls_are_kept():
    shared = [nn.Linear(2, 2, bias=False) for _ in range(40)]
    model = nn.Sequential(*(shared * 60))
    assert len(sampled_once(model, torch.sum, torch.ones(1, 2))) == 2048


def evaluated():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh()).eval()


def seen(sampler):
    return sampler.readings(sampler.packed().tolist())


def test_a_model_that_is_trained_in_evaluation_mode_is_read_as_in_training_mode_but_for_the_mode():
    x = vectors()
    wanted = sampled_once(evaluated().train(), torch.sum, x)
    found = sampled_once(evaluated(), torch.sum, x)
    assert [layer.name for layer in found] == ["0", "1", "2", "3"]
    assert [replace(layer, training=True) for layer in found] == list(wanted)
    assert not any(layer.training for layer in found)


def test_of_forwards_in_evaluation_mode_the_last_before_the_first_gradient_is_read():
    x, model = vectors(), evaluated()
    wanted, sampler = sampled_once(model, torch.sum, x), Sampler(model)
    sampler.arm()
    for factor in range(2, 30):
        model(factor * x)  # a validation that has forgotten no_grad
    with torch.no_grad():
        model(3 * x)
    model(x).sum().backward()
    model(5 * x).sum().backward()  # the next micro-batch
    assert seen(sampler) == wanted
    assert sum(group.used for group in sampler._calls.groups) == 5  # four layers, and what the first took


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_evaluation_with_gradients_is_not_mixed_into_a_training_in_training_mode(order):
    x, model = vectors(), evaluated().train()
    sampler = Sampler(model)
    sampler.arm()
    (model(x).sum() + model(2 * x).sum()).backward()
    wanted, sampler = seen(sampler), Sampler(model)
    sampler.arm()
    if order == "before":
        model.eval()(7 * x)
    outputs = model.train()(x), model(2 * x)
    if order == "after":
        model.eval()(7 * x)
    (outputs[0].sum() + outputs[1].sum()).backward()
    model.train()
    assert seen(sampler) == wanted
    assert [layer.name for layer in wanted[::4]] == ["0", "0#2"]


class Twice(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) + self.part(2 * x)


def test_a_model_that_is_called_twice_in_evaluation_mode_by_another_module_is_read_twice():
    names = [layer.name for layer in sampled_once(Twice(evaluated()).eval(), torch.sum, vectors())]
    assert [name for name in names if name.startswith("part.0")] == ["part.0", "part.0#2"]


def test_of_parts_in_evaluation_mode_those_calls_are_read_at_which_a_gradient_arrives():
    x, model = vectors(), evaluated()
    sampler = Sampler(model)
    sampler.arm()
    model[3](model[2](7 * x))
    model[3](model[2](x)).sum().backward()
    found = seen(sampler)
    rms = float(model[3](model[2](x)).detach().square().mean().sqrt())
    assert [layer.name for layer in found] == ["2", "3"]
    assert found[1].activation_rms == pytest.approx(rms, rel=1e-5)


def test_an_evaluation_that_no_gradient_comes_from_is_not_read():
    sampler = Sampler(model := evaluated())
    sampler.arm()
    model(vectors())
    assert seen(sampler) == ()


def test_a_layer_that_a_cut_hides_from_the_gradient_is_read_in_evaluation_mode_too():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.two(self.one(x).detach())

    found = sampled_once(Cut().eval(), torch.sum, vectors())
    assert [(layer.name, layer.grad_rms is None) for layer in found] == [("one", True), ("two", False)]


@pytest.mark.parametrize("kind", ["checkpointed as a whole", "checkpointed", "reentrant"])
def test_checkpoints_are_read_in_evaluation_mode_too(kind):
    torch.manual_seed(0)
    model = MODELS[kind][0]().eval()
    x, sampler = vectors().requires_grad_(), Sampler(model)
    sampler.arm()
    with torch.no_grad():
        model(7 * x)
    model(x).sum().backward()
    parts = [f"parts.{part}.{place}" for part in range(2) for place in range(3)]
    assert [layer.name for layer in seen(sampler)] == ["first", *parts, "last"]
    assert all(layer.grad_rms for layer in seen(sampler))


def test_an_interrupted_forward_does_not_hide_that_the_next_one_begins():
    x, model = vectors(), evaluated()
    wanted, sampler = sampled_once(model, torch.sum, x), Sampler(model)
    sampler.arm()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(2, 5))
    model(7 * x)
    model(x).sum().backward()
    assert seen(sampler) == wanted
