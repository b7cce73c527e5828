"""The user's functions, called so that what they raise is one clear error that says where in the user's code it was."""

from __future__ import annotations

import re
import site
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

from evengrad.nouns._errors import EvengradError, TaskError
from evengrad.nouns._finding import printable

MOST_CHARACTERS = 300
LONGEST_PATH = 80
LONGEST_NAME = 40
# A worker of a DataLoader, of multiprocessing or of Ray sends its traceback as text.
FRAME_IN_TEXT = re.compile(r'^\s*File "(.+)", line (\d+), in (.+)$', re.MULTILINE)

Frame = tuple[str, int, str]
"""File, line, and function."""


def called(what: str, function: Callable[[], Any], *, wanted: str) -> Any:
    """Call a function of the user.

    Args:
        what: Its name, as the user knows it.
        function: The call.
        wanted: What it should have given.

    Raises:
        TaskError: It raised; errors of ours go through as they are.
    """
    try:
        return function()
    except EvengradError:
        raise
    except Exception as err:  # user code: anything may come
        raise TaskError(what, came=in_words(err), wanted=wanted) from err


def made(factory: Callable[[], Any], what: str, kind: type) -> Any:
    """Call a factory of the user and check what it made.

    Raises:
        TaskError: It raised, or made something else.
    """
    article = "an" if kind.__name__[:1] in "AEIOU" else "a"
    wanted = f"a function that makes {article} {kind.__name__}"
    thing = called(what, factory, wanted=wanted)
    if not isinstance(thing, kind):
        raise TaskError(what, came=_type_name(type(thing), kind), wanted=wanted)
    return thing


def in_words(err: BaseException, *, when: str = "") -> str:
    """Say in one line what was raised, and where in the user's code.

    The place is the innermost that is in none of our own files, and in an installed package only if there is no other.
    Its path is relative to the working directory; of a file elsewhere it is the name.

    Args:
        err: What was raised.
        when: What was being done, to be said behind the kind of the error.

    Returns:
        At most 300 characters, none of them a control character: `KeyError: 'x' (train.py, line 31, in loss)`.
    """
    frames, text = _frames(err), _text(err)
    if found := FRAME_IN_TEXT.findall(text):
        frames += [(file, int(line), name) for file, line, name in found]
        text = _said_last(text)
    kind = " ".join(part for part in (type(err).__name__, when) if part)
    said = printable(f"{kind}: {text}" if text else kind)
    where = _place(frames)
    return said[: MOST_CHARACTERS - len(where)] + where


@cache  # asked for by thousands of modules: sysconfig takes a millisecond each time
def installed_folders() -> tuple[str, ...]:
    """List the folders of the standard library and of installed packages, each with a slash at its end."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({f"{path}/" for path in paths} | {f"{Path(path).resolve()}/" for path in paths})


def _type_name(came: type, wanted: type) -> str:
    """Name a type; with its module where the name alone would be that of the wanted one."""
    same = came.__name__ == wanted.__name__
    return printable(f"{came.__module__}.{came.__qualname__}" if same else came.__name__)


def _frames(err: BaseException) -> list[Frame]:
    found = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in walk_tb(err.__traceback__)]
    if isinstance(err, SyntaxError) and err.filename:
        found.append((err.filename, err.lineno or 0, "<module>"))
    return found


def _text(err: BaseException) -> str:
    try:
        text = err.msg if isinstance(err, SyntaxError) else str(err)
    except Exception:  # a class of the user's own, whose text fails as well
        return ""
    return text if FRAME_IN_TEXT.search(text) else " ".join(text.split())


def _said_last(text: str) -> str:
    """Take what stands behind the last frame of a traceback."""
    rest = text[[match.end() for match in FRAME_IN_TEXT.finditer(text)][-1] :]
    return " ".join(" ".join(line for line in rest.splitlines() if line[:1].strip()).split())


def _place(frames: list[Frame]) -> str:
    """Say the innermost of the places that are most the user's own."""
    ours = f"{Path(__file__).parents[1]}/"
    installed = installed_folders()
    known = [frame for frame in frames if not frame[0].startswith(ours)]
    if not known:
        return ""
    file, line, name = max(reversed(known), key=lambda frame: _standing(frame[0], installed))
    shown = _shown(file, installed)
    shown = shown if len(shown) <= LONGEST_PATH else f"...{shown[3 - LONGEST_PATH :]}"
    function = "" if name == "<module>" else f", in {name[:LONGEST_NAME]}"
    return printable(f" ({shown}, line {line}{function})")


def _standing(file: str, installed: tuple[str, ...]) -> int:
    """Rank a file: the user's own first, then what was typed in, then installed packages, then torch and Python."""
    if file.startswith(("<frozen ", "<eval_with_key>")):  # Python's own, and what torch.fx writes
        return 0
    if file.startswith("<"):
        return 2
    if not file.startswith(installed):
        return 3
    return int("-packages/" in file and not _shown(file, installed).startswith("torch/"))


def _shown(file: str, installed: tuple[str, ...]) -> str:
    if file.startswith("<"):
        return file
    if folders := [folder for folder in installed if file.startswith(folder)]:
        return file[len(max(folders, key=len)) :]
    try:
        return Path(file).resolve().relative_to(Path.cwd().resolve()).as_posix()
    except (OSError, ValueError):  # no working directory any more, or a file that is elsewhere
        return Path(file).name
