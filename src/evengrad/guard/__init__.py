"""The guard: measure, decide, apply, record, from one line in a training loop."""

from evengrad.guard._everywhere import Everywhere
from evengrad.guard._guard import Guard
from evengrad.guard._protect import Protection
from evengrad.guard._rollback import Rollback

__all__ = ["Everywhere", "Guard", "Protection", "Rollback"]
