"""Where a page goes: checked before long work, written whole or not at all."""

import os
import stat
import tempfile
from pathlib import Path

from evengrad.nouns import RunLogError

_KINDS = (
    (stat.S_ISDIR, "a folder", "add report.html to it"),
    (stat.S_ISFIFO, "a pipe", ""),
    (stat.S_ISSOCK, "a socket", ""),
    (stat.S_ISCHR, "a device", ""),
    (stat.S_ISBLK, "a device", ""),
)


def check_target(path: str | os.PathLike[str]) -> None:
    """Make sure that a page can be written somewhere, before the work whose result it is to show.

    An old file there is left as it is. The folder is tried with a file that has no name and is gone at once.

    Args:
        path: The file, or a symbolic link to it. Its folder must exist and be writable, since the file is replaced as a
            whole.

    Raises:
        RunLogError: It is no place for a page: a folder, a pipe, a device, or in a folder that does not exist or cannot
            be written to.

    Example:
        >>> check_target("/dev/null")
        Traceback (most recent call last):
        evengrad.nouns._errors.RunLogError: /dev/null: got a device, want a file
    """
    file, _ = find_file(path)
    if not file.parent.is_dir():
        raise RunLogError(
            str(path), came="a folder that does not exist", wanted="an existing folder", advice="make it first"
        )
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as err:
        raise _unwritable(path, err) from err


def write_whole(text: str, path: str | os.PathLike[str]) -> None:
    """Replace a file by a text in one step; a symbolic link stays one, an old file's permissions stay.

    Raises:
        RunLogError: It cannot be written, or is not a regular file.
    """
    file, mode = find_file(path)
    draft = file.with_name(f".{file.name[:100]}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        draft.touch(0o666 if mode is None else 0o600, exist_ok=False)  # never readable to more people than the old one
        draft.write_text(text, encoding="utf-8", newline="\n")
        if mode is not None:
            draft.chmod(mode)
        draft.replace(file)
    except OSError as err:
        raise _unwritable(path, err) from err
    finally:
        draft.unlink(missing_ok=True)


def find_file(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Follow symbolic links to the file that is meant, and give the permission bits of the one that is there.

    Raises:
        RunLogError: What is there is not a regular file.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    except (OSError, ValueError) as err:  # a loop of links, a name too long, a file as folder, a null byte
        raise _unwritable(path, err) from err
    for is_kind, kind, advice in _KINDS:
        if is_kind(found.st_mode):
            wanted = "the name of a file" if kind == "a folder" else "a file"
            raise RunLogError(str(path), came=kind, wanted=wanted, advice=advice)
    return Path(os.path.realpath(path)), stat.S_IMODE(found.st_mode)


def _unwritable(path: str | os.PathLike[str], err: Exception) -> RunLogError:
    return RunLogError(str(path), came=f"{type(err).__name__}: {err}", wanted="a place to write to")
