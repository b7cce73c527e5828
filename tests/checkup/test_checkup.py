"""A checkup: findings with causes, the table, and the model left as it was."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

import evengrad
from evengrad.nouns import BatchError, ModelError, OptimizerError


def deep(activation, depth=12, width=16, std=None):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    model = nn.Sequential(*layers, nn.Linear(width, 4))
    if std is not None:
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 16, generator=generator), torch.randint(4, (64,), generator=generator)


def found(model, batch, **settings):
    return evengrad.checkup(model, functional.cross_entropy, batch, **settings)


def the_one(code, checkup):
    (finding,) = [finding for finding in checkup.findings if finding.code == code]
    return finding


def test_a_vanishing_network_is_found_and_a_tried_treatment_names_the_cause(batch):
    checkup = found(deep(nn.Sigmoid), batch)
    assert [(one.code, one.follows) for one in checkup.findings] == [("EG402", ()), ("EG101", ("EG402",))]
    finding = the_one("EG101", checkup)
    best = finding.cures[0]
    assert best.tried
    assert best.removes
    assert best.relief_decades > 3
    assert "alone brings it from" in finding.cause


def test_weights_that_are_too_large_are_blamed_and_nothing_else(batch):
    checkup = found(deep(nn.ReLU, width=16, std=1.0), batch)
    assert [(one.code, one.follows) for one in checkup.findings] == [("EG401", ()), ("EG102", ("EG401",))]
    finding = the_one("EG102", checkup)
    assert finding.cause.startswith("the initial weights: Reinitialize()")


def test_the_relief_of_a_cure_is_what_a_second_checkup_of_the_treated_model_measures(batch):
    from evengrad.diagnose import symptoms_of
    from evengrad.probe import probe
    from evengrad.treat import make

    model = deep(nn.Sigmoid)
    finding = the_one("EG101", found(model, batch, seed=3))
    cure = next(cure for cure in finding.cures if cure.treatment == "SwapActivation" and cure.tried)
    treated = make(cure.treatment, cure.settings).treat(model, seed=3, batch_input=batch[0]).subject
    record = probe(treated, functional.cross_entropy, batch)
    measured = symptoms_of(record.readings[0], record)["EG101"]
    assert cure.after_decades == pytest.approx(measured, abs=1e-6)


def test_cures_are_ranked_those_that_remove_the_symptom_first(batch):
    finding = the_one("EG101", found(deep(nn.Sigmoid), batch))
    removes = [cure.removes for cure in finding.cures]
    assert removes == sorted(removes, reverse=True)
    assert len(set(removes)) == 2, "the example must have both kinds, or this test shows nothing"


def test_a_healthy_network_has_no_finding(batch):
    checkup = found(deep(nn.ReLU, depth=3), batch)
    assert checkup.findings == ()
    assert "no findings" in str(checkup)


def test_without_counterfactuals_no_cure_is_tried(batch):
    finding = the_one("EG101", found(deep(nn.Sigmoid), batch, counterfactuals=False))
    assert not any(cure.tried for cure in finding.cures)
    assert finding.cause == ""


def test_the_model_is_left_as_found_with_all_counterfactuals(batch):
    model = nn.Sequential(*deep(nn.Sigmoid), nn.BatchNorm1d(4))
    model[3].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    gradient = model[0].weight.grad
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert found(model, batch).findings
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model[0].weight.grad is gradient
    assert model[1:][1].weight.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_table_has_a_row_for_each_layer_and_fewer_cells_for_smaller_gradients(batch):
    lines = str(found(deep(nn.Sigmoid), batch)).splitlines()
    rows = {line.split()[0]: line.count("█") for line in lines[2:27]}
    assert list(rows) == [str(number) for number in range(25)]
    assert rows["24"] == 16
    assert rows["24"] > rows["12"] > rows["2"]


def test_a_recurrent_layer_gets_a_row_over_time():
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 8, batch_first=True)
            self.out = nn.Linear(8, 4)
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=0.3)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    checkup = found(Last(), (torch.randn(16, 40, 3), torch.randint(4, (16,))))
    assert [finding.code for finding in checkup.findings] == ["EG103"]
    assert checkup.findings[0].where == ("rnn",)
    assert "over time" in str(checkup)
    assert "rnn" in checkup.findings[0].message


def test_a_treatment_that_does_not_fit_says_why_instead_of_failing(batch):
    class Narrowing(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4]
            self.layers = nn.ModuleList(nn.Linear(one, two) for one, two in pairwise(widths))

        def forward(self, x):
            for layer in self.layers:
                x = torch.sigmoid(layer(x))
            return x if self.layers[1].weight.isfinite().all() else x.abs()  # a wrapped layer has no weight

    torch.manual_seed(0)
    finding = the_one("EG101", found(Narrowing(), batch))
    residual = next(cure for cure in finding.cures if cure.treatment == "AddResidual")
    assert not residual.tried
    assert residual.change.startswith("does not apply: AttributeError when the changed model was run")


def test_a_name_with_control_characters_does_not_reach_the_terminal(batch):
    model = deep(nn.Sigmoid)
    evil = nn.Module()
    evil.add_module("\x1b[31mred", model)
    evil.forward = model.forward
    text = str(found(evil, batch))
    table, card = text.split("EG101", maxsplit=1)
    assert "?[31mred" in table
    assert "?[31mred" in card
    assert "\x1b" not in text


def test_progress_is_told_before_each_treatment(batch):
    told = []
    found(deep(nn.Sigmoid), batch, progress=lambda *what: told.append(what))
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for _, _, total in told} == {len(told)}


def test_an_optimizer_of_another_model_is_refused(batch):
    model = deep(nn.Sigmoid)
    other = torch.optim.SGD(deep(nn.ReLU).parameters(), lr=0.1)
    with pytest.raises(OptimizerError, match="none of them of this Sequential"):
        found(model, batch, optimizer=other)


def test_the_learning_rates_of_the_optimizer_are_in_the_reading(batch):
    model = deep(nn.ReLU, depth=3)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    checkup = found(model, batch, optimizer=torch.optim.SGD(groups, lr=0.25))
    assert checkup.reading.lrs == (0.25, 0.5)


def test_bad_input_is_named(batch):
    with pytest.raises(ModelError, match="without parameters"):
        found(nn.Sequential(nn.ReLU()), batch)
    with pytest.raises(BatchError, match="labels from 0 to 9, want labels from 0 to 3"):
        found(deep(nn.ReLU, depth=3), (batch[0], torch.arange(64) % 10))
    with pytest.raises(BatchError, match="1 of 1024 values that are NaN or infinite"):
        found(
            deep(nn.ReLU, depth=3),
            (batch[0].clone().index_put((torch.tensor(3), torch.tensor(2)), torch.tensor(float("nan"))), batch[1]),
        )
