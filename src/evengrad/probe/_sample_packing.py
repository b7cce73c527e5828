"""From the calls of a round to one vector of numbers, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from evengrad.probe._sample import FIELDS, Group
from evengrad.probe._sample_calls import Calls
from evengrad.probe._sample_hooks import Call
from evengrad.probe._sample_readings import Layout
from evengrad.probe._statistics import precise
from evengrad.probe._units import Window


def packed(calls: Calls, window: Window) -> tuple[Tensor, Layout]:
    """Reduce what was seen by a few operations for all that is of one kind, however many layers there are.

    Args:
        calls: What was seen.
        window: Of the rectifiers.

    Returns:
        A vector, empty when nothing was seen, and what it stands for.
    """
    with torch.no_grad():
        parts = _Parts(calls.groups)
        if not parts.vectors:
            return torch.empty(0, device="cpu"), Layout()
        found = calls.in_order
        parts.add_more(found)
        observations = parts.add_dead([call for call in found if call.alive is not None], window)
        numbers = torch.cat([one.to(parts.device, precise(parts.device), non_blocking=True) for one in parts.vectors])
    seen = tuple([call.seen(parts.starts, parts.places.get(call, {}), observations.get(call)) for call in found])
    first = None if calls.first_input is None else calls.first_input.seen(parts.starts, {})
    graph, order = calls.round.graph, [call.number for call in found]
    return numbers, Layout(
        calls=seen,
        first_input=first,
        size=parts.size,
        after=tuple(graph.after(order)),
        gates=frozenset(place for place, number in enumerate(order) if graph.is_gate(number)),
    )


@final
class _Parts:
    """What the vector is made of, one after the other.

    Args:
        groups: The samples, which come first.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.vectors: list[Tensor] = []
        self.places: dict[Call, dict[str, slice]] = {}
        self.starts: dict[Group, int] = {}
        self.size = 0
        for group in groups:
            self.starts[group] = self.size
            self.vectors += group.statistics()
            self.size += len(FIELDS) * group.used
        devices = [one.device for one in self.vectors]
        self.device = next((one for one in devices if one.type != "cpu"), torch.device("cpu"))

    def add_more(self, calls: Sequence[Call]) -> None:
        """Add what only some kinds of modules have, by device and dtype."""
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Call, str, Tensor]]] = {}
        for call in calls:
            for name, value in call.more.items():
                kinds.setdefault((value.device, value.dtype), []).append((call, name, value.reshape(-1)))
        for items in kinds.values():
            self.vectors.append(torch.cat([value for _, _, value in items]))
            for call, name, value in items:
                self._place(call, name, value.numel())

    def add_dead(self, rectifiers: Sequence[Call], window: Window) -> dict[Call, int]:
        """Add the share of dead units of each rectifier; returns how often their units were seen."""
        if not rectifiers:
            return {}
        dead, observations = window.add(rectifiers, self.device)
        self.vectors.append(dead)
        for call in rectifiers:
            self._place(call, "dead", 1)
        return dict(zip(rectifiers, observations, strict=True))

    def _place(self, call: Call, name: str, count: int) -> None:
        self.places.setdefault(call, {})[name] = slice(self.size, self.size + count)
        self.size += count
