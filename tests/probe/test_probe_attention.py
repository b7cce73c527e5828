"""Attention scores: read before the softmax, however a model spells its attention, in both probes."""

import math

import pytest
import torch
from sampled_models import sampled_once
from torch import nn
from torch.nn import functional

from evengrad.probe import probe

CLOSE = {"rel": 1e-5}


def both(model, x, loss=None):
    """What the exact probe and a sampler say of the same step, by name."""
    loss = loss or (lambda output: output.square().sum())
    exact = probe(model, lambda output, _: loss(output), (x, torch.zeros(1))).readings[0].layers
    sampled = sampled_once(model, loss, x)
    assert [layer.name for layer in exact] == [layer.name for layer in sampled]
    return [{layer.name: layer for layer in layers} for layers in (exact, sampled)]


class Heads(nn.Module):
    """Queries, keys and values of some heads, put together by what is handed over."""

    def __init__(self, attend, heads=2, key_heads=2):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(8, 4 * heads), nn.Linear(8, 4 * key_heads), nn.Linear(8, 4 * key_heads)
        self.attend = attend

    def split(self, x):
        return [part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v)]

    def forward(self, x):
        return self.attend(*self.split(x)).transpose(1, 2).flatten(2)


def scores_of(model, x):
    q, k, _ = model.double().split(x.double())
    model.float()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return (q @ k.transpose(-2, -1)).detach()


x = 3 * torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
CAUSAL = torch.ones(7, 7).tril().bool()
KEYS = torch.tensor([True, True, True, False, True, True, False]).expand(7, 7)
ALL = torch.ones(7, 7).bool()


def added(hidden, fill):
    """A mask to be added."""
    return torch.zeros(7, 7).masked_fill(hidden, fill)


CALLS = {
    "plain": (functional.scaled_dot_product_attention, ALL, 0.5),
    "causal": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True), CAUSAL, 0.5),
    "scaled": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=3.0), ALL, 3.0),
    "by names": (lambda q, k, v: functional.scaled_dot_product_attention(value=v, key=k, query=q), ALL, 0.5),
    "bool mask": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, KEYS), KEYS, 0.5),
    "float mask": (
        lambda q, k, v: functional.scaled_dot_product_attention(
            q, k, v, torch.zeros(7, 7).masked_fill(~KEYS, -math.inf)
        ),
        KEYS,
        0.5,
    ),
    "mask of each sample": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, KEYS.expand(2, 1, 7, 7)),
        KEYS,
        0.5,
    ),
    "shared keys": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True), ALL, 0.5),
}


@pytest.mark.parametrize("kind", CALLS)
def test_the_scores_of_an_attention_function_are_those_that_float64_gives(kind):
    attend, kept, scale = CALLS[kind]
    model, given = Heads(attend), x
    if kind == "shared keys":  # one sample, so that all four heads of it are looked at
        model, given = Heads(attend, heads=4, key_heads=2), x[:1]
        model.k.weight.data[:4] *= 3
    wanted = (scale * scores_of(model, given))[..., kept].abs().max().item()
    for layers in both(model, given):
        layer = layers["scaled_dot_product_attention()"]
        assert layer.logit_absmax == pytest.approx(wanted, **CLOSE)
        assert (layer.kind, layer.nonlinearity, layer.weighted) == ("scaled_dot_product_attention", None, False)
        assert [one.logit_absmax for one in layers.values()].count(None) == len(layers) - 1


def by_hand(fill, softmax):
    def attend(q, k, v):
        scores = q @ k.transpose(-2, -1) * 0.5
        scores = (
            scores + torch.zeros(7, 7).masked_fill(~CAUSAL, fill) if fill == -1e4 else scores.masked_fill(~CAUSAL, fill)
        )
        return softmax(scores) @ v

    return attend


SOFTMAXES = {
    "function": lambda scores: functional.softmax(scores, dim=-1),
    "method": lambda scores: scores.softmax(-1),
    "last dimension by number": lambda scores: torch.softmax(scores, 3),
}


@pytest.mark.parametrize("fill", [-math.inf, -1e9, -1e4, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("kind", SOFTMAXES)
def test_attention_by_hand_is_read_at_its_softmax_without_what_is_masked(fill, kind):
    model = Heads(by_hand(fill, SOFTMAXES[kind]))
    wanted = (0.5 * scores_of(model, x))[..., CAUSAL].abs().max().item()
    for layers in both(model, x):
        assert layers["softmax()"].logit_absmax == pytest.approx(wanted, **CLOSE)


def test_a_softmax_module_over_scores_is_read_and_is_no_second_layer():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = Heads(None)
            self.softmax = nn.Softmax(dim=-1)
            self.heads.attend = lambda q, k, v: self.softmax(q @ k.transpose(-2, -1)) @ v

        def forward(self, x):
            return self.heads(x)

    model = Own()
    wanted = scores_of(model.heads, x).abs().max().item()
    for layers in both(model, x):
        assert list(layers) == ["heads.q", "heads.k", "heads.v", "softmax"]
        assert layers["softmax"].logit_absmax == pytest.approx(wanted, **CLOSE)


def test_a_softmax_over_the_output_of_a_layer_is_not_attention():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.head = nn.Linear(8, 3), nn.Linear(8, 3, bias=False)

        def forward(self, x):
            return functional.softmax(self.gate(x), -1) * self.head(x).softmax(-1)

    for layers in both(Router(), x):
        assert list(layers) == ["gate", "head"]


MODULES = {
    "plain": ({}, {}),
    "time first": ({"batch_first": False}, {}),
    "other keys": ({"kdim": 5, "vdim": 5}, {}),
    "no bias": ({"bias": False}, {}),
    "padding": ({}, {"key_padding_mask": torch.tensor([[False, True, False, False, True, False, False]] * 2)}),
    "mask": ({}, {"attn_mask": ~CAUSAL}),
    "added mask of each head": ({}, {"attn_mask": torch.zeros(4, 7, 7).masked_fill(~CAUSAL, -math.inf)}),
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_scores_of_an_attention_module_are_those_of_its_first_sample(kind):
    settings, masks = MODULES[kind]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.MultiheadAttention(8, 2, **{"batch_first": True} | settings)
            nn.init.normal_(self.body.in_proj_bias) if self.body.in_proj_bias is not None else None

        def forward(self, x):
            y = x[..., :5] if "kdim" in settings else x
            return self.body(x, key=y, value=y, **masks)[0]

    model = Model()
    body = model.body
    sample = (x[0] if body.batch_first else x[:, 0]).double()
    keys = sample[..., :5] if "kdim" in settings else sample
    if "kdim" in settings:
        weights = body.q_proj_weight.double(), body.k_proj_weight.double()
    else:
        weights = body.in_proj_weight.double().chunk(3)[:2]
    biases = (0, 0) if body.in_proj_bias is None else body.in_proj_bias.double().chunk(3)[:2]
    q, k = (
        (value @ weight.t() + bias).unflatten(-1, (2, 4)).transpose(0, 1)
        for value, weight, bias in zip((sample, keys), weights, biases, strict=True)
    )
    scores = (q @ k.transpose(1, 2)).detach() / 2
    kept = torch.ones(scores.shape[-2:]).bool()
    if "attn_mask" in masks:
        kept = CAUSAL
    if "key_padding_mask" in masks:
        kept = kept & ~masks["key_padding_mask"][0]
    wanted = scores[:, kept].abs().max().item()
    for layers in both(model, x):
        assert layers["body"].logit_absmax == pytest.approx(wanted, **CLOSE)


def test_a_sample_of_many_queries_is_of_those_that_are_there():
    torch.manual_seed(0)
    model = Heads(functional.scaled_dot_product_attention)
    wide = torch.randn(5, 40, 8)
    largest = 0.5 * scores_of(model, wide).abs().max().item()
    for layers in both(model, wide):
        assert 0.3 * largest < layers["scaled_dot_product_attention()"].logit_absmax <= largest * (1 + 1e-6)


def test_under_autocast_scores_are_computed_in_float32_from_what_was_multiplied():
    kept = []

    def attend(q, k, v):
        kept.append((q.detach(), k.detach()))
        return functional.scaled_dot_product_attention(q, k, v)

    model = Heads(attend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = {layer.name: layer for layer in sampled_once(model, lambda out: out.float().square().sum(), x)}
    q, k = (one.double() for one in kept[0])
    assert kept[0][0].dtype == torch.bfloat16
    wanted = (0.5 * q @ k.transpose(-2, -1)).abs().max().item()
    assert found["scaled_dot_product_attention()"].logit_absmax == pytest.approx(wanted, **CLOSE)
