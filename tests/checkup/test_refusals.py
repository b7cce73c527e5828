"""A cure that cannot apply to a model says so beside the finding, whether or not the batch shows the symptom."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.checkup import Patient, checkup, with_causes
from evengrad.checkup._counterfactual import ASK_THE_TASK, DOES_NOT_APPLY
from evengrad.nouns import Cure, Finding, Task, TreatmentError
from evengrad.probe import probe
from evengrad.treat import ALL, make

GATED = Cure(treatment="UseGatedCell", settings=(("kind", "gru"),))
ANOTHER = Cure(treatment="SwapActivation", settings=(("to", "tanh"),))
TRAINING = Cure(treatment="ScaleLearningRate", settings=(("factor", 0.1),))
OF_THE_TASK = Cure(treatment="AddOutputActivation")
OF_THE_MODEL = sorted({kind.__name__ for kind in ALL if kind.changes_model is True} - ASK_THE_TASK)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, data):
        return self.head(self.rnn(data.unsqueeze(1))[0][:, -1])


def dense():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def later(model, *cures):
    """A finding that develops in training, of which a fresh model shows nothing."""
    torch.manual_seed(0)
    model = model()
    batch = torch.randn(16, 8), torch.randint(4, (16,))
    record = probe(model, functional.cross_entropy, batch)
    finding = Finding(code="EG801", symptom="plateau", severity="critical", where=("loss",), cures=cures)
    patient = Patient(model=model, loss=functional.cross_entropy, batch=batch, record=record, seed=0)
    (told,) = with_causes((finding,), patient)
    return told


def test_a_gated_cell_is_not_offered_to_a_model_without_a_recurrent_layer():
    told = later(dense, GATED, ANOTHER)
    gated, another = told.cures
    assert gated.change == "does not apply: a model without a plain recurrent layer inside it (nn.RNN, nn.RNNCell)"
    assert another.change == ""
    assert f"{GATED.label}: does not apply" in str(told)


def test_it_is_offered_to_one_that_has_such_a_layer():
    assert later(Recurrent, GATED).cures == (GATED,)


def test_what_only_a_task_can_tell_is_not_refused_on_the_model_alone():
    told = later(dense, TRAINING, OF_THE_TASK)
    assert told.cures == (TRAINING, OF_THE_TASK)


def test_in_a_checkup_a_cure_that_does_not_apply_says_so_in_the_same_words():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(8, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    findings = checkup(model, functional.mse_loss, (torch.randn(32, 8), torch.randn(32, 8))).findings
    refused = [cure for one in findings for cure in one.cures if cure.change.startswith(DOES_NOT_APPLY)]
    assert findings
    assert all(not cure.tried for cure in refused)
    for cure in {cure.label: cure for one in findings for cure in one.cures}.values():
        treatment = make(cure.treatment, cure.settings)
        if not treatment.changes_model or treatment.name in ASK_THE_TASK:
            continue
        applies = True
        try:
            treatment.treat(model, batch_input=torch.randn(32, 8))
        except TreatmentError:
            applies = False
        assert applies == (not cure.change.startswith(DOES_NOT_APPLY))


def test_no_treatment_is_applied_more_than_once_however_many_findings_propose_it(monkeypatch):
    counts = Counter()
    for kind in ALL:
        real = kind.treat

        def counted(self, *args, real=real, **settings):
            counts[self.label] += 1
            return real(self, *args, **settings)

        monkeypatch.setattr(kind, "treat", counted)
    later(dense, GATED, ANOTHER, GATED)
    assert counts == {GATED.label: 1, ANOTHER.label: 1}


@pytest.mark.parametrize("model", [dense, Recurrent])
@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_what_a_model_refuses_a_task_of_it_refuses_too(model, name):
    """Otherwise a cure that `does not apply` might win; those that ask the task are known by name."""
    treatment = make(name, ())
    batch = torch.randn(16, 8), torch.randint(4, (16,))
    task = Task(
        model=model,
        optimizer=lambda built: torch.optim.SGD(built.parameters(), lr=0.1),
        loss=functional.cross_entropy,
        train=lambda: [batch],
        validate=lambda built: 0.0,
        steps=4,
    )
    refused = []
    for work in (
        lambda: treatment.treat(model(), batch_input=batch[0]),
        lambda: treatment.treat_task(task),
    ):
        try:
            work()
        except TreatmentError:
            refused.append(True)
        else:
            refused.append(False)
    assert refused[1] or not refused[0]
