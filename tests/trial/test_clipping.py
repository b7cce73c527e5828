"""A trial clips as torch and the guard do, whatever the policy needs."""

import copy

import pytest
import torch
from torch import nn

from evengrad import Guard
from evengrad.clip import ByGlobalNorm, ByPolyakStep, ByTensorNorm, ByWeightNorm, ByZScore, Chain
from evengrad.trial._clipping import Clipping


def trained(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        loss = 30 * model(torch.randn(16, 4)).square().mean()
    loss.backward()
    return model, float(loss.detach())


def norms(model):
    return torch.stack([parameter.grad.norm() for parameter in model.parameters()]).numpy()


def test_each_parameter_gets_the_factor_of_its_own_norm():
    model, loss = trained()
    expected = [parameter.grad * min(1.0, 0.5 / float(parameter.grad.norm())) for parameter in model.parameters()]
    clipping = Clipping(ByTensorNorm(0.5), list(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1))
    scale, skipped = clipping.clip_(norms(model), loss)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)
    assert scale == pytest.approx(0.5 / norms(trained()[0]).max())
    assert not skipped


def test_a_number_clips_as_torch_does():
    model, loss = trained()
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = mine.grad.clone()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    Clipping(1.0, list(model.parameters()), torch.optim.SGD(model.parameters())).clip_(norms(model), loss)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    "policy",
    [
        ByWeightNorm(0.05),
        Chain(ByZScore(), ByPolyakStep()),
        ByGlobalNorm(0.5, norm_type=float("inf")),
        ByTensorNorm(0.3),
    ],
    ids=repr,
)
def test_a_step_of_a_trial_is_that_of_a_guarded_loop(policy):
    model, loss = trained()
    guarded = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), guarded.parameters(), strict=True):
        theirs.grad = mine.grad.clone()
    optimizer, other = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, guarded))
    Clipping(policy, list(model.parameters()), optimizer).clip_(norms(model), loss)
    optimizer.step()
    with Guard(guarded, other, clip=policy) as guard:
        guard.loss(torch.tensor(loss))
        other.step()
    for mine, theirs in zip(model.parameters(), guarded.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_step_that_is_not_finite_is_skipped_and_left_as_it_is():
    model, loss = trained()
    next(model.parameters()).grad[0, 0] = float("nan")
    before = [parameter.grad.clone() for parameter in model.parameters()]
    clipping = Clipping(0.1, list(model.parameters()), torch.optim.SGD(model.parameters()))
    assert clipping.clip_(norms(model), loss) == (1.0, True)
    assert all(
        torch.equal(
            a.grad,
            b,
        )
        or a.grad.isnan().any()
        for a, b in zip(model.parameters(), before, strict=True)
    )
