"""The command line."""

from evengrad.cli._main import main

__all__ = ["main"]
