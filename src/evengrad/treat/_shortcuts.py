"""Which layer can have a shortcut around it, and what the shortcut has to pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from evengrad.treat._forward_order import is_norm

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def shortcut_around(module: nn.Module, *, project: bool) -> str | None:
    """Write what the input of a layer has to pass to have the shape of its output.

    Args:
        module: The layer, or an `nn.Sequential` of one and its norm.
        project: Whether a shortcut may have weights.

    Returns:
        Empty when the input has that shape; None when there is no way.

    Example:
        >>> shortcut_around(nn.Conv2d(4, 8, 3, stride=2, padding=1), project=True)
        'nn.Conv2d(4, 8, 1, stride=(2, 2), bias=False)'
        >>> shortcut_around(nn.Linear(4, 4), project=True)
        ''
    """
    layer = layer_of(module)
    if layer is None or parametrize.is_parametrized(layer):
        return None
    if isinstance(layer, nn.Linear):
        if layer.in_features == layer.out_features:
            return ""
        return f"nn.Linear({layer.in_features}, {layer.out_features}, bias=False)" if project else None
    if not isinstance(layer, CONVOLUTIONS) or not _keeps_positions(layer):
        return None
    if layer.in_channels == layer.out_channels and all(step == 1 for step in layer.stride):
        return ""
    stride = "" if all(step == 1 for step in layer.stride) else f", stride={tuple(layer.stride)!r}"
    call = f"nn.{_kind(layer)}({layer.in_channels}, {layer.out_channels}, 1{stride}, bias=False)"
    return call if project else None


def made_shortcut(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """Make the shortcut around a layer whose width or step changes, with weights that keep the scale.

    With `n` inputs and `m` outputs an orthogonal matrix with gain `sqrt(max(1, m / n))` gives outputs whose mean square
    is that of the inputs; exactly where it widens, on average over directions where it narrows.
    """
    new: nn.Module
    if isinstance(layer, nn.Linear):
        new = nn.Linear(layer.in_features, layer.out_features, bias=False)
    elif isinstance(layer, CONVOLUTIONS):
        kind: Any = getattr(nn, _kind(layer))
        new = kind(layer.in_channels, layer.out_channels, 1, stride=layer.stride, bias=False)
    else:
        raise AssertionError(type(layer).__name__)
    weight = new.get_parameter("weight")
    gain = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
    nn.init.orthogonal_(weight, gain=gain, generator=generator)
    return new


def layer_of(module: nn.Module) -> nn.Module | None:
    """Return a layer itself, or the one in an `nn.Sequential` of a layer and its norm; None for anything else."""
    if not isinstance(module, nn.Sequential):
        return module
    parts = list(module)
    return layer_of(parts[0]) if len(parts) == 2 and is_norm(parts[1]) else None


def has_norm(modules: Iterable[nn.Module]) -> bool:
    """Tell whether one of some modules normalises."""
    return any(is_norm(part) for module in modules for part in module.modules())


def _keeps_positions(layer: Convolution) -> bool:
    """Tell whether output `i` is centred on input `i * stride`, so that both have as many positions at every size."""
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    reach = (gap * (size - 1) for gap, size in zip(layer.dilation, layer.kernel_size, strict=True))
    return all(2 * padding == needed for padding, needed in zip(layer.padding, reach, strict=True))


def _kind(layer: Convolution) -> str:
    return next(kind.__name__ for kind in CONVOLUTIONS if isinstance(layer, kind))
