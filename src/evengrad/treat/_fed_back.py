"""Dense layers that a forward pass uses again and again on what they gave: recurrent networks written by hand."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._draws import fill_fresh_
from evengrad.treat._forward_order import Place, run
from evengrad.treat._random_state import random_state_kept

# Fewer uses are weights that two places share, not steps through time.
FEWEST_USES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class FedBack:
    """Which inputs of a dense layer are its own earlier outputs.

    Args:
        first: Index of the first such input.
        count: How many there are: as many as the layer has outputs.
        rectified: Whether they have passed a relu.
    """

    first: int
    count: int
    rectified: bool

    def fill_(self, layer: nn.Linear, gain: float, generator: torch.Generator) -> None:
        """Draw what is fed back orthogonal (the identity behind a relu), the other inputs Xavier; zero bias."""
        fill_fresh_(layer.weight, lambda fresh: nn.init.xavier_normal_(fresh, generator=generator))
        block = layer.weight[:, self.first : self.first + self.count]
        if self.rectified:
            block.copy_(torch.eye(self.count) * gain)
        else:
            fill_fresh_(block, lambda fresh: nn.init.orthogonal_(fresh, gain, generator=generator))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def said(self, names: list[str], gain: float) -> Change:
        """Say the drawing in words and as code."""
        drawn = "identity" if self.rectified else "orthogonal"
        block = f"torch.eye({self.count}) * {gain!r}"
        if not self.rectified:
            block = f"nn.init.orthogonal_(torch.empty({self.count}, {self.count}), gain={gain!r})"
        return Change(
            changes=(
                f"{shortened(tuple(names))}: fed back into itself, so the weights of what it gave are drawn {drawn} "
                f"with gain {gain:.4g}; bias zero",
            ),
            code=(
                "with torch.no_grad():\n"
                f"    for name in {names!r}:\n"
                "        layer = model.get_submodule(name)\n"
                "        nn.init.xavier_normal_(layer.weight)\n"
                f"        layer.weight[:, {self.first}:{self.first + self.count}].copy_({block})\n"
                "        if layer.bias is not None:\n"
                "            nn.init.zeros_(layer.bias)"
            ),
        )


def fed_back(model: nn.Module, order: Iterable[Place], names: Iterable[str], batch_input: Any) -> Mapping[str, FedBack]:
    """Find the dense layers whose second input changes when what they first gave is changed.

    Only those that one forward pass uses three times or more are tried, one forward pass for each; the weights must be
    sound, or nothing can be seen.

    Raises:
        TreatmentError: The model does not run on the batch.
    """
    uses = [place.name for place in order]
    often = [
        name for name in names if uses.count(name) >= FEWEST_USES and isinstance(model.get_submodule(name), nn.Linear)
    ]
    if not often or batch_input is None:
        return {}
    found = {}
    with random_state_kept(), torch.no_grad():
        plain = {name: _second_input(model, name, batch_input, change=False) for name in often}
        for name in often:
            changed = _second_input(model, name, batch_input, change=True)
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Linear) and (seen := _columns(plain[name], changed, layer.out_features)):
                found[name] = seen
    return found


@final
class _SecondInput:
    """Keep what goes into a module the second time, and change what it gives the first time if that is asked."""

    def __init__(self, *, change: bool) -> None:
        self._change = change
        self._uses = 0
        self.kept: Tensor | None = None

    def before(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._uses += 1
        if self._uses == 2 and args and isinstance(args[0], Tensor):
            self.kept = args[0].detach().clone()

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return 1.5 * output + 0.25 if self._change and self._uses == 1 else None


def _second_input(model: nn.Module, name: str, batch_input: Any, *, change: bool) -> Tensor | None:
    scratch = copy.deepcopy(model).eval()
    watch = _SecondInput(change=change)
    layer = scratch.get_submodule(name)
    layer.register_forward_pre_hook(watch.before)
    layer.register_forward_hook(watch.after)
    with random_state_kept():  # a model that draws numbers draws the same ones both times
        run(scratch, batch_input)
    return watch.kept


def _columns(plain: Tensor | None, changed: Tensor | None, outputs: int) -> FedBack | None:
    """Tell which inputs differ, if they are as many as the outputs and side by side."""
    if plain is None or changed is None or plain.shape != changed.shape:
        return None
    differing = (plain != changed).flatten(0, -2).any(0).nonzero().flatten().tolist()
    if not differing:
        return None
    first, count = differing[0], differing[-1] - differing[0] + 1
    if count > outputs or first + outputs > plain.shape[-1]:
        return None
    if count < outputs:  # a unit behind a relu may be silent both times: then it is known only for a square layer
        if plain.shape[-1] != outputs:
            return None
        first = 0
    inputs = plain[..., first : first + outputs]
    return FedBack(first=first, count=outputs, rectified=bool(inputs.min() == 0.0 and inputs.max() > 0.0))
