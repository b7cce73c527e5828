"""A recurrent network that has to remember the first symbol of a sequence and cannot."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from evengrad.cli.stories._digits import Batches, _same, accuracy
from evengrad.nouns import Task

SYMBOLS = 8
BATCH = 64


class Memory(nn.Module):
    """A plain recurrent layer of 32 units, read out at the last time step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(SYMBOLS + 1, 32, batch_first=True)
        self.read_out = nn.Linear(32, SYMBOLS)
        nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), gain=0.5)

    def forward(self, sequences: Tensor) -> Tensor:
        """Map (batch, time, symbols + 1) to (batch, symbols)."""
        states, _ = self.rnn(sequences)
        read_out: Tensor = self.read_out(states[:, -1])
        return read_out


def sequences(count: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw sequences whose first element is one of eight symbols, and the rest blanks; the symbol is the label."""
    labels = torch.randint(SYMBOLS, (count,), generator=torch.Generator().manual_seed(seed))
    inputs = torch.zeros(count, length, SYMBOLS + 1)
    inputs[torch.arange(count), 0, labels] = 1
    inputs[:, 1:, SYMBOLS] = 1
    return inputs, labels


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam with a learning rate that suits small recurrent networks."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def forgetful_network(steps: int = 300, length: int = 40) -> Task:
    """The copy task of Hochreiter and Schmidhuber (1997) in its shortest form, with weights that forget."""
    inputs, labels = sequences(40 * BATCH, length, seed=0)
    batches: Batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
    return Task(
        name=f"a symbol to remember for {length} steps",
        model=Memory,
        optimizer=adam,
        loss=functional.cross_entropy,
        train=partial(_same, batches),
        validate=partial(accuracy, *sequences(512, length, seed=1)),
        steps=steps,
    )
