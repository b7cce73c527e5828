"""What belongs to selu: LeCun's normal initialisation in front of it, alpha dropout behind it."""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils import parametrize

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._draws import Draw, fan_in_of, is_feedforward
from evengrad.treat._forward_order import Place, inside_torch
from evengrad.treat._surgery import alias_code, hooks_of, replace_everywhere_


def lecun_(model: nn.Module, order: tuple[Place, ...], names: tuple[str, ...], generator: torch.Generator) -> Change:
    """Draw the weights in front of the named activations anew, with variance 1 / fan_in and zero bias.

    Weights that are tied or parametrised stay.
    """
    held = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    drawn: dict[Draw, list[str]] = {}
    for name, layer in _layers_before(model, order, names).items():
        if is_feedforward(layer) and not parametrize.is_parametrized(layer) and held[id(layer.weight)] == 1:
            draw = Draw(scheme="he", gain=1.0, fan_in=fan_in_of(layer))
            draw.fill_(layer, generator)
            drawn.setdefault(draw, []).append(name)
    every = tuple(name for found in drawn.values() for name in found)
    code = [
        f"for name in {found!r}:\n"
        "    layer = model.get_submodule(name)\n"
        f"    {draw.line}\n"
        "    if layer.bias is not None:\n"
        "        nn.init.zeros_(layer.bias)"
        for draw, found in drawn.items()
    ]
    words = (f"{shortened(every)}: weights drawn anew for the selu, LeCun normal; bias zero",) if every else ()
    return Change(changes=words, code="\n".join(code))


def alpha_dropouts_(model: nn.Module, order: tuple[Place, ...], names: tuple[str, ...]) -> Change:
    """Replace the `nn.Dropout` behind the named activations by an `nn.AlphaDropout` with the same probability."""
    found: dict[str, nn.Dropout] = {}
    for index, place in enumerate(order):
        if place.name in names:
            for later in order[index + 1 :]:
                if later.weighted:
                    break
                if type(later.module) is nn.Dropout and not inside_torch(model, later.name):
                    found[later.name] = later.module
    if not found:
        return Change(changes=(), code="")
    aliases = {}
    for name, old in found.items():
        new = nn.AlphaDropout(old.p)
        vars(new).update(hooks_of(old))
        aliases[name] = replace_everywhere_(model, name, new)
    every = tuple(alias for each in aliases.values() for alias in each)
    code = (
        f"for name in {list(found)!r}:\n"
        "    old = model.get_submodule(name)\n"
        "    model.set_submodule(name, nn.AlphaDropout(old.p).train(old.training))"
    )
    return Change(changes=(f"{shortened(every)}: dropout replaced by alpha dropout",), code=code + alias_code(aliases))


def _layers_before(model: nn.Module, order: tuple[Place, ...], names: tuple[str, ...]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    last: Place | None = None
    for place in order:
        if place.weighted:
            last = place
        elif place.name in names and last is not None:
            found[last.name] = last.module
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(parent) if child == "activation" else None
        if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            found[f"{parent}.linear1" if parent else "linear1"] = layer.linear1
    return found
