"""What `Reinitialize` does to the parts of a model that are no dense or convolutional layers, and how it is said."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._draws import Draw, attention_code, fill_attention_
from evengrad.treat._forward_order import places
from evengrad.treat._recurrent_draws import Recurrent, RecurrentDraw
from evengrad.treat._what_follows import is_of_torch


def joined(parts: Iterable[Change]) -> Change:
    """Make one change of several."""
    kept = tuple(parts)
    return Change(
        changes=tuple(sentence for part in kept for sentence in part.changes),
        code="\n".join(part.code for part in kept if part.code),
    )


def said_of_draws(drawn: Mapping[tuple[Draw, str], list[str]]) -> Change:
    """Say how dense and convolutional layers were drawn."""
    changes, code = [], []
    for (draw, follows), names in drawn.items():
        what = {"linear": "", "unknown": " because what follows cannot be seen"}.get(
            follows, f" for the {follows} that follows"
        )
        changes.append(f"{shortened(tuple(names))}: weights drawn anew, {draw.words}{what}; bias zero")
        code.append(
            f"for name in {names!r}:\n"
            "    layer = model.get_submodule(name)\n"
            f"    {draw.line}\n"
            "    if layer.bias is not None:\n"
            "        nn.init.zeros_(layer.bias)"
        )
    return Change(changes=tuple(changes), code="\n".join(code))


def recurrent_(
    weighted: Mapping[str, nn.Module], draws: Mapping[str, RecurrentDraw], generator: torch.Generator
) -> Change:
    """Draw recurrent layers, in place."""
    changes, code = [], []
    for name, layer in weighted.items():
        if isinstance(layer, Recurrent):
            draws[name].fill_(layer, generator)
            changes.append(f"{name}: {draws[name].words(layer)}")
            code.append(draws[name].code((name,), layer))
    return Change(changes=tuple(changes), code="\n".join(code))


def attention_(weighted: Mapping[str, nn.Module], generator: torch.Generator) -> Change:
    """Draw the projections of attention layers, in place."""
    names = tuple(name for name, layer in weighted.items() if isinstance(layer, nn.MultiheadAttention))
    for layer in weighted.values():
        if isinstance(layer, nn.MultiheadAttention):
            fill_attention_(layer, generator)
    if not names:
        return Change(changes=(), code="")
    words = f"{shortened(names)}: projections of queries, keys and values drawn anew, Xavier normal; bias zero"
    return Change(changes=(words,), code=attention_code(names))


def norms_(model: nn.Module) -> Change:
    """Set torch's norms back to their start, in place."""
    names = tuple(name for name, module in _norms_of_torch(model))
    for _, module in _norms_of_torch(model):
        module.reset_parameters()  # type: ignore[operator]
    if not names:
        return Change(changes=(), code="")
    return Change(
        changes=(f"{shortened(names)}: scale 1, shift 0, statistics empty",),
        code=f"for name in {list(names)!r}:\n    model.get_submodule(name).reset_parameters()",
    )


def _norms_of_torch(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for place in places(model):
        if place.norm and is_of_torch(place.module) and hasattr(place.module, "reset_parameters"):
            yield place.name, place.module
