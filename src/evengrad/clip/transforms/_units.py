"""What the units of a parameter are: what one output, one token, one gate is made from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from evengrad.clip.transforms._transform import Target
from evengrad.measure import Cut
from evengrad.nouns import SettingError

ROWS, WHOLE, COLUMNS = 0, -1, 1  # COLUMNS, or more: the number of groups of a transposed convolution

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alike:
    """Targets whose tensors have one shape and dtype and are cut alike.

    Args:
        targets: At least one.
        tensors: The gradient or the weight of each.
        cut: Into which units.
        whole: Whether each tensor is one unit because it is no matrix: a bias, a gain, a single number.
    """

    targets: list[Target]
    tensors: list[Tensor]
    cut: Cut
    whole: bool


def alike(targets: Sequence[Target], *, gradients: bool) -> list[Alike]:
    """Put targets together that can be measured together.

    Args:
        targets: Where there is nothing to change (no gradient, no elements) a target is left out; so is a sparse
            gradient.
        gradients: Whether the gradients are to be changed, or the weights.
    """
    found: dict[Any, tuple[list[Target], list[Tensor]]] = defaultdict(lambda: ([], []))
    for target in targets:
        weight = target.parameter
        tensor = weight.grad if gradients else weight
        if tensor is not None and tensor.layout is torch.strided and tensor.numel():
            key = (tensor.shape, way(target), tensor.dtype, weight.dtype, tensor.device)
            members = found[key]
            members[0].append(target)
            members[1].append(tensor)
    return [
        Alike(targets=members, tensors=tensors, cut=cut(key[0], key[1]), whole=key[1] == WHOLE)
        for key, (members, tensors) in found.items()
    ]


def way(target: Target) -> int:
    """Say which way a parameter is cut: ROWS, WHOLE, or COLUMNS in a number of groups.

    Rows, of the first dimension, are the units of linear layers, convolutions (grouped ones too), embeddings, the
    in-projection of attention, the gates of recurrent layers, and of what nobody knows. A transposed convolution has
    its outputs in the second dimension, once per group; so has the `Conv1D` of GPT-2 in transformers, a linear layer
    that keeps its weight transposed. A tensor of fewer than two dimensions, and what a norm layer owns, is one unit.
    """
    module = target.module
    if target.parameter.dim() < 2 or isinstance(module, _NORMS):
        return WHOLE
    if isinstance(module, _ConvTransposeNd):
        return module.groups
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return COLUMNS
    return ROWS


def cut(shape: Sequence[int], way: int) -> Cut:
    """Make the cut of a shape."""
    numel = torch.Size(shape).numel()
    if way == WHOLE:
        return Cut((1, 1, 1, numel))
    if way == ROWS:
        return Cut((shape[0], 1, 1, numel // shape[0]))
    return Cut((way, shape[0] // way, shape[1], numel // (shape[0] * shape[1])))


def chosen(targets: Sequence[Target], exclude: Sequence[str], *, exclude_head: bool = False) -> Sequence[Target]:
    """Leave out the output layer and what a pattern names."""
    if not exclude and not exclude_head:
        return targets
    return [
        target
        for target in targets
        if not (exclude_head and target.last) and not any(fnmatchcase(target.name, one) for one in exclude)
    ]


def patterns(value: object) -> None:
    """Refuse what is not a tuple of names.

    Raises:
        SettingError: It is something else; a single string is the usual slip.
    """
    if not isinstance(value, tuple) or not all(isinstance(one, str) and one for one in value):
        advice = 'a single one is ("head.*",)'
        raise SettingError("exclude", came=repr(value), wanted="a tuple of names or patterns", advice=advice)
