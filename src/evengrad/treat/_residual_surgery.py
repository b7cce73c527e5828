"""Putting blocks with shortcuts in, in place, and saying so in words and as code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._activation_calls import Call, calls_code, with_rewriting
from evengrad.treat._forward_order import Place
from evengrad.treat._norms import Norms, made, mode_code
from evengrad.treat._residual import RESIDUAL_CODE, RESIDUAL_RECURRENT_CODE, Residual, ResidualRecurrent
from evengrad.treat._residual_blocks import Block, Layers, position
from evengrad.treat._shortcuts import has_norm, layer_of, made_shortcut
from evengrad.treat._surgery import alias_code, replace_everywhere_


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What the blocks have besides their shortcut.

    Args:
        norms: The choice of norms; None for none.
        zero_init: Whether a learned factor starts at zero.
        generator: Where the weights of shortcuts come from.
    """

    norms: Norms | None
    zero_init: bool
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    """A block with the code of its norm, and all names of its layer."""

    block: Block
    norm: str
    names: tuple[str, ...]


def put_in_(layers: Layers, blocks: Sequence[Block], calls: tuple[Call, ...], style: Style) -> Change:
    """Put blocks in."""
    wanted = [_Made(block=block, norm=_norm_of(layers, block, style.norms), names=(block.name,)) for block in blocks]
    last = _last(layers, wanted)
    behind = _norm_behind(layers, last, style.norms) if last else ""
    done = [replace(each, names=_put_(layers.model, each, style)) for each in wanted]
    for each in done:
        for name in each.block.emptied:
            layers.model.set_submodule(name, nn.Identity().train(layers.model.get_submodule(name).training))
    code = _code(done, calls, style)
    changes = _said(done, style)
    if last and behind:
        names = _put_behind_(layers.model, last.block.name, behind)
        changes += (f"{last.block.name}: the last block, followed by a new {_kind(behind)}",)
        code += _behind_code(last.block.name, behind) + alias_code({names[0]: names})
    return Change(changes=changes, code=code)


def _norm_of(layers: Layers, block: Block, norms: Norms | None) -> str:
    model = layers.model
    module = model.get_submodule(block.name)
    layer = layer_of(module)
    if norms is None or layer is layers.first:
        return ""
    if isinstance(module, nn.RNNBase):
        return norms.of_sequence(module.input_size) or ""
    if has_norm([module, *(model.get_submodule(name) for name in block.emptied)]):
        return ""
    return norms.before(_place(layers, layer)) or ""


def _place(layers: Layers, layer: nn.Module | None) -> Place:
    return next(place for place in layers.order if place.module is layer)


def _last(layers: Layers, wanted: list[_Made]) -> _Made | None:
    """Find the last block of those that get a norm, if no block without one comes later."""
    at = {each.block.name: position(layers.order, layers.model.get_submodule(each.block.name)) for each in wanted}
    last = max(wanted, key=lambda each: at[each.block.name])
    return last if last.norm else None


def _norm_behind(layers: Layers, last: _Made, norms: Norms | None) -> str:
    module = layers.model.get_submodule(last.block.name)
    layer = layer_of(module)
    if norms is None or layer is None:
        return ""
    names = {id(layers.model.get_submodule(name)) for name in (last.block.name, *last.block.emptied)}
    at = position(layers.order, module)
    later = next((place for place in layers.order[at + 1 :] if id(place.module) not in names), None)
    if last.block.recurrent or (later is not None and later.norm):
        return ""
    return norms.behind(_place(layers, layer)) or ""


def _put_(model: nn.Module, wanted: _Made, style: Style) -> tuple[str, ...]:
    block, layer = wanted.block, model.get_submodule(wanted.block.name)
    like = next(layer.parameters())
    norm = made(wanted.norm).to(like) if wanted.norm else None
    if block.recurrent:
        return replace_everywhere_(model, block.name, ResidualRecurrent(layer, norm, style.zero_init))
    inner = layer_of(layer)
    shortcut = made_shortcut(inner, style.generator).to(like) if block.shortcut and inner is not None else None
    parts = [layer, *(part.module for part in block.parts)]
    new = Residual(*([] if norm is None else [norm]), *parts, shortcut=shortcut, zero_init=style.zero_init)
    held = {module for part in parts for module in part.modules()}
    for module in new.modules():
        if module not in held:
            module.training = layer.training
    if not block.one_name:
        return replace_everywhere_(model, block.name, new)
    model.set_submodule(block.name, new)
    return (block.name,)


def _put_behind_(model: nn.Module, name: str, call: str) -> tuple[str, ...]:
    block = model.get_submodule(name)
    norm = made(call).to(next(block.parameters()))
    return replace_everywhere_(model, name, nn.Sequential(block, norm))


def _said(done: list[_Made], style: Style) -> tuple[str, ...]:
    around = [each for each in done if each.block.emptied and not each.block.recurrent]
    changes = [f"{_span(each.block)}: a shortcut around them" for each in around]
    lone = tuple(name for each in done if each not in around for name in each.names)
    if lone:
        changes.append(f"{shortened(lone)}: a shortcut around {'each' if len(lone) > 1 else 'it'}")
    projected = tuple(each.block.name for each in done if each.block.shortcut)
    if projected:
        changes.append(f"{shortened(projected)}: the shortcut changes width or step by weights, drawn anew: orthogonal")
    for kind in dict.fromkeys(_kind(each.norm) for each in done if each.norm):
        names = tuple(each.block.name for each in done if each.norm and _kind(each.norm) == kind)
        changes.append(f"{shortened(names)}: a new {kind} inside, before the layer")
    if style.zero_init:
        changes.append(f"{shortened(tuple(each.block.name for each in done))}: a learned factor that starts at zero")
    return tuple(changes)


def _span(block: Block) -> str:
    return f"{block.name} to {block.emptied[-1].rpartition('.')[2] if block.one_name else block.emptied[-1]}"


def _kind(call: str) -> str:
    return call.removeprefix("nn.").partition("(")[0]


def _code(done: list[_Made], calls: tuple[Call, ...], style: Style) -> str:
    plain = [each for each in done if not each.block.recurrent]
    recurrent = [each for each in done if each.block.recurrent]
    pieces = [_blocks_code(plain, style)] if plain else []
    if emptied := list(dict.fromkeys(name for each in plain for name in each.block.emptied)):
        pieces.append(f"for name in {emptied!r}:\n    model.set_submodule(name, nn.Identity())")
    if recurrent:
        pieces.append(_recurrent_code(recurrent, style))
    code = "\n".join(pieces) + alias_code({each.names[0]: each.names for each in done})
    if calls:
        code += f"\n{calls_code(calls, 'nn.Identity()')}"
    code = f"{RESIDUAL_CODE}\n{code}" if plain else code
    code = f"import copy\n\n\n{code}" if "copy.deepcopy(" in code else code
    code = f"{RESIDUAL_RECURRENT_CODE}\n{code}" if recurrent else code
    return with_rewriting(code) if calls else code


def _blocks_code(done: list[_Made], style: Style) -> str:
    normed, projected = any(each.norm for each in done), any(each.block.shortcut for each in done)
    fresh = any(part.new for each in done for part in each.block.parts)
    columns = ["name", "parts", *(["norm"] if normed else []), *(["shortcut"] if projected else [])]
    rows = ", ".join(f"({', '.join(_row(each, columns))})" for each in done)
    lines = [
        f"for {', '.join(columns)} in [{rows}]:",
        "    layers = [model.get_submodule(name), *(" + (_EITHER if fresh else _NAMED) + " for part in parts)]",
    ]
    if normed or projected:
        lines.append("    like = next(layers[0].parameters())")
    if projected:
        lines += [
            "    if shortcut is not None:",
            "        widened = max(1.0, shortcut.weight.shape[0] / shortcut.weight.shape[1])",
            "        nn.init.orthogonal_(shortcut.weight, gain=widened ** 0.5)",
            "        shortcut.to(like)",
        ]
    if normed:
        mode = mode_code([each.norm for each in done], "layers[0]")
        lines.append(f"    layers = layers if norm is None else [norm.to(like){mode}, *layers]")
    given = (", shortcut=shortcut" if projected else "") + (", zero_init=True" if style.zero_init else "")
    lines.append(f"    model.set_submodule(name, Residual(*layers{given}))")
    return "\n".join(lines)


_NAMED = "model.get_submodule(part)"
_EITHER = "model.get_submodule(part) if isinstance(part, str) else part"


def _row(each: _Made, columns: list[str]) -> list[str]:
    parts = ", ".join(part.code if part.new else repr(part.code) for part in each.block.parts)
    cells = {
        "name": repr(each.block.name),
        "parts": f"[{parts}]",
        "norm": each.norm or "None",
        "shortcut": each.block.shortcut or "None",
    }
    return [cells[column] for column in columns]


def _recurrent_code(done: list[_Made], style: Style) -> str:
    rows = ", ".join(f"({each.block.name!r}, {each.norm or 'None'})" for each in done)
    given = "norm and norm.to(next(layer.parameters()))" + (", zero_init=True" if style.zero_init else "")
    return (
        f"for name, norm in [{rows}]:\n"
        "    layer = model.get_submodule(name)\n"
        f"    model.set_submodule(name, ResidualRecurrent(layer, {given}))"
    )


def _behind_code(name: str, call: str) -> str:
    mode = mode_code([call], "block")
    return (
        f"\nblock = model.get_submodule({name!r})\n"
        f"norm = {call}.to(next(block.parameters())){mode}\n"
        f"model.set_submodule({name!r}, nn.Sequential(block, norm))"
    )
