"""The run directory: what makes it a run, and how small files get into it whole or not at all."""

import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evengrad.nouns import NewerRunError, NotARunError, RunLogError

FORMAT = "evengrad-run"
VERSION = 2  # of the directory; a reader refuses a larger one. 1: no weights, ends, leftover, fewer columns of layers
LARGEST_META_BYTES = 64 * 1024 * 1024
MOST_PARAMETERS = 1_000_000
LONGEST_NAME = 10_000  # characters

_META = "meta.json"
_UNFINISHED = re.compile(r"\.evengrad-.*\.tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """What holds for the whole run."""

    parameters: tuple[str, ...] = ()
    dtype: str = "float32"
    facts: Mapping[str, str]
    created: str = ""


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Say whether a directory is a run of evengrad, of this version or a newer one.

    Never raises: what cannot be read is not a run.

    Args:
        directory: Any path; it need not exist.

    Example:
        >>> is_run("no/such/directory")
        False
    """
    try:
        _plain_meta(Path(directory))
    except RunLogError:
        return False
    return True


def load_meta(directory: Path) -> Meta:
    """Read and check `meta.json`."""
    plain = _plain_meta(directory)
    where, version = str(directory / _META), plain.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RunLogError(f"{where}: version", came=repr(version)[:100], wanted="a whole number from 1")
    if version > VERSION:
        raise NewerRunError(
            str(directory),
            came=f"a run of version {version}",
            wanted=f"version {VERSION} or older",
            advice="update evengrad to read it",
        )
    parameters, dtype, facts = plain.get("parameters"), plain.get("dtype"), plain.get("facts", {})
    if not isinstance(parameters, list) or len(parameters) > MOST_PARAMETERS or not all(map(_is_name, parameters)):
        raise RunLogError(f"{where}: parameters", came=repr(parameters)[:100], wanted="a list of names")
    if not _is_name(dtype):
        raise RunLogError(f"{where}: dtype", came=repr(dtype)[:100], wanted="a name")
    if not isinstance(facts, dict) or not all(isinstance(text, str) for text in facts.values()):
        raise RunLogError(f"{where}: facts", came=repr(facts)[:100], wanted="texts by name")
    return Meta(parameters=tuple(parameters), dtype=str(dtype), facts=facts, created=str(plain.get("created", "")))


def open_or_create(directory: Path, meta: Meta) -> Meta:
    """Make the directory a run; when it is one already, return what `meta.json` says.

    Raises:
        NotARunError: It holds something else; nothing was written.
        RunLogError: It cannot be created or read.
    """
    try:
        if directory.exists() and not directory.is_dir():
            raise NotARunError(str(directory), came="a file", wanted="a run directory or a new name")
        if directory.exists() and _foreign(directory):
            return load_meta(directory)
        directory.mkdir(parents=True, exist_ok=True)
        _write_meta(directory, meta)
    except (OSError, ValueError) as err:  # ValueError: no path at all
        raise RunLogError(str(directory), came=str(err), wanted="a directory that can be written to") from err
    return meta


def bring_up_to_date(directory: Path, facts: Mapping[str, str]) -> None:
    """Give an existing run the version of the files that it gets now, and facts of this start.

    Args:
        directory: The run.
        facts: Those that count from now on; all others stay.

    Raises:
        RunLogError: It cannot be written to.
    """
    found, plain = load_meta(directory), _plain_meta(directory)
    wanted = plain | {"version": VERSION, "facts": {**found.facts, **facts}}
    if plain == wanted:
        return
    try:
        _write_plain(directory, wanted)
    except OSError as err:
        raise RunLogError(str(directory), came=str(err), wanted="a directory that can be written to") from err


def replace_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part."""
    unfinished = path.parent / f".evengrad-{uuid.uuid4().hex}.tmp"
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _write_meta(directory: Path, meta: Meta) -> None:
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": meta.parameters,
        "dtype": meta.dtype,
        "facts": dict(meta.facts),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_plain(directory, plain)


def _write_plain(directory: Path, plain: Mapping[str, Any]) -> None:
    data = json.dumps(plain, indent=1, allow_nan=False).encode()
    if len(data) > LARGEST_META_BYTES:
        raise RunLogError(
            "parameters and facts", came=f"{len(data)} bytes", wanted=f"at most {LARGEST_META_BYTES} bytes"
        )
    replace_whole(directory / _META, data)


def _plain_meta(directory: Path) -> dict[str, Any]:
    path = directory / _META
    try:
        if not path.is_file():
            raise NotARunError(
                str(directory),
                came="no meta.json" if directory.is_dir() else "a file" if directory.exists() else "nothing there",
                wanted="a run directory",
                advice="give the directory that `log=` named",
            )
        if path.stat().st_size > LARGEST_META_BYTES:
            raise RunLogError(str(path), came="a larger file", wanted=f"at most {LARGEST_META_BYTES} bytes")
        plain = json.loads(path.read_bytes())
    except OSError as err:
        raise RunLogError(str(directory), came=str(err), wanted="a directory that can be read") from err
    except (ValueError, RecursionError) as err:
        raise NotARunError(
            str(path), came=f"{type(err).__name__}: {err}"[:200], wanted="JSON as evengrad wrote it"
        ) from err
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise NotARunError(str(directory), came="a meta.json of something else", wanted=f'"format": "{FORMAT}" in it')
    return plain


def _foreign(directory: Path) -> list[str]:
    """Name what is in a directory, except what a process that was killed in `replace_whole` left there."""
    return [entry.name for entry in directory.iterdir() if not _UNFINISHED.fullmatch(entry.name)]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME
