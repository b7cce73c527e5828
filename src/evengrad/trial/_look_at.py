"""The line of the user's code that a finding is about, as far as it is known for sure."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CodeType

from torch import nn

from evengrad.nouns import Finding, Record
from evengrad.trial._where_made import WhereMade, forward_of, said

# What is wrong with the settings of the optimizer; and with weights that it does not hold, if torch sees them.
OF_THE_OPTIMIZER = frozenset({"EG601", "EG602", "EG604", "EG605", "EG606"})
LEFT_OUT = "EG109"
OF_THE_LOSS = frozenset({"EG203", "EG507"})
# Of an activation behind the last layer.
OF_THE_OUTPUT = frozenset({"EG501", "EG502", "EG503", "EG505", "EG506"})
ACTIVATIONS = ("softmax", "sigmoid", "relu", "tanh", "softplus")
# Of what one layer is or how it is drawn. Others are about what forward does between layers, about data or a loop.
OF_A_LAYER = frozenset(
    {"EG101", "EG102", "EG103", "EG104", "EG105", "EG301", "EG302", "EG303", "EG304", "EG401", "EG402", "EG403"}
    | {"EG608"}
)
WHOLE = "(model)"
LOADS = frozenset({"LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD"})
CALLS = frozenset({"PRECALL", "CALL", "CALL_KW", "CALL_FUNCTION_EX"})

Span = tuple[tuple[int, int], tuple[int, int]]
"""Where an expression begins and ends: line and column."""


def with_lines(findings: tuple[Finding, ...], record: Record, made: WhereMade) -> tuple[Finding, ...]:
    """Point each finding to the most exact line that is known for sure; where none is, it stays as it is.

    A layer is made where its constructor was called, an activation that forward calls as a function stands on the only
    line that calls one of its name, and a loss where it is defined.

    Args:
        findings: Of a training or a checkup.
        record: Its readings.
        made: What has built its model and optimizer.
    """
    if made.model is None:
        return findings
    unseen = record.setup is not None and bool(record.setup.unregistered)
    return tuple(replace(one, look_at=_line(one, made, made.model, unseen=unseen) or one.look_at) for one in findings)


def _line(finding: Finding, made: WhereMade, model: nn.Module, *, unseen: bool) -> str:
    if finding.code in OF_THE_OPTIMIZER or (finding.code == LEFT_OUT and not unseen):
        return made.optimizer
    if finding.code in OF_THE_LOSS:
        return made.loss
    place = finding.where[0] if finding.where else ""
    if finding.code in OF_A_LAYER:
        return made.layers.get(place, "")
    if finding.code not in OF_THE_OUTPUT:
        return ""
    if place in made.layers and not any(name.startswith(f"{place}.") for name, _ in model.named_parameters()):
        return made.layers[place]
    return _called_behind(model, place, {name for name in ACTIVATIONS if name in finding.message.lower()})


def _called_behind(model: nn.Module, place: str, names: set[str]) -> str:
    """Find the only line that calls an activation behind a layer: in the innermost forward of the user's own.

    Where a forward further out calls one too, nobody knows which of them is meant.
    """
    holders = [(path, code) for path, module in _around(model, place) if (code := forward_of(module)) is not None]
    if not holders:
        return ""
    (path, code), *outer = holders
    calls = list(_calls(code, names))
    lines = {call.line for call in calls}
    if len(lines) != 1 or any(True for _, other in outer for _ in _calls(other, names)):
        return ""
    child = place[len(path) :].lstrip(".").partition(".")[0]
    loads = [step.offset for step in dis.get_instructions(code) if step.opname in LOADS and step.argval == child]
    if loads and all(call.offset < loads[-1] for call in calls):  # it goes into the layer, and does not come out of it
        return ""
    return said(code, lines.pop())


def _around(model: nn.Module, place: str) -> Iterator[tuple[str, nn.Module]]:
    """Give the module of a name and those that hold it, the innermost first; none where no module has the name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parts = place.split(".") if place != WHOLE else []
    for count in range(len(parts), -1, -1):
        path = ".".join(parts[:count])
        if path not in modules:  # one call of several, or none of the model's
            return
        yield path, modules[path]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    line: int
    offset: int


def _calls(code: CodeType, names: set[str]) -> Iterator[_Call]:
    """Find where names are loaded to be called at once: no text, no variable, and nothing that is only handed on.

    What a call loads begins where the call begins, and the call is the next larger expression that begins there.
    """
    steps = [(step, span) for step in dis.get_instructions(code) if (span := _span(step)) is not None]
    for step, (start, end) in steps:
        if step.opname not in LOADS or str(step.argval).lower().removeprefix("log_") not in names:
            continue
        larger = [(there, other) for other, there in steps if there[0] == start and there[1] > end]
        least = min((there for there, _ in larger), default=None)
        called = [other.offset for there, other in larger if there == least and other.opname in CALLS]
        if called:
            yield _Call(line=start[0], offset=max(called))
    for inner in code.co_consts:  # functions and comprehensions within
        if isinstance(inner, CodeType):
            for call in _calls(inner, names):
                yield _Call(line=call.line, offset=len(code.co_code))


def _span(step: dis.Instruction) -> Span | None:
    """Say where in its file an instruction stands; None where Python was told not to keep it."""
    at = step.positions
    if at is None or at.lineno is None or at.end_lineno is None or at.col_offset is None or at.end_col_offset is None:
        return None
    return (at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)
