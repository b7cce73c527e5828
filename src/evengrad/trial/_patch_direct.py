"""Changing the words of the source themselves: another activation, another optimizer or learning rate."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.trial._patch_call import UNKNOWN, resolved
from evengrad.trial._patch_source import Edit, NoPatchError, Source

Swaps = dict[type[nn.Module], type[nn.Module]]
NUMBERS = int | float | bool | None


def activation_swaps(before: nn.Module, after: nn.Module) -> Swaps:
    """Tell which classes of modules gave way to which, if that is all that was done to the modules of a model.

    Modules that are new stand for functions that were called; that is not for here.

    Raises:
        NoPatchError: Something else was done, or some modules of such a class stayed.
    """
    old = dict(before.named_modules(remove_duplicate=False))
    new = dict(after.named_modules(remove_duplicate=False))
    if not set(old) <= set(new):
        raise NoPatchError("modules were removed")
    swaps: Swaps = {}
    for name, module in old.items():
        kind = type(new[name])
        if kind is type(module) and type(module) not in swaps:
            continue
        if swaps.setdefault(type(module), kind) is not kind or any(True for _ in new[name].children()):
            raise NoPatchError("modules of one class were changed in different ways")
    kept = {type(old[name]) for name in old if type(old[name]) is type(new[name])}
    if kept & set(swaps):
        raise NoPatchError("not all modules of one class were replaced")
    if any(not _is_plain(new[name]) for name in old if type(new[name]) in set(swaps.values())):
        raise NoPatchError("the new modules have settings of their own")
    return swaps


def swap_edits(source: Source, regions: Iterable[ast.AST], namespace: Mapping[str, Any], swaps: Swaps) -> list[Edit]:
    """Write another class wherever the replaced ones are mentioned in some parts of a source; calls lose arguments."""
    edits: dict[int, Edit] = {}
    for region in regions:
        called = {id(node.func): node for node in ast.walk(region) if isinstance(node, ast.Call)}
        for node in ast.walk(region):
            if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            kind = resolved(node, namespace)
            if kind is UNKNOWN or not isinstance(kind, type) or kind not in swaps:
                continue
            call = called.get(id(node))
            text = _written(source, node, swaps[kind]) + ("()" if call is not None else "")
            start = source.start(node)
            edits[start] = Edit(start=start, end=source.end(call if call is not None else node), text=text)
    return list(edits.values())


def optimizer_edits(
    source: Source, region: ast.AST, namespace: Mapping[str, Any], before: Optimizer, after: Optimizer
) -> list[Edit]:
    """Rewrite the one call that makes the optimizer so that it has the settings of another one.

    Raises:
        NoPatchError: There is no such call, or it, or one of the optimizers, has something that this cannot write.
    """
    calls = [node for node in ast.walk(region) if isinstance(node, ast.Call) and _makes(node, namespace, type(before))]
    if len(calls) != 1 or len(before.param_groups) != 1 or len(after.param_groups) != 1:
        raise NoPatchError("the optimizer is not made by one call for one group of parameters")
    call = calls[0]
    if not type(after).__module__.startswith("torch.optim") or type(after).__name__ not in vars(torch.optim):
        raise NoPatchError("the optimizer is not one of torch")
    first = [word.value for word in call.keywords if word.arg == "params"] if not call.args else [call.args[0]]
    if len(first) != 1 or isinstance(first[0], ast.Starred) or any(word.arg is None for word in call.keywords):
        raise NoPatchError("the call of the optimizer spreads its arguments")
    given = _given(call, type(before))
    if type(before) is type(after):
        return _changed_settings(source, call, given, before, after)
    if not all(_is_literal(node) for node in given.values()):
        raise NoPatchError("the optimizer has settings that are not written as numbers")
    settings = ", ".join(f"{key}={_number(value)}" for key, value in _unusual(after).items())
    name = f"{_base(source, call.func)}{type(after).__name__}"
    text = f"{name}({source.segment(first[0])}, {settings})"
    return [Edit(start=source.start(call), end=source.end(call), text=text)]


def _changed_settings(
    source: Source, call: ast.Call, given: dict[str, ast.expr], before: Optimizer, after: Optimizer
) -> list[Edit]:
    old, new = (one.param_groups[0] for one in (before, after))
    differ = [key for key in new if key != "params" and not _close(old.get(key), new[key])]
    differ = [key for key in differ if key != "initial_lr"]
    edits, added = [], []
    for key in differ:
        node = given.get(key)
        if node is None:
            added.append(f", {key}={_number(new[key])}")
        elif _is_literal(node) and _close(ast.literal_eval(node), old[key]):
            edits.append(Edit(start=source.start(node), end=source.end(node), text=_number(new[key])))
        else:
            raise NoPatchError(f"{key} of the optimizer is not written as a number")
    if not differ:
        raise NoPatchError("no setting of the optimizer differs")
    if added:
        nodes = [*call.args, *(word.value for word in call.keywords)]
        at = max(source.end(node) for node in nodes)
        edits.append(Edit(start=at, end=at, text="".join(added)))
    return edits


def _given(call: ast.Call, kind: type[Optimizer]) -> dict[str, ast.expr]:
    names = list(inspect.signature(kind).parameters)
    by_place = dict(zip(names, call.args, strict=False))
    by_name = {word.arg: word.value for word in call.keywords if word.arg is not None}
    return {key: node for key, node in {**by_place, **by_name}.items() if key != "params"}


def _unusual(optimizer: Optimizer) -> dict[str, Any]:
    """List the settings of an optimizer that are not its class's defaults, and the learning rate always."""
    group = optimizer.param_groups[0]
    make: Callable[..., Any] = type(optimizer)
    defaults = {key: one.default for key, one in inspect.signature(make).parameters.items()}
    return {
        key: group[key]
        for key in defaults
        if key in group and key != "params" and (key == "lr" or not _close(group[key], defaults[key]))
    }


def _makes(call: ast.Call, namespace: Mapping[str, Any], kind: type) -> bool:
    return resolved(call.func, namespace) is kind


def _base(source: Source, func: ast.expr) -> str:
    if isinstance(func, ast.Attribute):
        return f"{source.segment(func.value)}."
    return "torch.optim."


def _written(source: Source, node: ast.expr, new: type[nn.Module]) -> str:
    in_torch = isinstance(node, ast.Attribute) and new.__module__.startswith("torch.nn.")
    if in_torch and isinstance(node, ast.Attribute) and source.segment(node.value).split(".")[-1] == "nn":
        return f"{source.segment(node.value)}.{new.__name__}"
    return f"nn.{new.__name__}"


def _is_plain(module: nn.Module) -> bool:
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.") or vars(nn).get(kind.__name__) is not kind:
        return False
    try:
        return repr(kind()) == repr(module)
    except TypeError:  # it cannot be made without arguments
        return False


def _is_literal(node: ast.expr) -> bool:
    try:
        value = ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return False
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, NUMBERS) for part in parts)


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return abs(one - other) <= 1e-12 * max(abs(one), abs(other))
    return one is other or (type(one) is type(other) and bool(one == other))


def _number(value: Any) -> str:
    """Write a setting; a product of rates without the digits that binary fractions bring, where nothing is lost.

    Raises:
        NoPatchError: It is not a number.
    """
    parts = value if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(part, NUMBERS) for part in parts):
        raise NoPatchError("a setting of the optimizer is no number")
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_number, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and _close(short := float(f"{value:.12g}"), value):
        return repr(short)
    return repr(value)
