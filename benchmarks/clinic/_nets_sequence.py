"""Healthy architectures for sequences: recurrent, convolutional, attending, selective."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._build import CE, MSE
from ._nets import CLASSES, LETTERS, architecture, by_position, normal_, sentences, sequences


class Last(nn.Module):
    """A recurrent network that is read out at its last step."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(16, 32, batch_first=True, **settings)
        self.head = nn.Linear(64 if settings.get("bidirectional") else 32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output = self.rnn(x)[0]
        return self.head(output.mean(1) if self.rnn.bidirectional else output[:, -1])


def identity_rnn() -> nn.Module:
    """Start from the identity (Le, Jaitly & Hinton 2015)."""
    model = Last(nn.RNN, nonlinearity="relu")
    nn.init.eye_(model.rnn.weight_hh_l0)
    nn.init.normal_(model.rnn.weight_ih_l0, std=0.01)
    nn.init.zeros_(model.rnn.bias_ih_l0)
    nn.init.zeros_(model.rnn.bias_hh_l0)
    return model


def orthogonal_rnn() -> nn.Module:
    model = Last(nn.RNN)
    nn.init.orthogonal_(model.rnn.weight_hh_l0)
    return model


class RecurrentSpeller(nn.Module):
    """A recurrent language model, with dropout."""

    def __init__(self, kind: type[nn.RNNBase], *, tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(LETTERS, 64), nn.Dropout(0.1)
        self.rnn, self.head = kind(64, 64, 2, batch_first=True, dropout=0.1), nn.Linear(64, LETTERS)
        if tied:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
            self.head.weight = self.embedding.weight

    def forward(self, letters: Tensor) -> Tensor:
        return self.head(self.dropout(self.rnn(self.dropout(self.embedding(letters)))[0]))


class Causal(nn.Conv1d):
    """A convolution that does not see what is to come."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__(width, width, 3, dilation=dilation)
        self.left = 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (self.left, 0)))


class Temporal(nn.Module):
    """A residual block of a temporal convolutional network."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        modules = [norm(Causal(width, dilation)), nn.ReLU(), nn.Dropout(0.1)]
        self.inner = nn.Sequential(*modules, norm(Causal(width, dilation)), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.inner(x))


class Wave(nn.Module):
    """A gated residual block, as of WaveNet."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.signal, self.gate = Causal(width, dilation), Causal(width, dilation)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.tanh(self.signal(x)) * torch.sigmoid(self.gate(x)))


class Convolved(nn.Module):
    """A stack of causal convolutions that is read out at its last step."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.stem = nn.Conv1d(16, 32, 1)
        self.body = nn.Sequential(*(block(32, 2**power) for power in range(4)))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x.transpose(1, 2)))[:, :, -1])


class Block(nn.Module):
    """A block of GPT: attention and a dense part, each added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.mix(self.norms[0](x)).chunk(3, 2))
        seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.dense(self.norms[1](x))


class GPT(nn.Module):
    """A language model, drawn as GPT-2 is: residual branches smaller with depth."""

    def __init__(self, width: int = 64, depth: int = 4, *, tied: bool = True) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, LETTERS, bias=False)
        normal_(self)
        for block in self.blocks:
            for linear in (block.out, block.dense[2]):
                nn.init.normal_(linear.weight, std=0.02 / (2 * depth) ** 0.5)
        if tied:
            self.head.weight = self.letters.weight

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters) + self.places(torch.arange(letters.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class Translator(nn.Module):
    """The transformer of 2017: encoder and decoder, normalisation last."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, 64), nn.Embedding(64, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.1, batch_first=True, norm_first=norm_first)
        reader = nn.TransformerEncoder(layer, 3, nn.LayerNorm(64), enable_nested_tensor=False)
        settings = {"custom_encoder": reader, "batch_first": True, "norm_first": norm_first}
        self.body = nn.Transformer(64, 4, 3, 3, 128, 0.1, **settings)
        self.head = nn.Linear(64, LETTERS)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters) + self.places(torch.arange(letters.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(letters.shape[1])
        return self.head(self.body(x, x, tgt_mask=mask, tgt_is_causal=True))


class Attending(nn.Module):
    """Sequence to sequence with two GRUs and attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 32)
        self.reader, self.writer = nn.GRU(32, 64, batch_first=True), nn.GRU(32, 64, batch_first=True)
        self.query, self.join, self.head = nn.Linear(64, 64), nn.Linear(128, 64), nn.Linear(64, LETTERS)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters)
        read, state = self.reader(x)
        written, _ = self.writer(x, state)
        weight = torch.softmax(self.query(written) @ read.transpose(1, 2) / 8, 2)
        return self.head(torch.tanh(self.join(torch.cat([written, weight @ read], 2))))


class Selective(nn.Module):
    """A selective scan as in Mamba, step by step."""

    def __init__(self, width: int, states: int = 8) -> None:
        super().__init__()
        inner = 2 * width
        self.norm, self.into = nn.LayerNorm(width), nn.Linear(width, 2 * inner, bias=False)
        self.local = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.select, self.step = nn.Linear(inner, 4 + 2 * states, bias=False), nn.Linear(4, inner)
        self.decay = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.skip, self.out = nn.Parameter(torch.ones(inner)), nn.Linear(inner, width, bias=False)
        start = torch.exp(torch.empty(inner).uniform_(-6.9, -2.3))
        with torch.no_grad():
            self.step.bias.copy_(start + torch.log(-torch.expm1(-start)))

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.into(self.norm(x)).chunk(2, 2)
        h = functional.silu(self.local(h.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2))
        rank, written, read = self.select(h).split([4, 8, 8], 2)
        step = functional.softplus(self.step(rank))[..., None]
        keep, add = torch.exp(-step * self.decay.exp()), step * written[:, :, None] * h[..., None]
        state, seen = torch.zeros_like(add[:, 0]), []
        for time in range(x.shape[1]):
            state = keep[:, time] * state + add[:, time]
            seen.append((state * read[:, time, None]).sum(2))
        return x + self.out((torch.stack(seen, 1) + self.skip * h) * functional.silu(gate))


def mamba() -> nn.Module:
    blocks = [Selective(32) for _ in range(3)]
    return nn.Sequential(nn.Embedding(LETTERS, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, LETTERS))


class Tagger(nn.Module):
    """Predicts the next value of a series from an LSTM, at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def series(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    walk = torch.randn(16, 25, 16, generator=generator).cumsum(1) / 5
    return walk[:, :-1], walk[:, 1:]


SEQUENCE = (
    architecture("LSTM", partial(Last, nn.LSTM), CE, sequences),
    architecture("LSTM, two layers", partial(Last, nn.LSTM, num_layers=2, dropout=0.1), CE, sequences),
    architecture("GRU", partial(Last, nn.GRU), CE, sequences),
    architecture("bidirectional GRU", partial(Last, nn.GRU, bidirectional=True), CE, sequences),
    architecture("bidirectional LSTM", partial(Last, nn.LSTM, bidirectional=True), CE, sequences),
    architecture("RNN from the identity", identity_rnn, CE, sequences),
    architecture("RNN from a rotation", orthogonal_rnn, CE, sequences),
    architecture("LSTM on a series", Tagger, MSE, series),
    architecture("LSTM language model", partial(RecurrentSpeller, nn.LSTM), by_position, sentences),
    architecture("GRU language model, tied", partial(RecurrentSpeller, nn.GRU, tied=True), by_position, sentences),
    architecture("RNN language model", partial(RecurrentSpeller, nn.RNN), by_position, sentences),
    architecture("temporal convolutions", partial(Convolved, Temporal), CE, sequences),
    architecture("WaveNet-like", partial(Convolved, Wave), CE, sequences),
    architecture("GPT", GPT, by_position, sentences),
    architecture("GPT, eight blocks, not tied", partial(GPT, 48, 8, tied=False), by_position, sentences),
    architecture("encoder and decoder, normalisation last", Translator, by_position, sentences),
    architecture(
        "encoder and decoder, normalisation first", partial(Translator, norm_first=True), by_position, sentences
    ),
    architecture("seq2seq with attention", Attending, by_position, sentences),
    architecture("Mamba-like", mamba, by_position, sentences),
)
