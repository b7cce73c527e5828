"""Which calls that are read come before which in the graph, and which outputs only gate others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

MOST_NODES = 20_000  # in one forward: some 50 ms; beyond that nothing is known
KEY = "evengrad"  # in the metadata of a node, which live as long as it does and keep nothing alive

# Operations that only arrange numbers anew.
SHAPES = frozenset(
    {
        "Alias", "AsStrided", "Clone", "Expand", "Flatten", "Index", "Narrow", "Permute", "Repeat", "Reshape",
        "ReshapeAlias", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "T", "ToCopy", "Transpose", "Unbind",
        "UnsafeSplit", "UnsafeView", "Unsqueeze", "View",
    }
)  # fmt: skip
SUMS = frozenset({"Add", "Sub", "Rsub"})


class Mark(NamedTuple):
    """What is known at a node; sets of calls are bits of an integer.

    Args:
        graph: Whose; a node that an earlier forward has made is not looked through.
        reach: Calls at or before it.
        direct: Saturating calls whose outputs it hands on, up to their shape, and up to a constant that is added.
        scaled: Those that were multiplied with a constant on the way.
    """

    graph: CallGraph | None
    reach: int
    direct: int
    scaled: int


NOTHING = Mark(None, 0, 0, 0)


@final
class CallGraph:
    """The calls of one forward, each joined to those before it as soon as it has ended.

    From the node of an output the graph is walked back to nodes that are marked already, so each node is looked at
    once. What is found are numbers: no tensor and no node is kept. A node's mark is in its metadata.
    """

    def __init__(self) -> None:
        self._before: list[int | None] = []
        self._multiplied = self._used = 0  # saturating calls by what becomes of their outputs
        self._left = MOST_NODES

    def add(self, outputs: Sequence[Tensor], *, saturates: bool) -> int:
        """Number a call, and find what is before it.

        Args:
            outputs: The one that is read, and those that were computed beside it.
            saturates: Whether it is a saturating non-linearity.
        """
        number, before = len(self._before), 0
        for output in outputs:
            if output.grad_fn is not None:
                before |= self._mark(output.grad_fn).reach
        unknown = self._left < 0 or not outputs[0].requires_grad
        self._before.append(None if unknown else before)
        bit = 1 << number
        for output in outputs:
            if output.grad_fn is not None and not unknown:
                metadata: Any = output.grad_fn.metadata  # typed as a method, and none
                mark = metadata[KEY]
                direct = mark.direct | (bit if saturates else 0)
                metadata[KEY] = Mark(self, mark.reach | before | bit, direct, mark.scaled)
        return number

    def after(self, kept: Sequence[int | None]) -> list[tuple[int, ...] | None]:
        """Tell for each call which are directly before it: before no other one that is before it.

        Args:
            kept: Numbers of the calls that are read in the end, in their order; None for one that is in no graph.

        Returns:
            Places in `kept`, ascending; None where nothing is known.
        """
        if self._left < 0:
            return [None] * len(kept)
        places = {number: place for place, number in enumerate(kept) if number is not None}
        every = sum(1 << number for number in places)
        return [None if number is None else self._nearest(self._before[number], every, places) for number in kept]

    def is_gate(self, number: int | None) -> bool:
        """Tell whether all that became of an output, of what was seen, is that something was multiplied with it."""
        return number is not None and bool(self._multiplied >> number & 1) and not self._used >> number & 1

    def _nearest(self, before: int | None, every: int, places: dict[int, int]) -> tuple[int, ...] | None:
        if before is None:
            return None
        left, found = before & every, []
        while left:
            nearest = left.bit_length() - 1
            found.append(places[nearest])
            left &= ~((self._before[nearest] or 0) | 1 << nearest)
        return tuple(sorted(found))

    def _mark(self, root: Any) -> Mark:
        """Mark a node and all behind it, up to what is marked."""
        known = root.metadata.get(KEY)
        if known is not None and known.graph is self:
            return known  # type: ignore[no-any-return]
        todo = [root]
        while todo and self._left >= 0:
            node = todo[-1]
            marks: list[Mark] = []
            missing = []
            for one, _ in node.next_functions:
                if one is None or not one.next_functions:  # a constant, or a leaf
                    continue
                mark = one.metadata.get(KEY)
                if mark is None:
                    missing.append(one)
                else:
                    marks.append(mark if mark.graph is self else NOTHING)
            self._left -= 1
            if missing:
                todo += missing
                continue
            todo.pop()
            node.metadata[KEY] = self._joined(node, marks)
        return root.metadata.get(KEY, NOTHING) if self._left >= 0 else NOTHING

    def _joined(self, node: Any, marks: Iterable[Mark]) -> Mark:
        reach = direct = scaled = count = 0
        for mark in marks:
            reach, direct, scaled, count = reach | mark.reach, direct | mark.direct, scaled | mark.scaled, count + 1
        if direct or scaled:
            direct, scaled = self._handed_on(node.name(), direct, scaled, alone=count == 1)
        return Mark(self, reach, direct, scaled)

    def _handed_on(self, name: str, direct: int, scaled: int, *, alone: bool) -> tuple[int, int]:
        """Note what an operation makes of outputs, and tell which it only hands on.

        What is multiplied with a constant (a scale, a dropout) is not gated by that. Where `x` is no part of the graph,
        as the input is none, `(1 - gate) * x` looks the same, and is added to something: that tells nothing.
        """
        operation = name.rstrip("0123456789").removesuffix("Backward")
        if operation in SHAPES or (alone and operation in {*SUMS, "Neg"}):
            return direct, scaled
        if operation == "Mul":
            if alone:
                return 0, direct | scaled
            self._multiplied |= direct | scaled
        elif operation in SUMS:
            self._used |= direct
        else:
            self._used |= direct | scaled
        return 0, 0


def outputs_beside(output: Tensor, others: Iterable[Tensor], module: torch.nn.Module | None) -> list[Tensor]:
    """List what a module without parts has computed: one output may be read, and another used (`h_n` of an LSTM)."""
    if module is None or next(module.children(), None) is not None:
        return [output]
    return [output, *(one for one in others if one is not output)]
