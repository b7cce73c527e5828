"""What a training depends on besides its task: import path, folder, torch's settings."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import torch


def surroundings(threads: int) -> bytes:
    """Describe those of this process.

    Args:
        threads: With how many threads torch is to compute in the other one.
    """
    cudnn = torch.backends.cudnn
    cwd = ""
    with contextlib.suppress(FileNotFoundError):  # the folder was removed: the other process has none either
        cwd = os.getcwd()  # noqa: PTH109 -- a Path would say no more
    return json.dumps(
        {
            "path": sys.path,
            "argv": sys.argv,
            "cwd": cwd,
            "threads": threads,
            "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "device": str(torch.get_default_device()),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
            "cudnn": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        }
    ).encode()


def surround(data: bytes) -> None:
    """Make those of this process what `surroundings` described in another one."""
    found: dict[str, Any] = json.loads(data)
    if found["cwd"]:
        os.chdir(found["cwd"])
    sys.path[:] = found["path"]
    sys.argv[:] = found["argv"]
    set_torch(data)


def set_torch(data: bytes) -> None:
    """Take over torch's settings alone, on another machine that has other folders."""
    found: dict[str, Any] = json.loads(data)
    if torch.get_num_threads() != found["threads"]:
        torch.set_num_threads(found["threads"])
    torch.set_default_dtype(getattr(torch, found["dtype"]))
    if str(torch.get_default_device()) != found["device"]:
        torch.set_default_device(found["device"])
    torch.use_deterministic_algorithms(found["deterministic"], warn_only=found["warn_only"])
    if torch.get_float32_matmul_precision() != found["matmul"]:
        torch.set_float32_matmul_precision(found["matmul"])
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = found["cudnn"][:3]
    if cudnn.allow_tf32 != found["cudnn"][3]:  # setting it, even to the same, forbids the newer way to say it
        cudnn.allow_tf32 = found["cudnn"][3]
