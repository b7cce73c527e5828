"""The readings of a run on disk: append-only, readable while it grows, never needs torch."""
