"""Scale the weights of each layer until its output has a standard deviation of 1 on a batch."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._draws import Feedforward, in_half, orthogonal_line
from evengrad.treat._forward_order import run

TOLERANCE = 0.02
MOST_PASSES = 10


def scaled_to_unit_outputs_(model: nn.Module, layers: Mapping[str, Feedforward], batch_input: Any) -> Change:
    """Scale the weights of the layers, in the order of the forward pass, and say by how much.

    In one pass each layer's output is divided by its standard deviation before the next layer sees it, and the weight
    with it; since the biases are zero that is what the scaled layer gives. A second pass usually finds nothing left to
    do. Dropout is off and batch norms use the statistics of the batch. A layer that is used several times is scaled
    for its first use.

    Source:
        Mishkin and Matas 2016, arXiv 1511.06422, algorithm 1; we scale all layers in one pass instead of one at a time.
    """
    measuring = _Measuring(model, layers)
    for _ in range(MOST_PASSES):
        if not measuring.rescaled(batch_input):
            break
    for name, gain in measuring.gains.items():
        layers[name].weight.mul_(gain)
    left = tuple(name for name in layers if name not in measuring.gains)
    return _said(measuring.gains, left, half=any(in_half(layer) for layer in layers.values()))


class _Measuring:
    """A copy of the model whose layers are scaled while it runs."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Feedforward]) -> None:
        self._model = copy.deepcopy(model).eval()
        for module in self._model.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        self.gains: dict[str, float] = {}
        self._seen: set[str] = set()
        self._changed = False
        for name in layers:
            self._watch(name)

    def _watch(self, name: str) -> None:
        def after(layer: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if name in self._seen:
                return None
            self._seen.add(name)
            std = float(output.to(torch.float32).std(correction=0))
            if not 1e-30 < std < 1e30:  # constant, or not finite: no scale makes it 1
                return None
            self.gains.setdefault(name, 1.0)
            if abs(std - 1.0) <= TOLERANCE:
                return None
            self.gains[name] /= std
            layer.get_parameter("weight").div_(std)
            self._changed = True
            return output / std

        self._model.get_submodule(name).register_forward_hook(after)

    def rescaled(self, batch_input: Any) -> bool:
        """Run once and scale; tell whether anything was left to scale."""
        self._seen.clear()
        self._changed = False
        run(self._model, batch_input)
        return self._changed


def _said(gains: dict[str, float], left: tuple[str, ...], *, half: bool) -> Change:
    changes = []
    if gains:
        changes.append(
            f"{shortened(tuple(gains))}: weights drawn anew, orthogonal, scaled to outputs with a standard deviation "
            f"of 1 on the batch (gains {min(gains.values()):.3g} to {max(gains.values()):.3g}); bias zero"
        )
    if left:
        changes.append(
            f"{shortened(left)}: orthogonal weights, not scaled: the output is constant, not finite or unused"
        )
    pairs = [(name, float(f"{gain:.6g}")) for name, gain in {**gains, **dict.fromkeys(left, 1.0)}.items()]
    code = (
        f"for name, gain in {pairs!r}:\n"
        "    layer = model.get_submodule(name)\n"
        f"    {orthogonal_line('layer.weight', ', gain=gain', half=half)}\n"
        "    if layer.bias is not None:\n"
        "        nn.init.zeros_(layer.bias)"
    )
    return Change(changes=tuple(changes), code=code if pairs else "")
