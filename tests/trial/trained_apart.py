"""A small task for trainings in other processes, and whether these are gone."""

import time
from pathlib import Path

import torch
from torch import nn

import evengrad

STEPS = 6


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    return inputs, inputs[:, :2].argmax(1)


def task(**changes):
    inputs, labels = data()
    settings = {
        "model": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 2)),
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        "loss": nn.functional.cross_entropy,
        "train": lambda: zip(inputs.split(16), labels.split(16), strict=True),
        "validate": lambda model: (model(inputs).argmax(1) == labels).float().mean().item(),
        "steps": STEPS,
        "name": "eight numbers",
    }
    return evengrad.Task(**(settings | changes))


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids, patience_s=30.0):
    """Wait until processes are gone; the time is only there for a test that fails."""
    deadline_s = time.monotonic() + patience_s
    while any(map(alive, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return not any(map(alive, pids))
