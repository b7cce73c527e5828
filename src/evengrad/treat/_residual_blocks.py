"""The layers of a model around which shortcuts go, with what belongs to each: its norm, activation and dropout."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from evengrad.treat._activations import activation_name, is_custom_activation
from evengrad.treat._forward_graph import Forward, attention_projections, forwards, is_attention, joined_modules
from evengrad.treat._forward_order import (
    DROPOUTS,
    Place,
    followed_by_weighted,
    inside_torch,
    is_norm,
    is_sequence,
    parent_of,
    places,
)
from evengrad.treat._reaches import reaches_output
from evengrad.treat._residual import Residual, ResidualRecurrent
from evengrad.treat._shortcuts import layer_of, shortcut_around


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A module that follows the layer in a block.

    Args:
        module: The module.
        code: What makes it or, for a module of the model, its name.
        new: Whether the code makes it.
    """

    module: nn.Module
    code: str
    new: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A layer and what belongs to it.

    Args:
        name: The name of the layer; the block takes its place.
        parts: What follows in the block.
        emptied: The modules in whose place `nn.Identity` stands then.
        shortcut: The code of what the input passes; empty for nothing.
        recurrent: Whether the layer is a recurrent one.
        one_name: Whether the layer is replaced under this name alone, as in an `nn.Sequential` that repeats it.
    """

    name: str
    parts: tuple[Part, ...] = ()
    emptied: tuple[str, ...] = ()
    shortcut: str = ""
    recurrent: bool = False
    one_name: bool = False


class Layers:
    """Look at a model for the layers that can have shortcuts.

    The last weighted layer has none, nor one inside a branch that has a shortcut already, in torch's transformer
    layers, or before an attention. The first weighted layer, which takes what the model is given, has one only where
    its width stays, as the stem of He et al. 2016.
    """

    def __init__(self, model: nn.Module, batch_input: Any, *, project: bool) -> None:
        self.model, self.batch_input, self.project = model, batch_input, project
        self.order = places(model, batch_input)
        self.forwards: tuple[Forward, ...] = forwards(model)
        self._uses = Counter(place.name for place in self.order)
        self._kept = joined_modules(model, self.forwards) | attention_projections(self.forwards)
        weighted = [place for place in self.order if place.weighted or isinstance(place.module, nn.Embedding)]
        self.first = weighted[0].module if weighted and weighted[0].weighted else None

    def shortcut(self, name: str, module: nn.Module) -> str | None:
        """Write the shortcut around a module; None when it is to have none."""
        layer = layer_of(module)
        if name and is_attention(parent_of(self.model, name)):
            return None
        if layer is None or self.is_kept(name) or not followed_by_weighted(self.order, layer):
            return None
        return shortcut_around(module, project=self.project and layer is not self.first)

    def is_kept(self, name: str) -> bool:
        """Tell whether a module is part of something that is left as it is."""
        above = [name]
        while above[-1]:
            above.append(above[-1].rpartition(".")[0])
        if any(holder in self._kept for holder in above if holder):
            return True
        kinds = (Residual, ResidualRecurrent)
        return any(isinstance(self.model.get_submodule(holder), kinds) for holder in above[1:])

    def is_traced(self, name: str) -> bool:
        """Tell whether the forward that holds a module is known."""
        owner = name.rpartition(".")[0]
        while isinstance(self.model.get_submodule(owner), nn.ModuleList | nn.ModuleDict) and owner:
            owner = owner.rpartition(".")[0]
        return any(forward.name == owner for forward in self.forwards)

    def used_once(self, name: str) -> bool:
        """Tell whether a module is used once in a forward pass, as far as that is known."""
        return self._uses[name] <= 1


def in_sequences(layers: Layers) -> Iterator[Block]:
    """Find blocks in each `nn.Sequential`: layers with the norm, activation and dropout behind them."""
    held: set[nn.Module] = set()  # a layer with its norm is an nn.Sequential too, and part of a block already
    for name, sequence in layers.model.named_modules():
        if not is_sequence(sequence) or sequence in held or "parametrizations" in name.split("."):
            continue
        keys = [key for key, module in sequence._modules.items() if module is not None]
        entries = [sequence.get_submodule(key) for key in keys]
        paths = [f"{name}.{key}" if name else key for key in keys]
        index = 0
        while index < len(entries):
            last, shortcut = index, layers.shortcut(paths[index], entries[index])
            if shortcut is not None:
                last = _end(entries, index)
                held.update(entries[index : last + 1])
                inside = range(index + 1, last + 1)
                yield Block(
                    name=paths[index],
                    parts=tuple(Part(module=entries[each], code=paths[each]) for each in inside),
                    emptied=tuple(paths[each] for each in inside),
                    shortcut=shortcut,
                    one_name=True,
                )
            index = last + 1


def alone(layers: Layers, taken: set[nn.Module]) -> Iterator[Block]:
    """Find layers that a forward of the user's own calls, of whose surroundings nothing is known."""
    for place in {place.name: place for place in layers.order}.values():
        if not place.name or place.module in taken or inside_torch(layers.model, place.name):
            continue
        if is_sequence(parent_of(layers.model, place.name)):
            continue
        if not layers.used_once(place.name) and not layers.is_traced(place.name):
            continue  # the weights of a recurrent cell of the user's own, say
        shortcut = layers.shortcut(place.name, place.module)
        if shortcut is not None:
            yield Block(name=place.name, shortcut=shortcut)


def recurrent(layers: Layers) -> Iterator[Block]:
    """Find recurrent layers of torch whose output is as wide as their input, and is read."""
    for place in {place.name: place for place in layers.order}.values():
        layer = place.module
        if not isinstance(layer, nn.RNNBase) or not place.name or layers.is_kept(place.name):
            continue
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        if layer.input_size != width or not followed_by_weighted(layers.order, layer):
            continue
        if reaches_output(layers.model, place.name, layers.batch_input):
            yield Block(name=place.name, recurrent=True)


def is_activation(module: nn.Module) -> bool:
    """Tell whether a module is an activation, of torch or of the user's own."""
    return activation_name(module) is not None or is_custom_activation(module)


def is_dropout(module: nn.Module) -> bool:
    """Tell whether a module is a dropout."""
    return isinstance(module, DROPOUTS)


# What may follow a layer in its block, in this order.
FOLLOWING: tuple[Callable[[nn.Module], bool], ...] = (is_norm, is_activation, is_dropout)


def _end(entries: list[nn.Module], index: int) -> int:
    for fits in FOLLOWING:
        if index + 1 < len(entries) and fits(entries[index + 1]):
            index += 1
    return index


def position(order: tuple[Place, ...], module: nn.Module) -> int:
    """Return the last place of a module, or of what it holds; -1 when it has none."""
    inside = set(module.modules())
    return max((index for index, place in enumerate(order) if place.module in inside), default=-1)
