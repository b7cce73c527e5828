"""What is replaced, wrapped and joined, and what is left alone."""

import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn.functional import leaky_relu, relu

from evengrad.nouns import TreatmentError
from evengrad.treat import AddNormalization, AddResidual, Combined, Residual, SwapActivation


def kinds(model):
    return [type(module).__name__ for module in model]


def test_the_output_activation_stays():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Softmax(dim=1))
    treated = SwapActivation(to="tanh").treat(model).subject
    assert kinds(treated) == ["Linear", "Tanh", "Linear", "ReLU", "Softmax"]


def test_an_activation_of_ones_own_is_swapped_if_it_stands_between_layers(models):
    treated = SwapActivation(to="tanh").treat(models["exp net"]())
    assert kinds(treated.subject)[:4] == ["Linear", "Tanh", "Linear", "Tanh"]
    assert treated.changes == ("1, 3, 5, 7: Exp replaced by tanh",)


class Turn(nn.Module):
    def forward(self, x):
        return x.flip(-1)


class Softened(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x + 1


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Pairs(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 2, 2).flatten(1).abs()


@pytest.mark.parametrize("kind", [Turn, Softened, Twice, Noisy, Pairs])
def test_a_module_of_ones_own_that_is_no_activation_is_never_swapped(kind):
    with pytest.raises(TreatmentError, match="SwapActivation"):
        SwapActivation(to="tanh").treat(nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 4)))


def test_a_shared_activation_is_swapped_under_all_its_names(models):
    model = models["shared"]()
    treated = SwapActivation(to="gelu").treat(model, batch_input=torch.randn(2, 6)).subject
    assert isinstance(treated.act, nn.GELU)
    assert treated.act is treated.act2


def test_a_recurrent_layer_switches_between_tanh_and_relu(models):
    model, batch = models["rnn"](), torch.randn(4, 3, 5)
    relu = SwapActivation(to="relu").treat(model, batch_input=batch).subject
    expected = nn.RNN(5, 7, num_layers=2, batch_first=True, nonlinearity="relu")
    expected.load_state_dict(model.rnn.state_dict())
    torch.testing.assert_close(relu.rnn(batch)[0], expected(batch)[0])
    back = SwapActivation(to="tanh").treat(relu, batch_input=batch).subject
    torch.testing.assert_close(back(batch), model(batch))


def test_swapping_gives_the_function_that_was_asked_for(make_deep):
    model, batch = make_deep(nn.Sigmoid, 2, 4), torch.randn(5, 2)
    treated = SwapActivation(to="leaky_relu").treat(model).subject
    hidden = leaky_relu(model[2](leaky_relu(model[0](batch), 0.01)), 0.01)
    torch.testing.assert_close(treated(batch), model[4](hidden))


@pytest.mark.parametrize(
    ("kind", "dense", "convolution"),
    [("layer", "LayerNorm", "GroupNorm"), ("batch", "BatchNorm1d", "BatchNorm2d"), ("group", "GroupNorm", "GroupNorm")],
)
def test_norms_of_each_kind_go_behind_hidden_layers_only(kind, dense, convolution):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
    batch = torch.randn(3, 1, 4, 4)
    treated = AddNormalization(kind=kind).treat(model, batch_input=batch).subject
    assert kinds(treated[0]) == ["Conv2d", convolution]
    assert kinds(treated[3]) == ["Linear", dense]
    assert isinstance(treated[5], nn.Linear)


def test_a_layer_norm_holds_the_scale_of_what_it_follows(make_deep):
    model = make_deep(nn.ReLU, 3, 32)
    model[2].weight.data.mul_(1e4)
    treated = AddNormalization().treat(model).subject
    output = treated[:3](torch.randn(16, 2))
    torch.testing.assert_close(output.var(-1, correction=0), torch.ones(16), rtol=0, atol=1e-3)


@pytest.mark.parametrize("between", [nn.BatchNorm1d(4), nn.LayerNorm(4)])
def test_a_norm_is_not_doubled(between):
    model = nn.Sequential(nn.Linear(4, 4), between, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    treated = AddNormalization().treat(model).subject
    assert isinstance(treated[0], nn.Linear)
    assert isinstance(treated[3], nn.Sequential)
    with pytest.raises(TreatmentError, match="not by a norm"):
        AddNormalization().treat(treated)


def test_batch_norm_behind_sequences_of_vectors_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(TreatmentError, match="AddNormalization"):
        AddNormalization(kind="batch").treat(model, batch_input=torch.randn(2, 3, 4))


def test_batch_norm_for_batches_of_one_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(TreatmentError, match="more than 1 value per channel"):
        AddNormalization(kind="batch").treat(model, batch_input=torch.randn(1, 4))


def test_norms_have_the_dtype_and_the_mode_of_their_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).bfloat16().eval()
    treated = AddNormalization().treat(model).subject
    assert treated[0][1].weight.dtype == torch.bfloat16
    assert not any(module.training for module in treated.modules())


@pytest.mark.parametrize("treatment", [AddNormalization(), AddResidual()])
def test_a_forward_that_reads_weights_is_refused_with_a_batch(models, treatment):
    with pytest.raises(TreatmentError, match=r"AttributeError.*'weight'"):
        treatment.treat(models["reads weights"](), batch_input=torch.randn(2, 6))


def test_the_inside_of_a_transformer_layer_stays(models):
    model, batch = models["transformer"](), torch.randn(4, 3, 5)
    model.append(nn.Linear(2, 2))
    treated = AddNormalization().treat(model, batch_input=batch).subject
    inside = [(name, type(module)) for name, module in model[1].named_modules()]
    assert inside == [(name, type(module)) for name, module in treated[1].named_modules()]
    with pytest.raises(TreatmentError, match="as many values as it takes"):
        AddResidual().treat(model[1], batch_input=torch.randn(4, 3, 8))


def test_a_residual_run_adds_its_input(make_deep):
    model, batch = make_deep(nn.Tanh, 3, 4), torch.randn(5, 2)
    treated = AddResidual().treat(model)
    x = model[1](model[0](batch))
    x = x + torch.tanh(model[2](x))
    x = x + torch.tanh(model[4](x))
    torch.testing.assert_close(treated.subject(batch), model[6](x))
    assert treated.changes == ("2 to 3: a shortcut around them", "4 to 5: a shortcut around them")


def test_a_norm_added_before_is_inside_the_block(make_deep):
    model, batch = make_deep(nn.Tanh, 3, 4), torch.randn(5, 2)
    treated = Combined((AddNormalization(), AddResidual())).treat(model, batch_input=batch)
    block = treated.subject[2].block
    assert [type(module).__name__ for module in block.modules()][1:] == ["Sequential", "Linear", "LayerNorm", "Tanh"]
    torch.testing.assert_close(pasted(treated.code, model)(batch), treated.subject(batch))


def test_a_wider_a_strided_and_the_last_layer_get_no_shortcut_without_weights():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
    )  # fmt: skip
    with pytest.raises(TreatmentError, match="as many values as it takes"):
        AddResidual(project=False).treat(model, batch_input=torch.randn(2, 2, 16, 16))


def test_convolutions_that_keep_their_size_get_a_shortcut():
    model = nn.Sequential(
        nn.Conv1d(4, 4, 3, padding=2, dilation=2), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Dropout(0.1),
        nn.Conv1d(4, 4, 5, padding="same"), nn.ReLU(inplace=True), nn.Conv1d(4, 1, 1),
    )  # fmt: skip
    treated = AddResidual().treat(model, batch_input=torch.randn(3, 4, 9)).subject
    assert kinds(treated) == ["Residual", "Identity", "Identity", "Identity", "Residual", "Identity", "Conv1d"]
    treated(torch.randn(3, 4, 9)).sum().backward()


def test_a_named_sequence_keeps_its_names():
    from collections import OrderedDict

    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.ReLU(), c=nn.Linear(2, 2)))
    treated = AddResidual().treat(model)
    assert list(dict(treated.subject.named_children())) == ["a", "b", "c"]
    exec(treated.code, {"torch": torch, "nn": nn, "model": model})
    assert list(dict(model.named_children())) == ["a", "b", "c"]


def test_a_block_does_not_get_a_second_shortcut(make_deep):
    once = AddResidual().treat(make_deep(nn.Tanh, 3, 4)).subject
    with pytest.raises(TreatmentError, match="AddResidual"):
        AddResidual().treat(once)


def test_layers_of_a_forward_of_ones_own_are_wrapped_alone_without_a_batch(models):
    model, batch = models["functional"](), torch.randn(4, 6)
    treated = AddResidual().treat(model).subject
    assert isinstance(treated.middle, Residual)
    x = relu(model.first(batch))
    torch.testing.assert_close(treated(batch), model.last(torch.tanh(x + model.middle(x))))


def test_a_shared_layer_stays_shared(models):
    treated = AddNormalization().treat(models["shared"](), batch_input=torch.randn(2, 6)).subject
    assert treated.first is treated.first2
    assert isinstance(treated.first[1], nn.LayerNorm)


def test_the_last_layer_of_a_forward_of_ones_own_gets_no_shortcut(models):
    model = models["functional"]()
    model.last = nn.Linear(8, 8)
    treated = AddResidual().treat(model, batch_input=torch.randn(4, 6)).subject
    assert isinstance(treated.middle, Residual)
    assert isinstance(treated.last, nn.Linear)
