"""The guard: measure, decide, apply, record, from one line in a training loop."""

from evengrad.guard._guard import Guard

__all__ = ["Guard"]
