"""One seed for everything random in a trial, and everything as it was afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (all devices), NumPy's and Python's global random state; restore all three when the block ends."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            seed_all(seed)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def seed_all(seed: int) -> None:
    """Seed torch, NumPy's and Python's global random state."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
