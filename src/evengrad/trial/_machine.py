"""What this machine has for trainings: processors, memory, and how much of it a process holds."""

from __future__ import annotations

import contextlib
import os
import sys
from math import ceil
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # larger numbers in a control group's files mean none


def cores() -> int:
    """Count the processors that this process may use, as the scheduler and a container's quota allow."""
    if sys.version_info >= (3, 13):
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or `max`: no quota
        quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        count = min(count, ceil(int(quota) / int(period)))
    return max(count, 1)


def memory_bytes() -> int | None:
    """Measure the memory that processes here can have together; None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int((CONTROL_GROUP / name).read_text()))
    return min((size for size in found if 0 < size < NO_LIMIT), default=None)


def resident_bytes(pid: int) -> int | None:
    """Measure the resident memory of a process; None when it is gone or the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_is_seen() -> bool:
    """Tell whether `resident_bytes` works on this system."""
    return resident_bytes(os.getpid()) is not None
