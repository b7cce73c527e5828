"""Pick the command, run it, turn our errors into one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from evengrad.cli._streams import complain, prepare, write_out
from evengrad.cli._usage import USAGE, parse
from evengrad.nouns import EvengradError, printable


def run(args: Sequence[str] | None) -> int:
    """Run a command and return its exit status; Ctrl-C passes through."""
    try:
        prepare()
        words = list(sys.argv[1:] if args is None else args)
        if words == ["--version"]:
            write_out(f"evengrad {version('evengrad')}\n")
            return 0
        command = parse(words)
        return command if isinstance(command, int) else command.run()
    except EvengradError as err:
        complain(f"error: {printable(' '.join(str(err).split()))}")
        return USAGE
