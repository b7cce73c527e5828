"""The input normalised inside the model: which numbers, which arguments, what stays, what is refused."""

import copy
import inspect
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pasted_code import pasted
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from evengrad.nouns import Task, TreatmentError, output_of
from evengrad.treat import AddNormalization, Combined, NormalizeInput, NormalizeTarget, Reinitialize, SwapActivation

UNITS = torch.tensor([1e-4, 1.0, 30.0, 1e4, 2.0, 0.5])


def raw(rows=400):
    return 5.0 + torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)) * UNITS


def raw_batches():
    data = raw()
    target = ((data - 5.0) / UNITS)[:, :2].sum(1, keepdim=True)
    return [(data[rows], target[rows]) for rows in torch.arange(400).split(40)]


def small_net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def minus_error(model):
    data = raw()[300:]
    return -(model(data) - ((data - 5.0) / UNITS)[:, :2].sum(1, keepdim=True)).square().mean().item()


def raw_task(**changes):
    task = Task(
        model=small_net, optimizer=sgd, loss=nn.functional.mse_loss, train=raw_batches, validate=minus_error, steps=200
    )
    return replace(task, **changes)


def trained(task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    batches = list(task.train())
    for step in range(task.steps):
        data, target = batches[step % len(batches)]
        optimizer.zero_grad()
        task.loss(output_of(model, data), target).backward()
        optimizer.step()
    with torch.no_grad():
        return task.validate(model)


def test_features_of_unlike_size_are_learnt_after_and_not_before():
    untreated, treated = trained(raw_task()), trained(NormalizeInput().treat_task(raw_task()).subject)
    assert not untreated > -1.0  # NaN as well
    assert treated > -0.1  # of a target of variance 2, in raw units of the input


def test_what_the_first_layer_sees_has_mean_zero_and_deviation_one():
    model = NormalizeInput().treat_task(raw_task()).subject.model()
    seen = []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    model(raw())
    assert seen[0].mean(0).abs().max().item() < 5e-3  # float32 resolves 5 to 0.5 % of a deviation of 1e-4
    assert seen[0].std(0, correction=0).tolist() == pytest.approx([1.0] * 6, abs=1e-3)


def test_the_numbers_are_those_of_numpy_over_all_training_batches():
    model = NormalizeInput().treat_task(raw_task()).subject.model()
    data = raw().double().numpy()
    np.testing.assert_allclose(model.input_mean.numpy(), data.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.input_std.numpy(), data.std(0), rtol=1e-6)


def test_no_more_than_ten_thousand_samples_are_read():
    read = []

    def endless():
        while True:
            read.append(1)
            yield torch.randn(500, 6) * 50, torch.zeros(500, 1)

    NormalizeInput().treat_task(raw_task(train=endless))
    assert len(read) == 20


def test_the_model_keeps_its_class_attributes_and_names():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.kept = nn.Linear(6, 2), "kept"

        def forward(self, x, *, double=False):
            return self.layer(x) * (2 if double else 1)

        def weights(self):
            return [self.layer.weight]

    model, data = Own(), raw(8)
    treated = NormalizeInput().treat(model, batch_input=data).subject
    assert isinstance(treated, Own)
    assert treated.kept == "kept"
    assert treated.weights()[0] is treated.layer.weight
    assert [name for name, _ in treated.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert treated.state_dict().keys() - model.state_dict().keys() == {"input_mean", "input_std"}
    torch.testing.assert_close(treated(x=data, double=True), treated(data, double=True))
    torch.testing.assert_close(treated(data), model((data - data.mean(0)) / data.std(0, correction=0)))


def test_indexing_and_slicing_a_sequence_stay():
    treated = NormalizeInput().treat(small_net(), batch_input=raw(8)).subject
    assert isinstance(treated[0], nn.Linear)
    assert treated[-1].out_features == 1
    assert len(treated) == 3
    assert [type(module) for module in treated] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_treated_model_is_pickled_and_copied_with_both_ends_normalised():
    both = NormalizeTarget().treat_task(
        raw_task(model=small_net, train=lambda: [(data, 1e3 * target) for data, target in raw_batches()])
    )
    model = NormalizeInput().treat_task(both.subject).subject.model()
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(again).__mro__[-4:] == type(model).__mro__[-4:]
        assert isinstance(again, nn.Sequential)
        torch.testing.assert_close(again(raw()), model(raw()), rtol=0, atol=0)
        assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("model", "shape", "columns"),
    [
        (lambda: nn.Conv2d(3, 4, 3), (4, 3, 8, 8), (0, 2, 3)),
        (lambda: nn.Conv1d(3, 4, 3), (4, 3, 8), (0, 2)),
        (lambda: nn.Linear(5, 2), (4, 7, 5), (0, 1)),
        (lambda: nn.Linear(5, 2), (4, 7, 6, 5), (0, 1, 2)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(27, 2)), (4, 3, 3, 3), (0, 2, 3)),
        (lambda: nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 2, 3)), (4, 12), (0, 1)),
    ],
)
def test_features_are_channels_of_pictures_and_the_last_dimension_of_sequences(model, shape, columns):
    data = 100 + 30 * torch.randn(shape) * torch.arange(1.0, 1 + shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    treated = NormalizeInput().treat(model(), batch_input=data).subject
    mean = data.double().mean(columns, keepdim=True)[0]
    torch.testing.assert_close(
        treated.input_mean.double().expand_as(data[0]), mean.expand_as(data[0]), rtol=1e-5, atol=1e-5
    )


def test_the_pasted_code_gives_what_the_treated_model_gives(model_and_batch):
    model, data = model_and_batch
    if not data.is_floating_point():
        with pytest.raises(TreatmentError, match="input of int64"):
            NormalizeInput().treat(model, batch_input=data)
        return
    data = 1e3 + 100 * data
    treated = NormalizeInput().treat(model, batch_input=data)
    by_hand = pasted(treated.code, model)
    assert type(by_hand).__name__ == type(treated.subject).__name__
    assert isinstance(by_hand, type(model))
    torch.testing.assert_close(by_hand.eval()(data), treated.subject.eval()(data), rtol=1e-3, atol=1e-4)
    by_hand.load_state_dict(treated.subject.state_dict())
    torch.testing.assert_close(by_hand(data), treated.subject(data), rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in treated.subject.modules())


@pytest.mark.parametrize("shape", [(9, 300), (9, 300, 2, 2)])
def test_many_numbers_are_computed_by_the_pasted_code(shape):
    model, data = nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), 50 * torch.randn(shape)
    model(data)
    treated = NormalizeInput().treat(model, batch_input=data)
    assert len(treated.code) < 2000
    by_hand = pasted(treated.code, model, inputs=data)
    assert by_hand.input_mean.shape == treated.subject.input_mean.shape
    torch.testing.assert_close(by_hand.input_mean, treated.subject.input_mean, rtol=1e-4, atol=1e-4)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, values, mask, ids=None):
        return self.layer(values * mask)


@pytest.mark.parametrize("names", [False, True])
def test_of_several_arguments_the_data_is_normalised_and_the_mask_is_not(names):
    model, values, mask = Several(), 100 + 20 * torch.randn(8, 5, 3), (torch.rand(8, 5, 1) > 0.3).float()
    data = {"values": values, "mask": mask} if names else (values, mask, torch.arange(8))
    treated = NormalizeInput().treat(model, batch_input=data)
    wanted = (values - values.mean((0, 1))) / values.std((0, 1), correction=0)
    torch.testing.assert_close(output_of(treated.subject, data), model(wanted, mask), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(treated.subject(values=values, mask=mask), treated.subject(values, mask))
    torch.testing.assert_close(output_of(pasted(treated.code, model), data), model(wanted, mask), rtol=1e-4, atol=1e-4)


class Gated(Several):
    def forward(self, values, gate):
        return super().forward(values, gate)


@pytest.mark.parametrize(("model", "factor"), [(Several(), 100.0), (Gated(), 1.0)])
def test_a_mask_is_known_by_its_name_or_by_its_numbers_alone(model, factor):
    mask = factor * (torch.rand(8, 5, 1) > 0.3).float()
    treated = NormalizeInput().treat(model, batch_input=(100 + 20 * torch.randn(8, 5, 3), mask)).subject
    assert [name for name, _ in treated.named_buffers()] == ["input_mean", "input_std"]


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x):
        return self.rnn(x)[1][0]


def test_a_packed_sequence_is_normalised_by_its_rows():
    data = pack_sequence([200 + 40 * torch.randn(length, 3) for length in (7, 4, 2)])
    model = Packed()
    treated = NormalizeInput().treat(model, batch_input=data)
    wanted = data._replace(data=(data.data - data.data.mean(0)) / data.data.std(0, correction=0))
    torch.testing.assert_close(treated.subject(data), model(wanted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pasted(treated.code, model)(data), model(wanted), rtol=1e-4, atol=1e-4)


def test_batches_of_unlike_width_are_normalised_by_one_number():
    def train():
        return [(300 + 50 * torch.randn(4, 3, width), torch.zeros(4, 2)) for width in (8, 12)]

    task = raw_task(model=lambda: nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(12, 2)), train=train)
    assert NormalizeInput().treat_task(task).subject.model().input_mean.shape == ()


def test_a_constant_feature_is_divided_by_the_median_of_the_others():
    data = raw(50)
    data[:, 2] = 7.0
    treated = NormalizeInput().treat(small_net(), batch_input=data).subject
    others = data[:, [0, 1, 3, 4, 5]].double().std(0, correction=0)
    assert treated.input_std[2].item() == pytest.approx(others.median().item(), rel=1e-5)
    assert treated.input_mean[2].item() == 7.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_precision_of_the_input_stays(dtype):
    model, data = nn.Linear(3, 2).to(dtype), (100 + 20 * torch.randn(6, 3)).to(dtype)
    assert NormalizeInput().treat(model, batch_input=data).subject(data).dtype == dtype


def spoilt():
    data = raw(40)
    data[3, 2] = torch.inf
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (torch.randint(9, (8, 6)), "input of int64"),
        (torch.randn(500, 6), "normalised already"),
        (spoilt(), "not finite"),
        (torch.full((8, 6), 3.0), "constant input"),
        (None, "without a batch"),
    ],
)
def test_what_cannot_be_normalised_is_refused(data, said):
    class Floating(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x):
            return self.layer(x.float())

    with pytest.raises(TreatmentError, match=said):
        NormalizeInput().treat(Floating(), batch_input=data)


def test_an_input_is_not_normalised_twice():
    once = NormalizeInput().treat_task(raw_task()).subject
    with pytest.raises(TreatmentError, match="attribute 'input_mean'"):
        NormalizeInput().treat_task(once)


def test_a_task_with_a_loop_of_its_own_or_without_pairs_is_refused():
    with pytest.raises(TreatmentError, match="without batches"):
        NormalizeInput().treat_task(raw_task(train=lambda: [raw()]))


def test_the_signature_of_the_forward_is_that_of_the_model():
    treated = NormalizeInput().treat(Several(), batch_input=(100 * torch.randn(4, 2, 3), torch.ones(4, 2, 1))).subject
    assert inspect.signature(treated.forward) == inspect.signature(Several().forward)


def test_it_goes_with_treatments_of_the_model():
    parts = (SwapActivation(to="tanh"), Reinitialize(), AddNormalization(), NormalizeInput())
    treated = Combined(parts).treat_task(raw_task())
    model = treated.subject.model()
    assert model.input_std.shape == (6,)
    assert model(raw()).shape == (400, 1)
    np.testing.assert_allclose(model.input_std.numpy(), raw().double().numpy().std(0), rtol=1e-6)  # of all batches
    by_hand = pasted(treated.code, small_net())
    assert by_hand.state_dict().keys() == model.state_dict().keys()


def test_randomness_of_the_data_does_not_move_the_random_states():
    def train():
        return [(torch.from_numpy(np.random.rand(8, 6)).float() * 1e3 + torch.rand(8, 1), torch.zeros(8, 1))]

    before = torch.get_rng_state(), np.random.get_state()[2]
    NormalizeInput().treat_task(raw_task(train=train))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[2]
