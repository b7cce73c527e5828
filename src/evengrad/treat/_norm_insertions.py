"""Putting norms behind and before modules, in place, and saying so in words and as code."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._normalized import NORMALIZED_RECURRENT_CODE, PRENORMED_CODE, NormalizedRecurrent, Prenormed
from evengrad.treat._norms import made, mode_code
from evengrad.treat._surgery import alias_code, replace_everywhere_


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """A norm that goes before some modules which take the same value.

    Args:
        names: The modules.
        call: The new norm; empty when one of the model is moved.
        moved: The name of the norm that is moved here from behind the addition.
        single: Whether the modules take one argument.
    """

    names: tuple[str, ...]
    call: str = ""
    moved: str = ""
    single: bool = True


def behind_(model: nn.Module, new: dict[str, str]) -> list[Change]:
    """Put each new norm behind the named layer; the names of layers are the keys."""
    if not new:
        return []
    aliases = {}
    for name, call in new.items():
        layer = model.get_submodule(name)
        norm = made(call).to(layer.get_parameter("weight"))
        aliases[name] = replace_everywhere_(model, name, nn.Sequential(layer, norm))
    mode = mode_code([*new.values()], "layer")
    code = (
        f"for name, norm in [{_pairs(new)}]:\n"
        "    layer = model.get_submodule(name)\n"
        f"    model.set_submodule(name, nn.Sequential(layer, norm.to(layer.weight){mode}))"
    )
    return [Change(changes=_said(new, aliases, "followed by"), code=code + alias_code(aliases))]


def recurrent_(model: nn.Module, new: dict[str, str]) -> list[Change]:
    """Let each new norm normalise the output of the named recurrent layer."""
    if not new:
        return []
    aliases = {}
    for name, call in new.items():
        layer = model.get_submodule(name)
        norm = made(call).to(next(layer.parameters()))
        aliases[name] = replace_everywhere_(model, name, NormalizedRecurrent(layer, norm))
    code = (
        f"{NORMALIZED_RECURRENT_CODE}\n"
        f"for name, norm in [{_pairs(new)}]:\n"
        "    layer = model.get_submodule(name)\n"
        "    model.set_submodule(name, NormalizedRecurrent(layer, norm.to(next(layer.parameters()))))"
    )
    return [Change(changes=_said(new, aliases, "its output normalised by"), code=code + alias_code(aliases))]


def before_(model: nn.Module, wanted: Sequence[Before]) -> list[Change]:
    """Put norms before modules: new ones, and ones that stood behind an addition."""
    if not wanted:
        return []
    aliases: dict[str, tuple[str, ...]] = {}
    for place in wanted:
        aliases.update(_put_before_(model, place))
    new = {name: place.call for place in wanted for name in place.names if place.call}
    changes = _said(new, aliases, "preceded by")
    for place in wanted:
        if place.moved:
            changes = (*changes, f"{place.moved}: moved from behind the addition to before {shortened(place.names)}")
    return [Change(changes=changes, code=_before_code(wanted) + alias_code(aliases))]


def _put_before_(model: nn.Module, place: Before) -> dict[str, tuple[str, ...]]:
    norm = _moved_(model, place.moved) if place.moved else _fresh(model, place)
    aliases = {}
    for name in place.names:
        layer = model.get_submodule(name)
        wrapped = nn.Sequential(norm, layer) if place.single else Prenormed(norm, layer)
        aliases[name] = replace_everywhere_(model, name, wrapped)
    return aliases


def _moved_(model: nn.Module, name: str) -> nn.Module:
    norm = model.get_submodule(name)
    model.set_submodule(name, nn.Identity().train(norm.training))
    return norm


def _fresh(model: nn.Module, place: Before) -> nn.Module:
    return made(place.call).to(next(model.get_submodule(place.names[0]).parameters()))


def _before_code(wanted: Sequence[Before]) -> str:
    code = "" if all(place.single for place in wanted) else f"{PRENORMED_CODE}\n"
    if any(place.call for place in wanted):
        code += _new_before_code([place for place in wanted if place.call])
    for place in wanted:
        if place.moved:
            code += ("\n" if code and not code.endswith("\n") else "") + _moved_before_code(place)
    return code


def _new_before_code(wanted: Sequence[Before]) -> str:
    entries = ", ".join(f"({place.names!r}, {place.call}, {_wrapper(place)})" for place in wanted)
    return (
        f"for names, norm, joined in [{entries}]:\n"
        "    for name in names:\n"
        "        layer = model.get_submodule(name)\n"
        "        norm.to(next(layer.parameters()))"
        f"{mode_code([place.call for place in wanted], 'layer')}\n"
        "        model.set_submodule(name, joined(norm, layer))"
    )


def _moved_before_code(place: Before) -> str:
    return (
        f"norm = model.get_submodule({place.moved!r})\n"
        f"model.set_submodule({place.moved!r}, nn.Identity())\n"
        f"for name in {place.names!r}:\n"
        f"    model.set_submodule(name, {_wrapper(place)}(norm, model.get_submodule(name)))"
    )


def _wrapper(place: Before) -> str:
    return "nn.Sequential" if place.single else "Prenormed"


def _said(new: dict[str, str], aliases: dict[str, tuple[str, ...]], how: str) -> tuple[str, ...]:
    changes = []
    for kind in dict.fromkeys(call.partition("(")[0] for call in new.values()):
        names = tuple(alias for name, call in new.items() if call.startswith(f"{kind}(") for alias in aliases[name])
        changes.append(f"{shortened(names)}: {how} a new {kind.removeprefix('nn.')}")
    return tuple(changes)


def _pairs(new: dict[str, str]) -> str:
    return ", ".join(f"({name!r}, {call})" for name, call in new.items())
