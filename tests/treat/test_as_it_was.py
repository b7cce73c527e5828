"""What a treatment must not lose: the mode, hooks, half precision; and what it says it could not try."""

import pytest
import torch
from pasted_code import pasted
from torch import nn

from evengrad.nouns import TreatmentError
from evengrad.treat import AddNormalization, AddResidual, Combined, Reinitialize, SwapActivation


def normalized():
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("treatment", [Reinitialize(), SwapActivation(), AddNormalization(), AddResidual()])
def test_a_batch_norm_and_one_sample_refuse_no_treatment(treatment, training):
    model, one = normalized().train(training), torch.randn(1, 4)
    treated = treatment.treat(model, batch_input=one).subject
    assert treated.eval()(one).shape == (1, 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # as the model itself
        treated.train()(one)


def test_a_change_that_runs_in_evaluation_mode_only_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    with pytest.raises(TreatmentError, match=r"changed model was run: Expected more than 1 value"):
        AddNormalization(kind="batch").treat(model, batch_input=torch.randn(1, 4))


def test_a_batch_that_the_model_takes_in_no_mode_is_still_refused():
    with pytest.raises(TreatmentError, match=r"model\(batch_input\)"):
        AddResidual().treat(normalized(), batch_input=torch.randn(3, 9))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["layer", "batch", "group", "rms"])
def test_the_pasted_norms_have_the_mode_of_the_layer_that_they_follow(kind, training):
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).train(training), 3 + torch.randn(5, 4)
    treated = AddNormalization(kind=kind).treat(model, batch_input=x)
    torch.testing.assert_close(pasted(treated.code, model)(x), treated.subject(x), rtol=0, atol=0)


def hooked(seen):
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2))
    act = model[1]
    act.register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    act.register_forward_pre_hook(lambda module, args, kwargs: seen.append("pre"), with_kwargs=True)
    act.register_forward_hook(lambda module, args, out: out * 2)
    act.register_full_backward_hook(lambda module, into, out: seen.append("backward"))
    return model


def test_hooks_of_a_swapped_activation_go_over_in_the_copy_and_in_the_code():
    seen = []
    model, x = hooked(seen), torch.randn(3, 4)
    treated = SwapActivation(to="tanh").treat(model)
    assert treated.changes == ("1, 3: sigmoid replaced by tanh", "1: hooks go over to the new module")
    for changed in (treated.subject, pasted(treated.code, model)):
        seen.clear()
        output = changed(x)
        torch.testing.assert_close(output, model[4](torch.tanh(model[2](2 * torch.tanh(model[0](x))))))
        output.sum().backward()
        assert seen == ["pre", "Tanh", "backward"]


def test_without_hooks_nothing_is_said_of_them():
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
    model[1].register_full_backward_hook(lambda module, into, out: None).remove()
    treated = SwapActivation(to="tanh").treat(model)
    assert treated.changes == ("1: sigmoid replaced by tanh",)
    assert "hooks" not in treated.code


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def orthogonal(weight):
    weight = weight.detach().double()
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return torch.allclose(gram / gram.trace() * len(gram), torch.eye(len(gram)).double(), rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{"data_driven": True}, {"scheme": "orthogonal"}])
def test_the_pasted_code_draws_orthogonal_weights_in_every_precision(dtype, settings):
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)
    treated = Reinitialize(**settings).treat(model, batch_input=torch.randn(8, 16).to(dtype))
    by_hand = pasted(treated.code, model)
    for index in (0, 2):
        weight, drawn = by_hand[index].weight, treated.subject[index].weight
        assert weight.dtype == dtype
        assert orthogonal(weight)
        assert weight.double().norm().item() == pytest.approx(drawn.double().norm().item(), rel=0.02)
        assert weight.requires_grad
        assert weight.is_leaf
    assert ("float()" in treated.code) is (dtype in {torch.bfloat16, torch.float16})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_pasted_code_draws_recurrent_weights_in_every_precision(dtype):
    model = Gated().to(dtype)
    by_hand = pasted(Reinitialize().treat(model).code, model)
    assert all(orthogonal(gate) for gate in by_hand.rnn.weight_hh_l0.chunk(4))
    assert not torch.equal(by_hand.rnn.weight_hh_l0, model.rnn.weight_hh_l0)


@pytest.mark.parametrize("treatment", [AddNormalization(), AddResidual()])
def test_without_a_batch_the_changes_say_which_wrapped_layers_were_not_run(models, treatment):
    model = models["reads weights"]()
    unsure = treatment.treat(model)
    assert unsure.changes[-1].startswith("first: not run for want of batch_input")
    with pytest.raises(AttributeError, match="weight"):
        unsure.subject(torch.randn(2, 6))
    combined = Combined((SwapActivation(), treatment)).treat(nn.Sequential(normalized(), nn.Linear(2, 2)))
    assert not any("not run" in change for change in combined.changes)
    functional = models["functional"]()
    assert not any("not run" in change for change in treatment.treat(functional, batch_input=torch.randn(2, 6)).changes)
