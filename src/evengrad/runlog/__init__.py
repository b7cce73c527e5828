"""The readings of a run on disk: append-only, readable while it grows, never needs torch."""

from evengrad.runlog._directory import is_run
from evengrad.runlog._follow import Follower
from evengrad.runlog._read import read
from evengrad.runlog._story import read_story, write_story
from evengrad.runlog._writer import Writer

__all__ = ["Follower", "Writer", "is_run", "read", "read_story", "write_story"]
