"""One seed for everything random in a trial, and everything as it was afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (all devices), NumPy's and Python's global random state; restore all three when the block ends."""
    with random_kept():
        seed_all(seed)
        yield


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """Restore torch's (all devices), NumPy's and Python's global random state when the block ends."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices()):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@final
class RandomState:
    """A global random state of one's own: it is there inside the block, and goes on where the last block ended.

    Args:
        seed: Where it begins.
    """

    def __init__(self, seed: int) -> None:
        self._seed: int | None = seed
        self._kept: tuple[Any, ...] = ()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put this state in the place of the global one for a while."""
        with random_kept():
            if self._seed is not None:
                seed_all(self._seed)
                self._seed = None
            else:
                of_python, of_numpy, of_torch, of_devices = self._kept
                random.setstate(of_python)
                np.random.set_state(of_numpy)
                torch.set_rng_state(of_torch)
                for device, state in of_devices:
                    torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                of_devices = [(device, torch.cuda.get_rng_state(device)) for device in _devices()]
                self._kept = (random.getstate(), np.random.get_state(), torch.get_rng_state(), of_devices)


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def seed_all(seed: int) -> None:
    """Seed torch, NumPy's and Python's global random state."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
