"""Half precision left where it does not suit: which parts, what stays, what it heals."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from pasted_code import pasted
from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat import KeepInFloat32

BF16 = torch.bfloat16


class InHalf(nn.Module):
    """Casts at both ends itself, and uses its layers by a functional and a module."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)).to(BF16)
        self.norm.to(BF16)

    def forward(self, x):
        return self.inner(self.norm(x.to(BF16))).float()


class Casts(nn.Module):
    """Multiplies in half precision by an autocast of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.autocast("cpu", BF16):
            return self.inner(x).float()


def batches():
    data = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    return [(data, torch.tanh(data[:, :1] * data[:, 1:2]))]


def small_steps(model):
    return torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)


def nothing(_model):
    return 0.0


def task_in_half(**changes):
    task = Task(
        model=InHalf, optimizer=small_steps, loss=nn.functional.mse_loss, train=batches, validate=nothing, steps=400
    )
    return replace(task, **changes)


def final_loss(task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    data, target = task.train()[0]
    for _ in range(task.steps):
        optimizer.zero_grad()
        task.loss(model(data), target).backward()
        optimizer.step()
    return nn.functional.mse_loss(model(data), target).item(), model


def test_steps_below_the_resolution_of_the_weights_move_them_after():
    def tiny(model):
        return torch.optim.SGD(model.parameters(), lr=1e-4)

    def moved(task):
        torch.manual_seed(0)
        start = [value.detach().float().clone() for value in task.model().parameters() if value.dim() > 1]
        model = final_loss(task)[1]
        after = [value.detach().float() for value in model.parameters() if value.dim() > 1]
        return max((one - other).abs().max().item() for one, other in zip(start, after, strict=True))

    whole = KeepInFloat32(parts="all").treat_task(task_in_half(optimizer=tiny)).subject
    in_float32 = task_in_half(optimizer=tiny, model=lambda: InHalf().float())
    assert moved(whole) > 3 * moved(task_in_half(optimizer=tiny))
    assert in_float32.model().inner[0].weight.dtype == torch.float32


def test_all_parts_compute_what_a_float32_model_of_the_same_weights_does_up_to_casts_at_the_ends():
    torch.manual_seed(0)
    model, data = InHalf(), torch.randn(16, 4)
    treated = KeepInFloat32(parts="all").treat(model, batch_input=data).subject
    wide = copy.deepcopy(model).float()
    wanted = wide.inner(wide.norm(data.to(BF16).float()))
    assert (treated(data) - wanted).abs().max().item() < (model(data) - wanted).abs().max().item() + 0.01
    assert {value.dtype for value in treated.parameters()} == {torch.float32}


def test_unsafe_parts_are_norms_softmax_and_the_last_layer():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Softmax(-1), nn.Linear(8, 2)
    ).to(BF16)
    treated = KeepInFloat32().treat(model, batch_input=torch.randn(5, 4).to(BF16))
    assert treated.changes == ("1, 4, 5: in float32, with casts at both ends",)
    dtypes = [value.dtype for value in treated.subject.parameters()]
    assert dtypes == [BF16] * 2 + [torch.float32] * 2 + [BF16] * 2 + [torch.float32] * 2
    assert treated.subject[1].running_mean.dtype == torch.float32
    assert treated.subject(torch.randn(5, 4).to(BF16)).dtype == BF16


class Sequences(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


HALVES = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (3, 4)),
    "convolutional": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)), (2, 3, 8, 8)),
    "lstm": (lambda: Sequences(nn.LSTM(4, 8, num_layers=2, batch_first=True)), (3, 5, 4)),
    "gru": (lambda: Sequences(nn.GRU(4, 8, batch_first=True)), (3, 5, 4)),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)),
        (3, 5, 4),
    ),
    "tokens": (lambda: nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 9)), (3, 5)),
}


@pytest.mark.parametrize("name", sorted(HALVES))
@pytest.mark.parametrize("parts", ["unsafe", "all"])
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_models_of_every_kind_run_train_and_are_pasted(name, parts, dtype):
    make, shape = HALVES[name]
    model = make().to(dtype)
    data = torch.randint(9, shape) if name == "tokens" else torch.randn(shape).to(dtype)
    treated = KeepInFloat32(parts=parts).treat(model, batch_input=data)
    output = treated.subject(data)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert [key for key, _ in treated.subject.named_parameters()] == [key for key, _ in model.named_parameters()]
    torch.testing.assert_close(output.float(), model(data).float(), rtol=0.05, atol=0.05)
    by_hand = pasted(treated.code, model)
    assert [type(one).__name__ for one in by_hand.modules()] == [
        type(one).__name__ for one in treated.subject.modules()
    ]
    torch.testing.assert_close(by_hand(data), output, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(pickle.loads(pickle.dumps(treated.subject))(data), output, rtol=0, atol=0)
        assert treated.subject.eval()(data).dtype == dtype  # torch's layers take a fast path of their own here


def test_a_model_that_casts_inside_is_seen_and_healed():
    torch.manual_seed(0)
    model, data = Casts(), torch.randn(6, 4)
    treated = KeepInFloat32(parts="all").treat(model, batch_input=data).subject
    torch.testing.assert_close(treated(data), model.inner(data), rtol=1e-6, atol=1e-6)


def test_a_task_with_autocast_has_none_when_all_is_in_float32():
    plain = task_in_half(model=lambda: nn.Linear(4, 1), autocast="bfloat16")
    treated = KeepInFloat32(parts="all").treat_task(plain)
    assert treated.subject.autocast is None
    assert treated.changes[-1] == "no autocast to bfloat16"
    assert KeepInFloat32().treat_task(plain).subject.autocast == "bfloat16"


def test_the_loss_is_computed_in_float32():
    seen = []

    def loss(output, target):
        seen.append((output.dtype, target.dtype, torch.is_autocast_enabled("cpu")))
        return (output @ target.T).sum()

    treated = KeepInFloat32().treat_task(task_in_half(loss=loss)).subject
    with torch.autocast("cpu", BF16):
        assert treated.loss(torch.ones(2, 1).to(BF16), torch.ones(2, 1).to(BF16)).dtype == torch.float32
    assert seen == [(torch.float32, torch.float32, False)]


@pytest.mark.parametrize("parts", ["unsafe", "all"])
def test_a_model_in_float32_is_refused(parts):
    with pytest.raises(TreatmentError, match="computed in float32"):
        KeepInFloat32(parts=parts).treat(nn.Linear(2, 2), batch_input=torch.randn(3, 2))


def test_it_is_not_done_twice():
    once = KeepInFloat32(parts="all").treat(InHalf(), batch_input=torch.randn(3, 4)).subject
    with pytest.raises(TreatmentError, match=r"computed in float32|without such parts"):
        KeepInFloat32(parts="all").treat(once, batch_input=torch.randn(3, 4))


def test_other_parts_are_named():
    with pytest.raises(SettingError, match="parts: got 'some'"):
        KeepInFloat32(parts="some")
