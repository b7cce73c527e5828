"""Numbers on their way from the device to the host, without a wait for them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Sent:
    """Begin a copy to the host; on a CPU the numbers are there already.

    Args:
        numbers: One dimension; they are kept until they are read.
    """

    __slots__ = ("_event", "_numbers")

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers.detach()
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))

    def __len__(self) -> int:
        return self._numbers.numel()

    def ready(self) -> bool:
        """Whether they can be read without a wait."""
        return self._event is None or bool(self._event.query())

    def read(self) -> list[float]:
        """Return the numbers; waits where they are not ready."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        numbers: list[float] = self._numbers.cpu().numpy().tolist()
        return numbers
