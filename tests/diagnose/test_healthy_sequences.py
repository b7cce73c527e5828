"""Transformers and recurrent networks that people train every day get no finding when they start."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of
from evengrad.probe import probe

CLASSES = 10


def pictures(generator):
    return torch.randn(16, 3, 16, 16, generator=generator), torch.randint(0, CLASSES, (16,), generator=generator)


def words(generator, count=8, length=24):
    tokens = torch.randint(0, 50, (count, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def sequences(generator, count=16, length=30):
    return torch.randn(count, length, 8, generator=generator), torch.randint(0, CLASSES, (count,), generator=generator)


def next_word(logits, target):
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


class Tokens(nn.Module):
    """Positions, a learnt first token, and an encoder; with `size` set, on patches of a picture."""

    def __init__(self, encoder, *, causal=False, size=None, tied=False):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4) if size else nn.Embedding(50, 32)
        self.encoder, self.causal, self.size = encoder, causal, size
        self.first = nn.Parameter(torch.zeros(1, 1, 32)) if size else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES if size else 50, bias=False)
        if tied:
            nn.init.normal_(self.embed.weight, std=0.02)
            self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        if self.size:
            h = torch.cat([self.first.expand(len(x), -1, -1), h.flatten(2).transpose(1, 2)], 1)
        h = h + self.positions[:, : h.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1]) if self.causal else None
        h = self.norm(self.encoder(h, mask=mask))
        return self.head(h[:, 0] if self.size else h)


def encoder(*, first, layers=6, activation="relu"):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=first, activation=activation)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def gpt():
    model = Tokens(encoder(first=True, activation="gelu"), causal=True, tied=True)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            deep = "out_proj" in name or "linear2" in name
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(12) if deep else 1))
    return model


class Language(nn.Module):
    def __init__(self, kind, *, layers=2):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(50, 32), kind(32, 32, layers, batch_first=True)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(32, 50)

    def forward(self, x):
        return self.head(self.drop(self.rnn(self.embed(x))[0]))


class Reader(nn.Module):
    """A classifier of sequences: the last state of a recurrent network."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.rnn = kind(8, 32, batch_first=True, **settings)
        width = 32 * (2 if settings.get("bidirectional") else 1)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Cells(nn.Module):
    """The same with a cell in a loop."""

    def __init__(self, kind):
        super().__init__()
        self.embed, self.cell = nn.Linear(8, 32), kind(32, 32)
        self.mid, self.head = nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(self.embed(step), state)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(self.mid(h).tanh())


CE = functional.cross_entropy
NETWORKS = {
    "pre-LN transformer": (lambda: Tokens(encoder(first=True)), next_word, words),
    "post-LN transformer": (lambda: Tokens(encoder(first=False)), next_word, words),
    "GPT": (gpt, next_word, words),
    "ViT": (lambda: Tokens(encoder(first=True, activation="gelu"), size=16), CE, pictures),
    "LSTM language model": (lambda: Language(nn.LSTM), next_word, words),
    "GRU language model": (lambda: Language(nn.GRU), next_word, words),
    "RNN language model": (lambda: Language(nn.RNN), next_word, words),
    "LSTM classifier": (lambda: Reader(nn.LSTM), CE, sequences),
    "deep LSTM classifier": (lambda: Reader(nn.LSTM, num_layers=3, bidirectional=True), CE, sequences),
    "GRU classifier": (lambda: Reader(nn.GRU), CE, sequences),
    "LSTM cell in a loop": (lambda: Cells(nn.LSTMCell), CE, sequences),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_healthy_network_for_sequences_gets_no_finding_when_it_starts(name, seed):
    make, loss, data = NETWORKS[name]
    torch.manual_seed(seed)
    record = probe(make(), loss, data(torch.Generator().manual_seed(seed)))
    assert [str(finding) for finding in findings_of(record)] == []
