"""The entry point, light enough that Ctrl-C is caught from the first heavy import on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evengrad.cli._streams import complain

INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Results go to standard output, all else to standard error. An error is one line on standard error that begins with
    `evengrad: error:`, also with `--json`. A reader that has seen enough (`evengrad ... | head`) changes nothing: the
    work is finished and the exit status is the same. `run` is as Python itself would run the script: what the script
    raises is raised here.

    Args:
        args: What follows the program's name; None for the process's own arguments.

    Returns:
        0 clean, 1 findings, 2 usage error or a task that failed or standard output that cannot be written, 130
        interrupted; what was found until then is still told and written.
    """
    try:
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] != ["run"]:
            from evengrad.cli._run import run  # tyro and what it brings take a while

            return run(words)
        from evengrad.cli._run_script import guarded_program

        program = guarded_program(words[1:])
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return program if isinstance(program, int) else program()  # a script's errors and Ctrl-C are its own
