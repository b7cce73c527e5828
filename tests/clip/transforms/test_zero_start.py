"""A branch that starts at zero, as residual branches often do, under unit-wise clipping."""

import pytest
import torch
from torch import nn

from evengrad.clip.transforms import ByUnitWeightNorm


@pytest.mark.parametrize(("settings", "moves"), [({}, True), ({"eps": 1e-3}, False)])
def test_a_branch_that_starts_at_zero_leaves_it_under_sgd_as_it_does_not_with_the_published_eps(
    settings, moves, targets_of
):
    torch.manual_seed(0)
    first, branch, head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)
    nn.init.zeros_(branch.weight)
    nn.init.zeros_(branch.bias)
    model = nn.ModuleList([first, branch, head])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    targets, clip = targets_of(model, optimizer), ByUnitWeightNorm(**settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        x = torch.randn(64, 8, generator=generator)
        optimizer.zero_grad()
        (
            head(x + branch(first(x).relu())) - torch.stack([x[:, 0].abs(), x[:, 1] * x[:, 2]], 1)
        ).square().mean().backward()
        with torch.no_grad():
            clip.before_(targets, {})
        optimizer.step()
    assert (float(branch.weight.detach().abs().max()) > 0.02) == moves
