"""Where a model with residual branches wants its norms: before each branch, and one behind the last."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._forward_graph import Branch
from evengrad.treat._forward_order import DROPOUTS, Place, inside_torch, is_norm, shapes_into
from evengrad.treat._norm_insertions import Before
from evengrad.treat._norms import Norms, made

ComposedLayer = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
Stack = nn.TransformerEncoder | nn.TransformerDecoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """What is done to the residual branches of a model.

    Args:
        before: Norms before branches.
        normalized: Names of the modules in branches that have a norm of their own, or get one.
    """

    before: tuple[Before, ...]
    normalized: tuple[str, ...]


def branches_to_normalize(model: nn.Module, branches: tuple[Branch, ...], norms: Norms, batch_input: Any) -> Stream:
    """Choose a norm for each residual branch that begins with modules and holds no norm."""
    shapes = shapes_into(model, tuple(name for branch in branches for name in branch.entries), batch_input)
    before: list[Before] = []
    normalized: list[str] = []
    taken: set[str] = set()
    for branch in branches:
        if any(_has_norm(model, name) for name in branch.modules):
            normalized += branch.modules
            continue
        found = None if taken & set(branch.entries) else _before(model, branch, norms, shapes)
        if found is not None:
            before.append(found)
            normalized += branch.modules
            taken.update(branch.entries)
    return Stream(before=tuple(before), normalized=tuple(normalized))


def _has_norm(model: nn.Module, name: str) -> bool:
    return any(is_norm(module) for module in model.get_submodule(name).modules())


def _before(model: nn.Module, branch: Branch, norms: Norms, shapes: dict[str, tuple[int, ...]]) -> Before | None:
    entries = branch.entries
    if not entries or any(inside_torch(model, name) for name in entries):
        return None
    if not all(any(True for _ in model.get_submodule(name).parameters()) for name in entries):
        return None
    place = Before(names=entries, single=branch.single)
    if branch.norm_behind:
        return replace(place, moved=branch.norm_behind)
    call = _call(model.get_submodule(entries[0]), shapes.get(entries[0]), norms, single=branch.single)
    return replace(place, call=call) if call else None


def _call(entry: nn.Module, shape: tuple[int, ...] | None, norms: Norms, *, single: bool) -> str | None:
    first = next((module for module in entry.modules() if _width(module)), None)
    if first is None:
        return None
    if isinstance(first, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return norms.of_channels(first.in_channels, first.weight.dim() - 2)
    width = shape[-1] if shape else _width(first)
    if isinstance(first, nn.Linear) and single:
        return norms.of_features(width, len(shape) if shape else 3 if norms.sequences else 2)
    return norms.of_sequence(width)


def _width(module: nn.Module) -> int:
    """Return how many features a module of torch takes; 0 when that is not known."""
    return next(
        (
            int(getattr(module, key))
            for key in ("in_features", "in_channels", "embed_dim", "input_size")
            if isinstance(getattr(module, key, None), int)
        ),
        0,
    )


def switch_transformers_(model: nn.Module, norms: Norms) -> tuple[list[Change], tuple[str, ...]]:
    """Let the norms of torch's transformer layers stand before their branches, with one behind each stack.

    Returns:
        What was done, and the names of the layers that now want a norm behind the last of them.
    """
    if norms.of_sequence(2) is None:
        return [], ()
    layers = tuple(name for name, module in model.named_modules() if isinstance(module, ComposedLayer))
    switched = tuple(name for name in layers if not getattr(model.get_submodule(name), "norm_first", True))
    done = [_switched_(model, switched)] if switched else []
    done += _final_norms_(model, norms)
    stacks = tuple(name for name, module in model.named_modules() if isinstance(module, Stack))
    return done, tuple(name for name in switched if not any(name.startswith(f"{stack}.") for stack in stacks))


def _switched_(model: nn.Module, names: tuple[str, ...]) -> Change:
    for name in names:
        model.get_submodule(name).norm_first = True  # type: ignore[assignment]
    nested = tuple(name for name, module in model.named_modules() if getattr(module, "use_nested_tensor", False))
    for name in nested:  # as nn.TransformerEncoder has it from the start for layers of this kind
        model.get_submodule(name).use_nested_tensor = False  # type: ignore[assignment]
    code = f"for name in {list(names)!r}:\n    model.get_submodule(name).norm_first = True"
    if nested:
        code += f"\nfor name in {list(nested)!r}:\n    model.get_submodule(name).use_nested_tensor = False"
    return Change(changes=(f"{shortened(names)}: norms before the branches (norm_first)",), code=code)


def _final_norms_(model: nn.Module, norms: Norms) -> list[Change]:
    bare = [
        (name, stack)
        for name, stack in model.named_modules()
        if isinstance(stack, Stack) and stack.norm is None and isinstance(stack.layers[0], ComposedLayer)
    ]
    if not bare:
        return []
    new = {name: norms.of_sequence(_features(stack)) for name, stack in bare}
    for name, stack in bare:
        norm = made(str(new[name])).to(next(stack.parameters()))
        stack.norm = norm.train(stack.training)
    pairs = ", ".join(f"({name!r}, {call})" for name, call in new.items())
    code = (
        f"for name, norm in [{pairs}]:\n"
        "    stack = model.get_submodule(name)\n"
        "    stack.norm = norm.to(next(stack.parameters()))"
    )
    kind = str(next(iter(new.values()))).removeprefix("nn.").partition("(")[0]
    return [Change(changes=(f"{shortened(tuple(new))}: a new {kind} behind the last layer",), code=code)]


def _features(stack: Stack) -> int:
    layer: Any = stack.layers[0]
    return int(layer.linear1.in_features)


def norm_before_head(
    model: nn.Module, order: tuple[Place, ...], inside: tuple[str, ...], norms: Norms, moved: frozenset[str]
) -> list[Before]:
    """Choose a norm before the dense layer that comes next behind the last of the named modules.

    Args:
        model: As it was before norms were put in.
        order: Its places.
        inside: The modules with the residual branches.
        norms: The choice.
        moved: Norms that are not where they were.
    """
    uses = [index for index, place in enumerate(order) if _is_in(place.name, inside)]
    behind = order[max(uses) + 1 :] if uses else ()
    head = next((place for place in behind if not _passes_on(place) and place.name not in moved), None)
    if head is None or not isinstance(head.module, nn.Linear) or inside_torch(model, head.name) or not head.name:
        return []
    call = norms.before(head)
    return [Before(names=(head.name,), call=call)] if call else []


def _passes_on(place: Place) -> bool:
    return isinstance(place.module, (*DROPOUTS, nn.Identity))


def _is_in(name: str, names: tuple[str, ...]) -> bool:
    return any(name == holder or name.startswith(f"{holder}.") for holder in names)
