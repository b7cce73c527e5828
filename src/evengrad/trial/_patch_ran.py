"""Which calls in the user's files a model makes on the first batch."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from evengrad.nouns import Task, output_of
from evengrad.trial._patch_source import NoPatchError, Source, first_line
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import first_batch

Ends = set[tuple[int, int]]
"""Line and column, as `ast` counts them, where calls end: no two calls end at one place."""


def calls_that_ran(task: Task, sources: Mapping[Path, Source]) -> dict[Path, Ends]:
    """Find the calls that the forward of a task's model makes on the first batch, in evaluation and in training.

    Returns:
        For each file where the calls end, in the text as it is now; nothing where the model cannot be run.

    Cost:
        Two forward passes, in which each instruction of the user's is told to a trace function.
    """
    seen: dict[CodeType, Ends] = {}
    if getattr(task, "backward", None) is None:
        try:
            with seeded(0), torch.no_grad():
                _run(task, _tracer(seen, sources))
        except Exception:  # user code: what ran before it raised has run
            return _in_files(seen, sources)
    return _in_files(seen, sources)


def _run(task: Task, tracer: Callable[..., Any]) -> None:
    model, (inputs, _) = task.model(), first_batch(task)
    before = sys.gettrace()
    try:
        for training in (False, True):
            model.train(training)
            sys.settrace(tracer)
            output_of(model, inputs)
            sys.settrace(before)
    finally:
        sys.settrace(before)


def _tracer(seen: dict[CodeType, Ends], sources: Mapping[Path, Source]) -> Callable[..., Any]:
    files: dict[str, bool] = {}
    places: dict[CodeType, list[Any]] = {}

    def each(frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if event == "opcode" and dis.opname[code.co_code[frame.f_lasti]].startswith("CALL"):
            _, line, _, column = places[code][frame.f_lasti // 2]
            if line is not None and column is not None:
                seen[code].add((line, column))
        return each

    def begun(frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not files.setdefault(code.co_filename, Path(code.co_filename).resolve() in sources):
            return None
        if code not in seen:
            seen[code], places[code] = set(), list(code.co_positions())
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return each

    return begun


def _in_files(seen: Mapping[CodeType, Ends], sources: Mapping[Path, Source]) -> dict[Path, Ends]:
    """Move the places to where the functions stand now: lines above may have come since the import."""
    found: dict[Path, Ends] = {path: set() for path in sources}
    for code, ends in seen.items():
        path = Path(code.co_filename).resolve()
        try:
            moved = first_line(sources[path].node_of(code)) - code.co_firstlineno
        except NoPatchError:
            continue
        found[path] |= {(line + moved, column) for line, column in ends}
    return found
