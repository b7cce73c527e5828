"""Rules of optimizer and loop in small trainings: each fault, and the same training without it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import rules
from evengrad.diagnose._abstract import AbstractRule

CODES = ("EG601", "EG602", "EG603", "EG604", "EG605", "EG606", "EG607", "EG608")
RULES = [rule for rule in rules.ALL if rule.code in CODES]


def digits_of_chance():
    """Make data of which nothing can be learnt."""
    return torch.rand(1000, 64), torch.randint(10, (1000,))


def spoken(record):
    """List the codes that speak, told or not: in the last reading that could be judged, or of the run."""
    found = []
    for rule in RULES:
        if isinstance(rule, AbstractRule):
            signs = [sign for reading in record.readings if (sign := rule.sign(reading, record)) is not None]
            sign = signs[-1] if signs else None
        else:
            sign = rule.judge(record)
        found += [rule.code] if sign is not None and sign.speaks else []
    return found


def sgd(model, lr, **settings):
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


def adam(model, lr, **settings):
    return torch.optim.Adam(model.parameters(), lr=lr, **settings)


@pytest.mark.parametrize(
    ("optimizer", "lr", "steps", "codes"),
    [
        (sgd, 10.0, 60, ["EG601"]),
        (adam, 1.0, 60, ["EG601"]),
        (sgd, 0.2, 60, []),
        (adam, 0.01, 60, []),
        (adam, 1e-7, 250, ["EG602"]),
        (adam, 1e-11, 250, ["EG602"]),
        (adam, 1e-3, 250, []),
        (adam, 1e-4, 250, []),
        (sgd, 0.01, 250, []),
        (adam, 1e-7, 60, []),  # nobody knows yet
    ],
)
def test_a_learning_rate_orders_of_magnitude_from_a_useful_one_is_told(watched, mlp, optimizer, lr, steps, codes):
    model = mlp(3, 64, nn.Tanh)
    assert spoken(watched(model, optimizer(model, lr), steps)) == codes


def test_a_good_fit_that_is_tuned_with_tiny_steps_has_nothing_to_gain(watched, mlp):
    model = mlp()
    watched(model, adam(model, 3e-3), 200)
    assert spoken(watched(model, torch.optim.AdamW(model.parameters(), lr=1e-6), 250)) == []
    assert spoken(watched(model, sgd(model, 1e-5), 250)) == []


def test_a_schedule_with_warm_up_that_ends_at_zero_is_silent(watched, mlp):
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    warm, cool = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, 1.0, 50), torch.optim.lr_scheduler.CosineAnnealingLR
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool(optimizer, 150)], [50])
    assert spoken(watched(model, optimizer, 200, schedule=schedule)) == []


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("steps", [60, 100, 190])
def test_a_warm_up_that_is_not_over_is_silent(watched, mlp, steps):
    model = mlp()
    optimizer = adam(model, 1e-3)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6, 1.0, 2000)
    assert spoken(watched(model, optimizer, steps, schedule=warm)) == []


@pytest.mark.parametrize(("forgets", "codes"), [(True, ["EG603"]), (False, [])])
def test_a_loop_without_zero_grad_is_told(watched, mlp, forgets, codes):
    model = mlp()
    assert spoken(watched(model, sgd(model, 0.01), 60, forgets=forgets)) == codes


@pytest.mark.parametrize(
    ("optimizer", "lr", "clip", "codes"),
    [
        (sgd, 0.1, 1e-5, ["EG604"]),
        (sgd, 1.0, 0.1, []),
        (adam, 1e-3, 1e-3, []),
        (adam, 1e-3, 1e-9, ["EG604", "EG605"]),
    ],
)
def test_a_threshold_far_below_the_gradients_throttles_descent_but_not_adam(watched, mlp, optimizer, lr, clip, codes):
    model = mlp()
    found = spoken(watched(model, optimizer(model, lr), 100, clip=clip))
    assert [code for code in found if code != "EG602"] == codes


@pytest.mark.parametrize(("eps", "codes"), [(1.0, ["EG605"]), (1e-8, [])])
def test_an_epsilon_above_the_gradients_is_told(watched, mlp, eps, codes):
    model = mlp()
    assert spoken(watched(model, adam(model, 1e-3, eps=eps), 100)) == codes


@pytest.mark.parametrize(
    ("optimizer", "lr", "decay", "codes"),
    [
        (sgd, 0.1, 0.5, ["EG606"]),
        (adam, 1e-3, 1.0, ["EG606"]),
        (sgd, 0.1, 1e-3, []),
        (adam, 1e-3, 1e-3, []),
    ],
)
def test_a_decay_that_pulls_stronger_than_the_loss_is_told(watched, mlp, optimizer, lr, decay, codes):
    model = mlp(4)
    found = spoken(watched(model, optimizer(model, lr, weight_decay=decay), 250))
    assert found == codes


def test_a_normalised_network_may_shrink_its_weights(watched):
    blocks = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    model = nn.Sequential(*blocks, nn.Linear(64, 10))
    record = watched(model, sgd(model, 0.1, weight_decay=0.05), 250)
    assert record.readings[-1].weights[0].weight_rms < 0.5 * record.readings[0].weights[0].weight_rms
    assert spoken(record) == []


class Halved(nn.Module):
    """A network that is kept and computed in bfloat16, and gives its output in float32."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.bfloat16()

    def forward(self, x):
        return self.inner(x.bfloat16()).float()


@pytest.mark.parametrize(("lr", "codes"), [(1e-5, ["EG607"]), (3e-3, [])])
def test_steps_that_bfloat16_rounds_away_are_told_where_nothing_is_learnt(watched, mlp, lr, codes):
    model = Halved(mlp())
    assert spoken(watched(model, adam(model, lr), 100)) == codes


@pytest.mark.parametrize(("size", "codes"), [(2, ["EG608"]), (16, [])])
def test_batches_of_two_leave_nothing_for_batch_normalisation(watched, size, codes):
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    assert spoken(watched(model, adam(model, 1e-3), 60, size=size)) == codes


def test_statistics_that_nothing_ever_updates_are_told_and_frozen_ones_are_not(watched):
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)).eval()
    shuffled = digits_of_chance()
    assert spoken(watched(model, adam(model, 1e-3), 60, data=shuffled)) == ["EG608"]
    assert spoken(watched(model, adam(model, 1e-3), 60)) == []  # it learns, as without the layer
    model.train()
    watched(model, adam(model, 1e-3), 60)
    model[1].eval()
    assert spoken(watched(model, adam(model, 1e-3), 60)) == []


def test_a_batch_of_one_with_group_normalisation_is_silent(watched):
    convolution = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*convolution, nn.Linear(288, 10))
    assert spoken(watched(model, adam(model, 1e-3), 300, size=1)) == []


def test_a_loss_that_means_nothing_is_silent(watched, mlp):
    """The gradient of a policy: a random advantage, no descent."""
    model = mlp(2, 64, nn.Tanh)

    def loss(output, target):
        chosen = torch.log_softmax(output, -1).gather(1, target[:, None])[:, 0]
        return -(chosen * torch.randn(len(chosen))).mean()

    for optimizer in (adam(model, 3e-4), torch.optim.RMSprop(model.parameters(), lr=7e-4)):
        assert spoken(watched(model, optimizer, 250, loss=loss)) == []


def test_the_whole_data_in_each_step_is_straight_and_learns(watched):
    points = torch.linspace(0, 1, 64)[:, None]
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    settings = {"loss": functional.mse_loss, "data": (points, torch.sin(6 * points)), "size": 64}
    assert spoken(watched(model, adam(model, 1e-3), 250, **settings)) == []
