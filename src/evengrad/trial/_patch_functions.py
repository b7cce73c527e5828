"""Activation functions that a forward of the user's own calls, given another name in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional

from evengrad.trial._patch_call import UNKNOWN, resolved
from evengrad.trial._patch_source import Edit, Source

KINDS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh",
    "sigmoid", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish", "exp",
)  # fmt: skip
IN_TORCH = frozenset({"relu", "tanh", "selu"})  # and methods of tensors, but for the last
METHODS = frozenset({"relu", "tanh"})
HOLDERS = (torch, functional, torch.special)


def called_kinds(region: ast.AST, namespace: Mapping[str, Any]) -> set[str]:
    """Name the activation functions that a part of a source calls."""
    return {kind for kind, _ in _calls(region, namespace)}


def function_edits(
    source: Source, regions: Iterable[ast.AST], namespace: Mapping[str, Any], kinds: set[str], to: str
) -> list[Edit]:
    """Call another function wherever one of some kinds is called; what is given behind the input is left out."""
    edits = []
    for region in regions:
        for kind, call in _calls(region, namespace):
            if kind in kinds:
                method = resolved(call.func, namespace) is UNKNOWN
                edits += _method(source, call, to) if method else _function(source, call, to, namespace)
    return edits


def _calls(region: ast.AST, namespace: Mapping[str, Any]) -> Iterator[tuple[str, ast.Call]]:
    functions = {
        id(getattr(holder, kind)): kind for kind in KINDS for holder in HOLDERS if callable(getattr(holder, kind, None))
    }
    for node in ast.walk(region):
        if not isinstance(node, ast.Call):
            continue
        function = resolved(node.func, namespace)
        if function is not UNKNOWN:
            if id(function) in functions and node.args:
                yield functions[id(function)], node
        elif isinstance(node.func, ast.Attribute) and node.func.attr in KINDS and not (node.args or node.keywords):
            yield node.func.attr, node


def _function(source: Source, call: ast.Call, to: str, namespace: Mapping[str, Any]) -> list[Edit]:
    edits = [Edit(start=source.start(call.func), end=source.end(call.func), text=_named(source, call, to, namespace))]
    rest = [*call.args[1:], *(word.value for word in call.keywords)]
    if rest:
        edits.append(Edit(start=source.end(call.args[0]), end=source.end(call) - 1, text=""))
    return edits


def _named(source: Source, call: ast.Call, to: str, namespace: Mapping[str, Any]) -> str:
    if isinstance(call.func, ast.Attribute):
        holder = resolved(call.func.value, namespace)
        if holder is functional or (holder is torch and to in IN_TORCH):
            return f"{source.segment(call.func.value)}.{to}"
    return f"torch.{to}" if to in IN_TORCH else f"nn.functional.{to}"


def _method(source: Source, call: ast.Call, to: str) -> list[Edit]:
    if not isinstance(call.func, ast.Attribute):
        raise AssertionError(call)
    begin, dot, end = source.start(call), source.end(call.func.value), source.end(call)
    if to in METHODS:
        return [Edit(start=dot, end=end, text=f".{to}()")]
    return [Edit(start=begin, end=begin, text=f"nn.functional.{to}("), Edit(start=dot, end=end, text=")")]
