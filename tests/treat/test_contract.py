"""What every treatment promises, tried on every model."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat import (
    ALL,
    AddNormalization,
    AddResidual,
    ClipGradients,
    Combined,
    ConstrainWeights,
    Reinitialize,
    ScaleLearningRate,
    SwapActivation,
    SwapOptimizer,
    UseGatedCell,
    make,
)


def fingerprint(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return state, modules, hooks, [parameter.grad for parameter in model.parameters()]


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def treated_or_none(treatment, model, batch, seed=0):
    try:
        return treatment.treat(model, seed=seed, batch_input=batch)
    except TreatmentError:
        return None


def pasted(code, model):
    names = {"torch": torch, "nn": nn, "model": model}
    exec(compile(code, "pasted", "exec"), names)
    return names["model"]


def test_a_treatment_leaves_the_model_and_all_random_states_as_they_were(of_models, model_and_batch):
    model, batch = model_and_batch
    next(model.modules()).train()
    next(iter(model.children())).eval()
    before, random_before, numpy_before = fingerprint(model), torch.get_rng_state(), np.random.get_state()[1].copy()
    treated_or_none(of_models, model, batch)
    after = fingerprint(model)
    assert same_state(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.equal(random_before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_a_treated_model_runs_trains_and_gives_the_shape_that_it_gave(of_models, model_and_batch):
    model, batch = model_and_batch
    treated = treated_or_none(of_models, model, batch)
    if treated is None:
        assert fingerprint(model)  # refused, never handed out broken
        return
    output = treated.subject(batch)
    assert output.shape == model(batch).shape
    output.float().sum().backward()
    assert all(p.requires_grad and p.is_leaf for p in treated.subject.parameters())
    assert treated.changes
    assert all(treated.changes)
    hooks = [m for m in treated.subject.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_without_a_batch_a_treated_model_runs_or_is_refused(of_models, model_and_batch):
    model, batch = model_and_batch
    wraps = isinstance(of_models, AddNormalization | AddResidual)
    treated = treated_or_none(of_models, model, None)
    if treated is not None and wraps and type(model).__name__ == "ReadsWeights":
        with pytest.raises(AttributeError, match="weight"):  # why a batch should be given; with one it is refused
            treated.subject(batch)
    elif treated is not None:
        assert treated.subject(batch).shape == model(batch).shape


def test_the_copy_shares_no_memory_with_the_original(of_models, model_and_batch):
    model, batch = model_and_batch
    treated = treated_or_none(of_models, model, batch)
    if treated is not None:
        own = {value.data_ptr() for value in model.state_dict().values()}
        assert not own & {value.data_ptr() for value in treated.subject.state_dict().values()}


def test_the_pasted_code_makes_the_same_model(of_models, model_and_batch):
    model, batch = model_and_batch
    treated = treated_or_none(of_models, model, batch)
    if treated is None:
        return
    by_hand = pasted(treated.code, copy.deepcopy(model))
    kinds = [(name, type(module).__name__) for name, module in treated.subject.named_modules()]
    assert kinds == [(name, type(module).__name__) for name, module in by_hand.named_modules()]
    assert (
        {name: value.shape for name, value in by_hand.state_dict().items()}
        == {name: value.shape for name, value in treated.subject.state_dict().items()}
    )  # fmt: skip
    by_hand.load_state_dict(treated.subject.state_dict())
    outputs = by_hand.eval()(batch), treated.subject.eval()(batch)
    torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(of_models, model_and_batch):
    model, batch = model_and_batch
    first = treated_or_none(of_models, model, batch, seed=1)
    if first is None:
        return
    again, other = (of_models.treat(model, seed=seed, batch_input=batch) for seed in (1, 2))
    assert same_state(first.subject.state_dict(), again.subject.state_dict())
    draws = isinstance(of_models, Reinitialize | UseGatedCell) or any("drawn anew" in each for each in first.changes)
    assert same_state(first.subject.state_dict(), other.subject.state_dict()) is not draws


def test_surgery_keeps_every_weight(model_and_batch):
    model, batch = model_and_batch
    kept = {value.double().sum().item() for value in model.parameters()}
    for treatment in (SwapActivation(to="gelu"), AddNormalization(), AddResidual()):
        treated = treated_or_none(treatment, model, batch)
        if treated is not None:
            assert kept <= {value.double().sum().item() for value in treated.subject.parameters()}


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind().changes_model])
def test_a_model_with_nothing_to_treat_is_refused(kind):
    with pytest.raises(TreatmentError, match=kind.__name__):
        kind().treat(nn.Sequential(nn.Flatten(), nn.Softmax(dim=-1)))


@pytest.mark.parametrize("treatment", [SwapActivation(to="relu"), AddNormalization(), AddResidual()])
def test_broken_weights_that_would_be_kept_are_refused(treatment, make_deep):
    model = make_deep(nn.Sigmoid, 3, 4)
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(TreatmentError, match="start from a fresh model"):
        treatment.treat(model)


def test_reinitialize_heals_broken_weights_and_statistics(make_deep):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    for value in model.state_dict().values():
        value.fill_(float("inf")) if value.is_floating_point() else value.fill_(9)
    healed = Combined((SwapActivation(to="tanh"), Reinitialize())).treat(model).subject
    assert all(torch.isfinite(value).all() for value in healed.state_dict().values())
    assert healed[1].num_batches_tracked == 0


def test_weights_without_a_shape_are_refused():
    with pytest.raises(TreatmentError, match="run it on a batch first"):
        Reinitialize().treat(nn.Sequential(nn.LazyLinear(3)))


def test_a_batch_that_the_model_does_not_take_is_named_in_the_error(make_deep):
    with pytest.raises(TreatmentError, match="batch_input"):
        Reinitialize().treat(make_deep(nn.ReLU, 2, 4), batch_input=torch.zeros(3, 99))


@pytest.mark.parametrize("kind", ALL)
def test_settings_make_the_treatment_again_and_it_survives_pickling(kind):
    treatment = kind()
    assert make(treatment.name, treatment.settings) == treatment
    assert pickle.loads(pickle.dumps(treatment)) == treatment
    assert treatment.label.startswith(kind.__name__)
    assert treatment.effort >= 1
    assert treatment.blames


def test_smaller_changes_have_smaller_ranks():
    efforts = {kind.__name__: kind().effort for kind in ALL}
    assert efforts == {
        "NormalizeInput": 2, "NormalizeTarget": 2, "TrainEverything": 2, "ScaleLoss": 2, "SetOptimizer": 1, "WarmUp": 1,
        "KeepInFloat32": 2,
        "ClipGradients": 1, "ScaleLearningRate": 1, "Reinitialize": 2, "SwapOptimizer": 2,
        "ConstrainWeights": 2, "TruncateBackprop": 2, "UseGatedCell": 4,
        "AddOutputActivation": 2,
        "RemoveOutputActivation": 2, "AddActivation": 3, "SwapActivation": 3, "AddNormalization": 4, "AddResidual": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("Reinitialise", [], "'Reinitialise'"),
        ("ClipGradients", [("norm", 1.0)], "ClipGradients.norm"),
        ("ClipGradients", [("max_norm", -1.0)], "max_norm: got -1.0"),
        ("ClipGradients", [("max_norm", float("nan"))], "max_norm: got nan"),
        ("ClipGradients", [("max_norm", "one")], "settings of the right kind"),
        ("ScaleLearningRate", [("factor", 1.0)], "factor: got 1.0"),
        ("SwapOptimizer", [("to", "lion")], "to: got 'lion'"),
        ("SwapOptimizer", [("lr", 0.0)], "lr: got 0.0"),
        ("SwapActivation", [("to", "sigmoid")], "to: got 'sigmoid'"),
        ("AddActivation", [("kind", "softmax")], "kind: got 'softmax'"),
        ("RemoveOutputActivation", [("to", "relu")], "to: got 'relu'"),
        ("RemoveOutputActivation", [("when", "never")], "when: got 'never'"),
        ("RemoveOutputActivation", [("to", "sigmoid"), ("when", "training")], "when: got 'training'"),
        ("AddOutputActivation", [("to", "relu")], "to: got 'relu'"),
        ("AddOutputActivation", [("to", "sigmoid"), ("dim", 1)], "dim: got 1 with to='sigmoid'"),
        ("AddNormalization", [("kind", "weight")], "kind: got 'weight'"),
        ("Reinitialize", [("scheme", "zeros")], "scheme: got 'zeros'"),
        ("Reinitialize", [("gain", -2.0)], "gain: got -2.0"),
        ("ConstrainWeights", [("max_norm", 0.0)], "max_norm: got 0.0"),
        ("ConstrainWeights", [("per", "layer")], "per: got 'layer'"),
        ("TruncateBackprop", [("steps", 2.5)], "steps: got 2.5"),
        ("UseGatedCell", [("kind", "rnn")], "kind: got 'rnn'"),
    ],
)
def test_a_wrong_name_or_setting_is_named(name, settings, said):
    with pytest.raises(SettingError, match=re.escape(said)):
        make(name, settings)


@pytest.mark.parametrize("kind", [ClipGradients, ConstrainWeights, ScaleLearningRate, SwapOptimizer])
def test_a_treatment_of_the_training_refuses_a_model(kind):
    assert not kind().changes_model
    with pytest.raises(TreatmentError, match="treat_task"):
        kind().treat(nn.Linear(1, 1))


@pytest.mark.parametrize("kind", ALL)
def test_a_treated_task_is_a_changed_copy_that_can_be_sent_to_another_process(kind, task_of):
    task = task_of(kind)
    before = copy.copy(task)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    treated = kind().treat_task(task)
    assert torch.equal(state, torch.get_rng_state())
    assert task == before
    assert isinstance(treated.subject, Task)
    assert treated.subject != task
    assert treated.changes
    assert treated.code
    again = pickle.loads(pickle.dumps(treated.subject))
    torch.manual_seed(5)
    one = treated.subject.model()
    torch.manual_seed(5)
    assert same_state(one.state_dict(), again.model().state_dict())


@pytest.mark.parametrize("kind", ALL)
def test_a_trial_of_a_treated_task_is_paired_with_the_untreated_one(kind, task_of):
    task = task_of(kind)
    torch.manual_seed(21)
    untreated = task.model()
    state = torch.get_rng_state()
    torch.manual_seed(21)
    treated = kind().treat_task(task).subject.model()
    assert torch.equal(state, torch.get_rng_state())
    before, after = ([value for value in net.parameters() if value.dim() > 1] for net in (untreated, treated))
    if kind in {Reinitialize, UseGatedCell}:
        assert not torch.equal(before[0], after[0])
    else:
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_two_trial_seeds_draw_different_weights(task):
    factory = Reinitialize().treat_task(task).subject.model
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        weights.append(factory()[0].weight)
    assert not torch.equal(*weights)


def test_an_optimizer_factory_that_needs_the_old_layer_is_found_before_any_trial(task):
    from dataclasses import replace

    picky = replace(task, optimizer=lambda model: torch.optim.SGD([model[0].weight], lr=1.0))
    with pytest.raises(TreatmentError, match=r"Task\.optimizer on the changed model"):
        AddNormalization().treat_task(picky)


def test_module_names_cannot_break_out_of_the_code():
    name = "x'); raise SystemExit('"
    model = nn.Sequential()
    model.add_module(name, nn.Linear(2, 2))
    model.add_module("a", nn.Sigmoid())
    model.add_module("b", nn.Linear(2, 2))
    for treatment in (Reinitialize(), AddNormalization(), AddResidual(), SwapActivation(to="tanh")):
        treated = treatment.treat(model)
        by_hand = pasted(treated.code, copy.deepcopy(model))
        assert len(list(by_hand.modules())) == len(list(treated.subject.modules()))
