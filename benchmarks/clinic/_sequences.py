"""Programs that have to remember over time: adding, copying, temporal order."""

from functools import cache, partial

import torch
from torch import Tensor, nn

from evengrad import Task

from ._build import CE, MSE, Split, adam, fed, r2, sgd, split
from ._program import Program

COUNT = 3000
TRAIN = 2400


class Reader(nn.Module):
    """A recurrent layer that is read out at its last step.

    Args:
        kind: RNN, GRU or LSTM.
        shape: Features, units, outputs.
        recurrent: Draws the recurrent weights; None leaves torch's.
        forget: The bias of an LSTM's forget gate; None leaves torch's.
        settings: For the layer.
    """

    def __init__(self, kind, shape, *, recurrent=None, forget=None, **settings):
        super().__init__()
        features, width, outputs = shape
        self.rnn, self.head = kind(features, width, batch_first=True, **settings), nn.Linear(width, outputs)
        if recurrent is not None:
            recurrent(self.rnn)
        if forget is not None:
            with torch.no_grad():
                self.rnn.bias_hh_l0[width : 2 * width] = forget
                self.rnn.bias_ih_l0[width : 2 * width] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, features) to (batch, outputs)."""
        return self.head(self.rnn(x)[0][:, -1])


def orthogonal(gain: float):
    """Draw recurrent weights that scale every state by the gain."""

    def draw(rnn):
        nn.init.orthogonal_(rnn.weight_hh_l0, gain=gain)

    return draw


def identity(rnn):
    """Start from remembering everything (Le, Jaitly & Hinton 2015)."""
    nn.init.eye_(rnn.weight_hh_l0)
    nn.init.zeros_(rnn.bias_hh_l0)
    nn.init.zeros_(rnn.bias_ih_l0)


def remembering(*shape: int):
    return Reader(nn.RNN, shape, recurrent=identity, nonlinearity="relu")


@cache
def adding(length: int) -> Split:
    """Two of the numbers are marked; the target is their sum."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.zeros(COUNT, length, 2)
    inputs[:, :, 0] = torch.rand(COUNT, length, generator=generator)
    marks = torch.stack([torch.randperm(length, generator=generator)[:2] for _ in range(COUNT)])
    inputs[:, :, 1].scatter_(1, marks, 1.0)
    return split(inputs, (inputs[:, :, 0] * inputs[:, :, 1]).sum(1, keepdim=True), TRAIN)


@cache
def copying(length: int) -> Split:
    """The first of the symbols is one of eight; it is the target."""
    labels = torch.randint(8, (COUNT,), generator=torch.Generator().manual_seed(1))
    inputs = torch.zeros(COUNT, length, 9)
    inputs[torch.arange(COUNT), 0, labels] = 1
    inputs[:, 1:, 8] = 1
    return split(inputs, labels, TRAIN)


@cache
def temporal_order(length: int) -> Split:
    """Two symbols, each A or B, among noise; the target is which of the four pairs came (Hochreiter 1997, task 6a)."""
    generator = torch.Generator().manual_seed(1)
    rows, pair = torch.arange(COUNT), torch.randint(2, (COUNT, 2), generator=generator)
    inputs = torch.zeros(COUNT, length, 6)
    inputs.scatter_(2, torch.randint(2, 6, (COUNT, length, 1), generator=generator), 1.0)
    for place, (early, late) in enumerate(((length // 10, length // 5), (length // 2, length * 3 // 5))):
        at = torch.randint(early, late + 1, (COUNT,), generator=generator)
        inputs[rows, at] = 0
        inputs[rows, at, pair[:, place]] = 1
    return split(inputs, 2 * pair[:, 0] + pair[:, 1], TRAIN)


def add(model, optimizer, length: int, epochs: int, clip=None) -> Task:
    data = fed(adding(length), 64, epochs, r2)
    return Task(name="adding", model=model, optimizer=optimizer, loss=MSE, clip=clip, **data)


def recall(model, optimizer, data: Split, epochs: int, clip=None) -> Task:
    return Task(name="recall", model=model, optimizer=optimizer, loss=CE, clip=clip, **fed(data, 64, epochs))


def plain(shape, gain: float, **settings):
    return partial(Reader, nn.RNN, shape, recurrent=orthogonal(gain), **settings)


PROGRAMS = (
    Program(
        number=36,
        name="adding over 30 steps, recurrent weights 0.5 orthogonal",
        origin="the adding problem",
        faulty=add(plain((2, 32, 1), 0.5), adam(1e-3), 30, 8),
        fixed=add(partial(Reader, nn.GRU, (2, 32, 1)), adam(1e-2), 30, 8, clip=1.0),
        families=("vanishing-time",),
        place=("rnn",),
        reaches=0.95,
    ),
    Program(
        number=37,
        name="adding over 50 steps, ReLU, recurrent weights 1.6 orthogonal",
        origin="Pascanu, Mikolov & Bengio 2013",
        faulty=add(plain((2, 32, 1), 1.6, nonlinearity="relu"), sgd(0.01), 50, 20),
        fixed=add(partial(remembering, 2, 64, 1), adam(1e-3), 50, 30, clip=1.0),
        families=("exploding-time", "init-large"),
        place=("rnn",),
        reaches=0.85,
        note="1.6 times orthogonal: with 1.5 the units die on one seed of three before anything explodes.",
    ),
    Program(
        number=38,
        name="temporal order over 40 steps, recurrent weights 0.3 orthogonal",
        origin="temporal order",
        faulty=recall(plain((6, 32, 4), 0.3), adam(1e-3), temporal_order(40), 20),
        fixed=recall(partial(Reader, nn.GRU, (6, 32, 4)), adam(1e-2), temporal_order(40), 6),
        families=("vanishing-time",),
        place=("rnn",),
        reaches=0.97,
        note="Twenty passes, at chance; the published .66 takes forty.",
    ),
    Program(
        number=39,
        name="copying over 60 steps, recurrent weights 0.5 orthogonal",
        origin="copy memory",
        faulty=recall(plain((9, 32, 8), 0.5), adam(1e-3), copying(60), 10),
        fixed=recall(partial(remembering, 9, 32, 8), adam(1e-3), copying(60), 20, clip=1.0),
        families=("vanishing-time",),
        place=("rnn",),
        reaches=0.97,
        note="The fix starts from the identity: orthogonal weights alone learn on two seeds of three.",
    ),
    Program(
        number=40,
        name="adding over 30 steps, recurrent weights 1.2 orthogonal, learning rate 0.5",
        origin="a learning rate spike",
        faulty=add(plain((2, 64, 1), 1.2), sgd(0.5), 30, 8),
        fixed=add(partial(Reader, nn.GRU, (2, 64, 1)), adam(1e-2), 30, 8, clip=1.0),
        families=("exploding-time", "lr-high", "init-large"),
        place=("rnn", "optimizer"),
        reaches=0.95,
        note="The fix is a GRU with Adam; orthogonal weights of gain 1 with a small learning rate stay at R2 0.",
    ),
)
