"""Which units of rectifiers are dead: zero for every sample of every step of a window."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from evengrad.probe._sample_hooks import Call, Round
from evengrad.probe._statistics import precise

MOST_STEPS = 10  # of the window: as many sampled steps


def liveliness(output: Tensor, unit_dim: int) -> tuple[Tensor, int]:
    """Sum a rectifier's output over all but its units, and count the observations of each.

    What is never negative sums to zero where all of it is; a sum takes a tenth of the time of `(output != 0).any()`.
    """
    dims = tuple(dim for dim in range(output.ndim) if dim != unit_dim % max(output.ndim, 1))
    alive = output.sum(dims) if dims else output.reshape(-1).clone()
    return alive, output.numel() // max(alive.numel(), 1)


@final
class Window:
    """The last sampled steps; it begins anew when other rectifiers are called, or with other numbers of units."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._steps: deque[tuple[Tensor, list[int]]] = deque(maxlen=MOST_STEPS)
        self._round: Round | None = None
        self._last: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, calls: Sequence[Call], device: torch.device) -> tuple[Tensor, list[int]]:
        """Add a step; adding it again replaces it.

        Args:
            calls: Those of rectifiers, at least one.
            device: Where the numbers are wanted.

        Returns:
            The share of dead units of each call, and how often each of its units was seen, in the whole window.
        """
        flat = [call.alive for call in calls if call.alive is not None]
        key = (device, *((call.about, one.numel()) for call, one in zip(calls, flat, strict=True)))
        if key != self._key:
            self._begin(key, [one.numel() for one in flat], device)
        elif self._round is calls[0].round:
            self._steps.pop()
        self._round = calls[0].round
        alive = torch.cat([one.to(device, non_blocking=True) for one in flat]) != 0
        self._steps.append((alive, [call.observations for call in calls]))
        observations = [sum(counts) for counts in zip(*(counts for _, counts in self._steps), strict=True)]
        return self._dead(), observations

    def _begin(self, key: tuple[object, ...], sizes: list[int], device: torch.device) -> None:
        self._key = key
        self._steps.clear()
        ends = torch.tensor([end - 1 for end in accumulate(sizes)], device="cpu")
        counts = torch.tensor(sizes, dtype=precise(device), device="cpu")
        self._last, self._counts = (one.to(device, non_blocking=True) for one in (ends, counts))

    def _dead(self) -> Tensor:
        assert self._last is not None
        assert self._counts is not None
        ever = torch.stack([alive for alive, _ in self._steps]).any(dim=0)
        up_to = ever.to(self._counts.dtype).cumsum(0).index_select(0, self._last)
        return 1 - torch.diff(up_to, prepend=up_to.new_zeros(1)) / self._counts
