"""Models that take several arguments or keywords, with batches as a loader gives them."""

import pytest
import torch
from torch import nn

from evengrad.nouns import Task, TreatmentError, output_of
from evengrad.probe import probe
from evengrad.treat import AddNormalization, Reinitialize, SwapActivation


class TwoArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.middle = nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8)
        self.act2, self.last = nn.Softplus(), nn.Linear(8, 3)

    def forward(self, a, b):
        return self.last(self.act2(self.middle(self.act(self.first(a + 2 * b)))))


class Keywords(TwoArguments):
    def forward(self, *, a, b):
        return super().forward(a, b)


CASES = {
    "tuple": (TwoArguments, lambda x: (x, x)),
    "mapping": (Keywords, lambda x: {"a": x, "b": x}),
    "mapping of arguments": (TwoArguments, lambda x: {"b": x, "a": x}),
}


@pytest.fixture(params=sorted(CASES))
def model_and_input(request):
    make, spread = CASES[request.param]
    return make(), spread(torch.randn(5, 6))


def test_every_model_treatment_runs_a_model_on_several_arguments(of_models, model_and_input):
    model, data = model_and_input
    others = {"TruncateBackprop", "UseGatedCell", "AddActivation", "RemoveOutputActivation"}
    if of_models.name in others or getattr(of_models, "zero_residual", False):
        none = "recurrent layer|residual branch|straight into the next|activation on the output"
        with pytest.raises(TreatmentError, match=none):  # there is none here
            of_models.treat(model, batch_input=data)
        return
    treated = of_models.treat(model, batch_input=data)
    assert treated.changes
    assert output_of(treated.subject, data).shape == (5, 3)
    assert not any("not run" in change for change in treated.changes)


def test_the_order_of_the_forward_is_recorded_on_several_arguments(model_and_input):
    model, data = model_and_input
    model.act, model.act2 = model.act2, model.act  # registered in another order than used
    words = "\n".join(Reinitialize().treat(model, batch_input=data).changes)
    assert words.index("first: ") < words.index("softplus") < words.index("middle: ") < words.index("sigmoid")


def test_a_data_driven_start_measures_on_several_arguments(model_and_input):
    model, data = model_and_input
    treated = Reinitialize(data_driven=True).treat(model, batch_input=data).subject
    outputs = []
    treated.first.register_forward_hook(lambda module, args, output: outputs.append(output))
    output_of(treated, data)
    assert outputs[0].std(correction=0).item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("treatment", [Reinitialize(), SwapActivation(to="relu"), AddNormalization()])
def test_a_task_whose_batches_hold_several_arguments_is_treated(treatment):
    x = torch.randn(5, 6)
    for make, spread in CASES.values():
        task = Task(
            model=make, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), steps=2,
            loss=nn.functional.mse_loss, train=lambda spread=spread: [(spread(x), torch.zeros(5, 3))],
            validate=lambda model: 0.0,
        )  # fmt: skip
        assert output_of(treatment.treat_task(task).subject.model(), spread(x)).shape == (5, 3)


def test_a_treated_model_is_probed_with_the_same_input(model_and_input):
    model, data = model_and_input
    treated = AddNormalization().treat(model, batch_input=data).subject
    reading = probe(treated, nn.functional.mse_loss, (data, torch.zeros(5, 3))).readings[0]
    assert reading.loss == pytest.approx(output_of(treated, data).square().mean().item())
