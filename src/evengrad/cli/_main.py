"""The entry point: pick the command, turn our errors into one line, return the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from evengrad.cli._commands import Checkup, Demo, Explain, Repair, Report
from evengrad.nouns import EvengradError, printable

USAGE, INTERRUPTED = 2, 130

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Checkup, tyro.conf.subcommand("checkup")]
    | Annotated[Repair, tyro.conf.subcommand("repair")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
)

DESCRIPTION = """Keep gradients even: see, say, cure, prove.

Exit status: 0 clean, 1 findings, 2 usage error or a task that failed, 130 interrupted.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: What follows the program's name; None for the process's own arguments.

    Returns:
        0 clean, 1 findings, 2 usage error or a task that failed, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a bar gets a question mark, no traceback
    try:
        command = tyro.cli(
            Command,
            prog="evengrad",
            description=DESCRIPTION,
            args=None if args is None else list(args),
        )
        return command.run()
    except EvengradError as err:
        sys.stderr.write(f"evengrad: error: {printable(' '.join(str(err).split()))}\n")
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("evengrad: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `evengrad ... | head` is no error
        return 0
