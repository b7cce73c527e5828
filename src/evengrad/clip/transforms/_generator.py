"""Random numbers of a transform's own: from its seed and the step, never from the global random state."""

from hashlib import blake2b

import torch
from torch import Tensor

from evengrad.clip.transforms._transform import Memory

COUNT = "steps"


def first() -> Memory:
    """Make the memory of how many steps went by: it stays in host memory, so that reading it waits for nothing."""
    return {COUNT: torch.zeros(1, dtype=torch.int64)}


def steps(memory: Memory) -> int:
    """Read how many steps went by."""
    return int(memory[COUNT].item()) if COUNT in memory else 0


def next_(memory: Memory) -> Memory:
    """Return a memory of one step more; the other tensors are the same."""
    return {**memory, COUNT: torch.full((1,), steps(memory) + 1, dtype=torch.int64)}


class Draws:
    """Draw random numbers for one step, from a generator on each device.

    The numbers depend on who draws, its seed, the step, and the order and shapes of what is asked for.

    Args:
        who: Who draws; two transforms of one seed draw different numbers.
        seed: A whole number.
        step: How many steps went by before.
    """

    def __init__(self, who: str, seed: int, step: int) -> None:
        digest = blake2b(f"{who}/{seed}/{step}".encode(), digest_size=7).digest()
        self._seed = int.from_bytes(digest, "big")
        self._generators: dict[torch.device, torch.Generator] = {}

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal numbers, in float32 or wider, in the shape and on the device of another tensor."""
        return torch.empty_like(like, dtype=_wide(like)).normal_(generator=self._on(like.device))

    def uniform(self, like: Tensor) -> Tensor:
        """Draw numbers from 0 up to 1, in float32 or wider, in the shape and on the device of another tensor."""
        return torch.empty_like(like, dtype=_wide(like)).uniform_(generator=self._on(like.device))

    def _on(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
