"""Rules of shapes: a softmax over the batch, and a target that is broadcast against the output."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import evengrad
from evengrad import Guard
from evengrad.diagnose import rules
from evengrad.nouns import Ends, LayerReading, Reading, Record, TensorReading
from evengrad.probe import probe

RULE = {rule.code: rule for rule in rules.ALL}


def trained(loss, output=4, target=None, samples=12):
    """Take a few real steps and judge the sampled ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, output))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, optimizer, clip=False, tell=False, sample_every_steps=1)
    inputs = torch.randn(samples, 6)
    for _ in range(3):
        optimizer.zero_grad()
        guard.loss(loss(model(inputs), inputs[:, 0] if target is None else target)).backward()
        optimizer.step()
    guard.detach()
    return guard.record


def speaks(code, record):
    signs = [RULE[code].sign(one, record) for one in record.readings]
    assert len(signs) >= 3
    return any(sign is not None and sign.speaks for sign in signs)


LABELS = torch.arange(12) % 4


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda o, y: functional.nll_loss(o.log_softmax(0), y), True),
        (lambda o, y: functional.nll_loss(o.softmax(0).log(), y), True),
        (lambda o, y: functional.nll_loss(o.log_softmax(1), y), False),
        (functional.cross_entropy, False),
        # contrastive: the samples of a batch are to be told apart
        (lambda o, y: functional.cross_entropy(o @ o.T, torch.arange(len(o))), False),
        (lambda o, y: functional.cross_entropy(o @ o.T, torch.arange(len(o)).roll(3)), False),
        (lambda o, y: functional.cross_entropy(o @ o.T, y), False),
        # one list of samples to be ranked
        (lambda o, y: functional.cross_entropy(o[:, 0], torch.tensor(3)), False),
        (lambda o, y: functional.mse_loss(o.softmax(0), functional.one_hot(y, 4).float()), False),
    ],
)
def test_a_softmax_over_the_batch_is_told_and_one_over_classes_or_for_contrast_is_not(loss, told):
    assert speaks("EG506", trained(loss, target=LABELS)) is told


@pytest.mark.parametrize(("samples", "classes", "size", "told"), [(8, 4, 8, True), (8, 4, 4, False), (4, 4, 4, False)])
def test_the_softmax_is_told_by_its_size_where_samples_and_classes_differ(samples, classes, size, told):
    ends = Ends(
        output=TensorReading(name="output", shape=(samples, classes)),
        target=TensorReading(name="target", shape=(samples,), dtype="int64"),
        loss_ops=("NllLoss", "LogSoftmax"),
        softmax_size=size,
    )
    layers = (LayerReading(name="0", kind="Linear", weighted=True),)
    for bias, silent in ((1e-8, False), (1e-3, True)):
        reading = Reading(ends=ends, layers=layers, grad_norms=(1.0, bias))
        sign = RULE["EG506"].sign(reading, Record(parameters=("0.weight", "0.bias")))
        assert sign.speaks is (told and not silent)
    assert RULE["EG506"].sign(Reading(), Record()) is None


def by_hand(output, target):
    return ((target - output) ** 2).mean()


LOSSES = [
    (functional.mse_loss, True),
    (nn.MSELoss(), True),
    (nn.MSELoss(reduction="sum"), True),
    (lambda o, y: 0.5 * functional.mse_loss(o, y) + 1e-3 * o.square().mean(), True),
    (lambda o, y: functional.mse_loss(o, y).sqrt(), True),
    (functional.l1_loss, True),
    (nn.HuberLoss(), True),
    (functional.smooth_l1_loss, True),
    (by_hand, True),
    (lambda o, y: functional.mse_loss(o.squeeze(1), y[:, None]), True),
    (lambda o, y: functional.mse_loss(o.squeeze(1), y), False),
    (lambda o, y: functional.mse_loss(o, y[:, None]), False),
    (lambda o, y: by_hand(o, y[:, None]), False),
    # distances between samples: a square that is meant
    (lambda o, y: functional.mse_loss(o - o.T, y[:, None] - y), False),
    (lambda o, y: (o - o.T - (y[:, None] - y)).square().mean(), False),
    (lambda o, y: (o - y).square().min(1).values.mean(), False),  # to the nearest target
    (lambda o, y: 2 * (o - y).abs().mean() - (o - o.T).abs().mean(), False),  # energy distance
]


def seen_by_guard(loss, hand_over):
    def record(model, inputs):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        with Guard(model, optimizer, clip=False, tell=False, sample_every_steps=1) as guard:
            for _ in range(3):
                optimizer.zero_grad()
                value = loss(model(inputs), inputs[:, 0])
                (guard.loss(value) if hand_over else value).backward()
                optimizer.step()
        return guard.record.readings

    return record


WAYS = {
    "guard": lambda loss: seen_by_guard(loss, True),
    "guard that finds the loss": lambda loss: seen_by_guard(loss, False),
    "probe": lambda loss: lambda model, inputs: probe(model, loss, (inputs, inputs[:, 0])).readings,
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("loss", "told"), LOSSES)
@pytest.mark.parametrize("last", [nn.Identity, nn.Tanh])
def test_a_target_that_is_broadcast_to_all_pairs_is_told_and_shapes_that_agree_are_not(loss, told, way, last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), last())
    readings = WAYS[way](loss)(model, torch.randn(12, 6))
    signs = [RULE["EG507"].sign(reading, Record()) for reading in readings]
    assert any(sign is not None and sign.speaks for sign in signs) is told


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda o, y: 1.0 * functional.mse_loss(o, y), by_hand])
def test_a_checkup_tells_a_target_that_is_broadcast(loss):
    inputs = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    wrong, right = (evengrad.checkup(model, loss, (inputs, y)).findings for y in (inputs[:, 0], inputs[:, :1]))
    assert "EG507" in {finding.code for finding in wrong}
    assert "EG507" not in {finding.code for finding in right}


@pytest.mark.parametrize(
    ("output", "target", "fix"),
    [
        ((8, 1), (8,), "use target.unsqueeze(-1) or output.squeeze(-1)"),
        ((8,), (8, 1), "use target.squeeze(-1)"),
        ((8, 1), None, "use target.unsqueeze(-1) or output.squeeze(-1)"),
        ((8, 1), (8, 1), "let the loss compare them in one"),
    ],
)
def test_the_shapes_say_which_line_to_change(output, target, fix):
    ends = Ends(
        output=TensorReading(name="output", shape=output),
        target=target and TensorReading(name="target", shape=target),
        loss_ops=("MseLoss",),
        compared_shape=(8, 8),
    )
    assert RULE["EG507"].sign(Reading(ends=ends), Record()).cause.endswith(fix)


@pytest.mark.parametrize("shape", [(1, 1), (8,), (8, 1), None])
def test_a_comparison_that_is_no_square_of_samples_is_not_told(shape):
    samples = 8 if shape is None else shape[0]
    ends = Ends(
        output=TensorReading(name="output", shape=(samples, 1)),
        target=TensorReading(name="target", shape=(samples,)),
        loss_ops=("MseLoss",),
        compared_shape=shape,
    )
    sign = RULE["EG507"].sign(Reading(ends=ends), Record())
    assert sign is None or not sign.speaks


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda o, y: 1.0 * functional.mse_loss(o, y), by_hand])
def test_a_repair_says_the_change_of_code_for_a_target_that_is_broadcast_and_offers_no_cure(loss):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 6, generator=generator)
    target = inputs[:, 0] * inputs[:, 1]
    task = evengrad.Task(
        model=lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        loss=loss,
        train=lambda: zip(inputs.split(32), target.split(32), strict=True),  # the last batch is smaller
        validate=lambda model: -functional.mse_loss(model(inputs)[:, 0], target).item(),
        steps=60,
    )
    result = evengrad.repair(task, seeds=1, engine="here")
    assert [finding.code for finding in result.findings] == ["EG507"]
    assert result.verdict.outcome == "cannot be cured by a tool"
    assert "target.unsqueeze(-1) or output.squeeze(-1)" in str(result.verdict)
    assert result.treatment is None


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_series_of_many_samples_against_one_is_broadcast_on_purpose():
    assert not speaks("EG507", trained(functional.mse_loss, output=4, target=torch.randn(4)))


@pytest.mark.parametrize(("constant_frac", "told"), [(1.0, True), (0.9, False)])
def test_a_square_target_whose_rows_differ_is_no_broadcast(constant_frac, told):
    ends = Ends(
        output=TensorReading(name="output", shape=(8, 1)),
        target=TensorReading(name="target", shape=(8, 8), std=1.0, features=8, constant_frac=constant_frac),
        loss_ops=("MseLoss",),
    )
    assert RULE["EG507"].sign(Reading(ends=ends), Record()).speaks is told
