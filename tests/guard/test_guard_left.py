"""Weights that nobody trains: a guard tells them when enough steps have shown it, and games are left in peace."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad import Guard
from evengrad.diagnose import diagnose, findings_of


class Headed(nn.Module):
    def __init__(self, hidden=False):
        super().__init__()
        body = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.body = [body] if hidden else body
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head((self.body[0] if isinstance(self.body, list) else self.body)(x))


def batches(steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(32, 16, generator=generator)
        yield x, (x[:, :4] + x[:, 4:8]).argmax(1)


def trained(model, optimizer, steps, log=None, forward=None):
    guard = Guard(model, optimizer, clip=False, log=log, tell=False)
    for x, y in batches(steps):
        optimizer.zero_grad()
        guard.loss(functional.cross_entropy((forward or model)(x), y)).backward()
        optimizer.step()
    return guard


def told(guard):
    return [finding.code for finding in guard.findings()]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_body_that_no_optimizer_holds_is_told_though_the_head_learns(hidden, tmp_path):
    torch.manual_seed(0)
    model = Headed(hidden)
    guard = trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), 130, tmp_path / "run")
    (finding,) = guard.findings()
    names = ("body[0].0", "body[0].2") if hidden else ("body.0", "body.2")
    assert (finding.code, finding.where, finding.severity) == ("EG109", names, "warning")
    (logged,) = diagnose(tmp_path / "run").findings  # while it goes on
    assert (logged.code, logged.where) == ("EG109", names)
    guard.detach()


def test_nothing_is_told_of_untrained_weights_in_the_first_steps_and_at_an_end_that_comes_soon(tmp_path):
    torch.manual_seed(0)
    model = Headed()
    guard = trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), 127)
    assert guard.record.setup.untrained == ()
    guard.detach()
    assert guard.record.setup.untrained == ("body.0.weight", "body.2.weight")
    for steps, known in ((7, 0), (8, 2)):
        model = Headed()
        with trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), steps, tmp_path / str(steps)) as guard:
            pass
        assert len(guard.record.setup.untrained) == known
        assert len(diagnose(tmp_path / str(steps)).record.setup.untrained) == known


def test_a_pretrained_body_without_a_step_is_silent_with_its_gradients_left_on():
    torch.manual_seed(0)
    model = Headed()
    trained(model, torch.optim.Adam(model.parameters(), 1e-2), 150).detach()
    nn.init.zeros_(model.head.weight)
    guard = trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), 150)
    assert guard.record.setup.left_out
    assert told(guard) == []
    guard.detach()


def test_a_body_under_no_grad_and_one_that_is_not_used_are_silent():
    torch.manual_seed(0)
    model = Headed()

    def forward(x):
        with torch.no_grad():
            features = model.body(x)
        return model.head(features)

    guard = trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), 130, forward=forward)
    assert guard.record.setup.untrained == ()
    guard.detach()


class Game(nn.Module):
    """Both sides of a game in one module."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        self.critic = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


class ByHand:
    """Move weights as old optimizers do: through `.data`, which no version counts."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr = list(parameters), lr

    def zero_grad(self):
        for one in self.parameters:
            one.grad = None

    def step(self):
        for one in self.parameters:
            one.data.sub_(self.lr * one.grad)


@pytest.mark.parametrize("ahead", [1, 5, 100])
@pytest.mark.parametrize("by_hand", [False, True])
def test_neither_side_of_a_game_is_told_of_the_other(ahead, by_hand, tmp_path):
    torch.manual_seed(0)
    game = Game()
    critics = torch.optim.Adam(game.critic.parameters(), 1e-3, betas=(0.5, 0.9))
    guards = [Guard(game, critics, clip=False, log=tmp_path / "critic", tell=False)]
    if by_hand:
        generators = ByHand(game.generator.parameters(), 1e-3)
    else:
        generators = torch.optim.Adam(game.generator.parameters(), 1e-3, betas=(0.5, 0.9))
        guards.append(Guard(game, generators, clip=False, log=tmp_path / "generator", tell=False))
    bce = functional.binary_cross_entropy_with_logits
    for step in range(260):
        real, noise = torch.randn(32, 8) + 1.0, torch.randn(32, 8)
        critics.zero_grad()
        fake = game.generator(noise)
        loss = bce(game.critic(real), torch.ones(32, 1)) + bce(game.critic(fake), torch.zeros(32, 1))
        guards[0].loss(loss).backward()  # a gradient for both sides: the fake is not detached
        critics.step()
        if step % ahead == ahead - 1:
            generators.zero_grad()
            loss = bce(game.critic(game.generator(noise)), torch.ones(32, 1))
            (loss if by_hand else guards[1].loss(loss)).backward()
            generators.step()
    assert guards[0].record.setup.left_out
    assert [guard.record.setup.untrained for guard in guards] == [()] * len(guards)
    for guard in guards:
        guard.detach()
        assert guard.record.setup.untrained == ()
    for run in tmp_path.iterdir():
        assert "EG109" not in [finding.code for finding in diagnose(run).findings]


def test_what_is_moved_later_is_taken_back_and_so_is_what_the_optimizer_gets(tmp_path):
    torch.manual_seed(0)
    model = Headed()
    optimizer = torch.optim.SGD(model.head.parameters(), 0.1)
    guard = Guard(model, optimizer, clip=False, log=tmp_path / "run", tell=False)

    def known():
        facts = json.loads((tmp_path / "run" / "meta.json").read_text())["facts"]
        return tuple(json.loads(facts["setup"])["untrained"])

    for x, y in batches(140):
        guard.loss(functional.cross_entropy(model(x), y)).backward()
        model.body.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
    assert known() == guard.record.setup.untrained == ()  # no gradient was there when it was looked
    for x, y in batches(150):
        optimizer.zero_grad()
        guard.loss(functional.cross_entropy(model(x), y)).backward()
        optimizer.step()
    assert known() == guard.record.setup.untrained == ("body.0.weight", "body.2.weight")
    optimizer.add_param_group({"params": list(model.body.parameters())})
    x, y = next(batches(1))
    guard.loss(functional.cross_entropy(model(x), y)).backward()
    optimizer.step()
    assert known() == guard.record.setup.untrained == ()
    guard.detach()


def test_a_frozen_body_as_drawn_is_known_and_one_that_follows_the_weights_is_not():
    torch.manual_seed(0)
    model = Headed()
    model.body.requires_grad_(False)
    guard = trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), 130)
    assert guard.record.setup.untrained == ("body.0.weight", "body.2.weight")
    assert findings_of(guard.record) == ()  # random features may be meant
    with torch.no_grad():
        for one in model.body.parameters():
            one.mul_(0.99).add_(0.01)
    guard.detach()
    assert guard.record.setup.untrained == ()


def test_a_run_directory_that_is_gone_ends_no_training(tmp_path, caplog):
    torch.manual_seed(0)
    model = Headed()
    guard = trained(model, torch.optim.Adam(model.head.parameters(), 1e-2), 20, tmp_path / "run")
    (tmp_path / "run" / "meta.json").unlink()
    guard.detach()
    assert "stays as it was at the start" in caplog.text
