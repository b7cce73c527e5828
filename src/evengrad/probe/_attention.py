"""How large attention scores become before the softmax, over a sample of queries; nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.parametrize import is_parametrized

from evengrad.probe._statistics import apart, wide

MOST_QUERIES = 16
MOST_PAIRS = 4  # of a sample and a head
MOST_HEADS = 2  # of a module whose queries and keys have to be computed anew

# A score below this is a mask that was added or filled in: the mildest in use is -10,000.
MASKED = -5_000.0

# Operations that may lie between the product of queries and keys and its softmax: scaling, mask, soft cap, dtype.
_BETWEEN = frozenset({
    "AddBackward0", "CatBackward0", "ClampBackward1", "ClampMinBackward0", "CloneBackward0", "DivBackward0",
    "DropoutBackward0", "ExpandBackward0", "MaskedFillBackward0", "MaskedFillBackward1", "MaximumBackward0",
    "MulBackward0", "PermuteBackward0", "ReshapeAliasBackward0", "SliceBackward0", "SubBackward0", "TanhBackward0",
    "ToCopyBackward0", "TransposeBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewBackward0",
    "WhereBackward0",
})  # fmt: skip
_PRODUCTS = frozenset({"BmmBackward0", "BaddbmmBackward0"})
_MOST_NODES = 24


def are_scores(value: Tensor) -> bool:
    """Tell by its graph whether a tensor is a product of two batches of matrices, with little done to it since.

    The output of a layer with weights, as of a router or a head, is a product with one matrix.
    """
    if value.ndim < 3 or value.grad_fn is None:
        return False
    nodes, seen = [value.grad_fn], 0
    while nodes and seen < _MOST_NODES:
        node = nodes.pop()
        seen += 1
        name = node.name()
        if name in _PRODUCTS:
            return True
        if name in _BETWEEN:
            nodes += [before for before, _ in node.next_functions if before is not None]
    return False


def score_absmax(scores: Tensor) -> Tensor:
    """Largest magnitude of scores of shape (..., queries, keys), those left out that a mask has made very negative."""
    if scores.numel() == 0:
        return scores.new_zeros(())
    with apart(scores.device):
        rows = slice(None, None, _step(scores.shape[-2], MOST_QUERIES))
        return _absmax(torch.stack([wide(scores[index][rows]) for index in _pairs(scores.shape[:-2])]))


def product_absmax(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Largest magnitude of the scores in a call of `scaled_dot_product_attention`; None where it has none to take."""
    names = "query", "key", "value", "attn_mask", "dropout_p", "is_causal"
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    if not all(_is_plain(one) for one in (query, key, mask) if one is not None):
        return None
    if query.ndim != key.ndim or query.ndim < 2 or query.numel() == 0 or key.numel() == 0:
        return None
    lead, scale = query.shape[:-2], given.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rows = slice(None, None, _step(query.shape[-2], MOST_QUERIES))
    with apart(query.device):
        kept = _causal(query, key, rows) if given.get("is_causal") else None
        full = None if mask is None else mask.expand(*lead, query.shape[-2], key.shape[-2])
        pairs = list(_pairs(lead))
        scores = [wide(query[one][rows]) @ wide(key[_key_of(one, lead, key)]).t() * scale for one in pairs]
        if full is not None:
            masks = torch.stack([_keeps(full[one][rows]) for one in pairs])
            kept = masks if kept is None else kept & masks
        return _absmax(torch.stack(scores), kept)


def module_absmax(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Largest magnitude of the scores of the first sample in `nn.MultiheadAttention`, computed anew from its weights.

    Keys that the module adds to those that are given (`bias_k`, `add_zero_attn`) are left out.
    """
    names = "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask"
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    query, key = given.get("query"), given.get("key")
    if is_parametrized(module) or not _is_plain(query) or not _is_plain(key) or not query.numel() * key.numel():
        return None
    batch_dim = 0 if module.batch_first else 1
    if query.ndim == 3:
        query, key = query.select(batch_dim, 0), key.select(batch_dim, 0)
    with apart(query.device):
        step = _step(query.shape[0], MOST_QUERIES)
        q, k = _projected(module, query[::step], key)
        scores = q @ k.transpose(1, 2) * module.head_dim**-0.5
        return _absmax(scores, _module_mask(module, given, step))


def _projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of the first heads: shapes (heads, queries, head_dim) and (heads, keys, head_dim)."""
    size = module.embed_dim
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight[:size], module.in_proj_weight[size : 2 * size]
    else:
        weights = module.q_proj_weight, module.k_proj_weight
    bias = module.in_proj_bias
    biases = (None, None) if bias is None else (bias[:size], bias[size : 2 * size])
    rows = slice(0, min(module.num_heads, MOST_HEADS) * module.head_dim)
    found = []
    for value, weight, offset in zip((query, key), weights, biases, strict=True):
        made = linear(wide(value), wide(weight[rows]), None if offset is None else wide(offset[rows]))
        found.append(made.unflatten(1, (-1, module.head_dim)).transpose(0, 1))
    return found[0], found[1]


def _module_mask(module: nn.MultiheadAttention, given: Mapping[str, Any], step: int) -> Tensor | None:
    """Which keys each query may see; in these masks True means that it may not. Shape (heads or 1, queries, keys)."""
    kept: Tensor | None = None
    mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
    if isinstance(mask, Tensor):
        mask = mask if mask.ndim == 3 else mask.unsqueeze(0)
        if mask.shape[0] > 1:
            mask = mask[: min(module.num_heads, MOST_HEADS)]
        kept = ~mask[:, ::step] if mask.dtype == torch.bool else wide(mask[:, ::step]) > MASKED
    if isinstance(padding, Tensor):
        padding = padding[0] if padding.ndim == 2 else padding
        seen = ~padding if padding.dtype == torch.bool else wide(padding) > MASKED
        kept = seen if kept is None else kept & seen
    return kept


def _absmax(scores: Tensor, kept: Tensor | None = None) -> Tensor:
    """Largest magnitude of what is kept, masks and NaN left out; 0 of nothing."""
    if scores.numel() == 0:
        return scores.new_zeros(())
    inside = scores > MASKED
    if kept is not None:
        inside = inside & kept
    largest: Tensor = torch.linalg.vector_norm(torch.where(inside, scores, 0.0), float("inf"))
    return largest


def _causal(query: Tensor, key: Tensor, rows: slice) -> Tensor:
    queries = torch.arange(query.shape[-2], device=query.device)[rows]
    return torch.arange(key.shape[-2], device=query.device) <= queries.unsqueeze(1)


def _keeps(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else wide(mask) > MASKED


def _is_plain(value: Any) -> TypeGuard[Tensor]:
    if not isinstance(value, Tensor) or value.is_nested or value.is_meta:
        return False
    return value.layout is torch.strided and type(value) in {Tensor, nn.Parameter}


def _step(count: int, most: int) -> int:
    return max(1, -(-count // most))


def _pairs(lead: torch.Size) -> Iterator[tuple[int, ...]]:
    """Give the indices of at most `MOST_PAIRS` of all pairs, evenly spread."""
    total = prod(lead)
    for place in range(0, total, _step(total, MOST_PAIRS)):
        index, left = [], place
        for size in reversed(lead):
            left, last = divmod(left, size)
            index.append(last)
        yield tuple(reversed(index))


def _key_of(index: tuple[int, ...], lead: torch.Size, key: Tensor) -> tuple[int, ...]:
    """Find the keys of a query's pair: they may be shared by groups of heads, or by all."""
    return tuple(place * have // size for place, size, have in zip(index, lead, key.shape[:-2], strict=True))
