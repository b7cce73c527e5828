"""From words to a command; wrong usage is one line instead of tyro's boxes."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Annotated

import tyro

from evengrad.cli._commands import Checkup, Demo, Diagnose, Explain, Repair, Report, Run, Tune
from evengrad.cli._streams import complain, write_err, write_out, writing_out
from evengrad.nouns import printable

USAGE = 2
LONGEST_MESSAGE = 300
CORNERS = "╭╰┌└+"

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Checkup, tyro.conf.subcommand("checkup")]
    | Annotated[Repair, tyro.conf.subcommand("repair")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
)

DESCRIPTION = """Keep gradients even: see, say, cure, prove. `evengrad --version` prints the version.

Exit status: 0 clean, 1 findings, 2 usage error or a task that failed, 130 interrupted. An error is one line on standard
error, also with --json.
"""


def parse(words: list[str]) -> Command | int:
    """Read the command; help that was printed, or wrong usage, is an exit status instead."""
    said = io.StringIO()
    command: Command | int = 0
    try:
        with writing_out(), contextlib.redirect_stderr(said):
            command = tyro.cli(Command, prog="evengrad", description=DESCRIPTION, args=words)
    except SystemExit as end:
        if end.code:
            complain(f"error: {in_one_line(said.getvalue())}")
            return USAGE
        write_out("")  # the help may still be in the buffer
        return 0
    if said.getvalue():
        write_err(said.getvalue().rstrip())
    return command


def in_one_line(boxes: str) -> str:
    r"""Take out of tyro's boxes what is wrong and what was perhaps meant.

    Example:
        >>> in_one_line("+- Oops -----+\n| No such: x |\n| ---------- |\n| For help.. |\n+------------+")
        'No such: x; see evengrad --help'
    """
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", boxes).splitlines() if line.strip()]
    framed = bool(lines) and lines[0][0] in CORNERS
    parts: list[str] = [""]
    for line in lines:
        content = line.strip("│|").strip()
        if not content or content[0] in CORNERS:
            continue
        if set(content) <= set("─-"):
            parts.append("")
        else:
            parts[-1] = f"{parts[-1]} {content}".strip()
    said = parts if framed else parts[1:]  # without box characters the title is a part of its own
    return printable("; ".join([*_worth(said or parts), "see evengrad --help"]))


def _worth(parts: list[str]) -> list[str]:
    kept = [parts[0][:LONGEST_MESSAGE].rstrip(" .") or "wrong usage"]
    for part in parts[1:]:
        if part.startswith("Available"):
            kept.append(part[0].lower() + part[1:].rstrip("."))
        elif part.startswith("Perhaps"):
            options = dict.fromkeys(re.findall(r"--[a-z][\w-]*", part))
            kept.append("perhaps you meant " + ", ".join(option for option in options if option != "--help"))
    return kept
