"""One log file: batches that are written whole, sealed with a checksum, and read up to the first damage."""

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from evengrad.nouns import RunLogError
from evengrad.runlog._arrow import Column, Encoder, Values, decoded
from evengrad.runlog._frames import END, UNSEALED, checked, sealed

SEAL = Column(name="crc32", kind="int64")  # the last column: 0, and in the last row of a batch its checksum

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)


@final
class AppendOnlyFile:
    """Append batches to a new file, each with one write, so that a reader never sees half of one for long."""

    def __init__(self, path: Path, columns: tuple[Column, ...], facts: Mapping[str, str]) -> None:
        self.path = path
        self._encoder = Encoder((*columns, SEAL), facts)
        self._whole_bytes = 0
        self._handle = os.open(path, _NEW, 0o666)
        self._links_count = os.fstat(self._handle).st_nlink > 0  # some network file systems always say 0
        try:
            header = self._encoder.header()
            self._write(header)
        except OSError:
            os.close(self._handle)
            path.unlink(missing_ok=True)
            raise
        self._crc = zlib.crc32(header)

    def append(self, columns: Mapping[str, Values], rows: int) -> None:
        """Write a batch; on OSError the file ends where it ended before."""
        seal = np.zeros(rows, dtype=np.int64)
        seal[-1] = UNSEALED
        message, crc = sealed(self._encoder.batch({**columns, SEAL.name: Values(flat=seal)}, rows), self._crc)
        self._write(message)
        self._crc = crc

    def finish(self) -> None:
        """Write the end marker and close."""
        try:
            self._write(END)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close without the end marker."""
        os.close(self._handle)

    def _write(self, data: bytes) -> None:
        if self._links_count and os.fstat(self._handle).st_nlink == 0:  # writes would succeed, into nowhere
            raise FileNotFoundError(2, "the file was removed", str(self.path))
        try:
            written = os.write(self._handle, data)
            while written < len(data):  # a full disk takes a part first and then says why
                written += os.write(self._handle, data[written:])
        except OSError:
            os.ftruncate(self._handle, self._whole_bytes)
            raise
        self._whole_bytes += len(data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What could be read of a file.

    Args:
        name: The file's name.
        batches: Rows and columns of each whole batch before the first damage.
        facts: The texts in its header.
        ended: Whether the end marker follows the last whole batch.
        torn_bytes: Bytes after the last whole batch (and the end marker) that cannot be read.
    """

    name: str
    batches: tuple[tuple[int, Mapping[str, Values]], ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False
    torn_bytes: int = 0


def scan(path: Path, columns_of: Callable[[dict[str, str]], tuple[Column, ...]]) -> Scan:
    """Read a file up to its first damage.

    Args:
        path: The file.
        columns_of: The columns that a file with these facts must have; ValueError for facts that cannot be.

    Raises:
        RunLogError: The file cannot be opened.
    """
    facts: dict[str, str] = {}

    def sealed_columns(found: dict[str, str]) -> tuple[Column, ...]:
        facts.update(found)
        return (*columns_of(found), SEAL)

    try:
        data = path.read_bytes()
    except OSError as err:
        raise RunLogError(str(path), came=str(err), wanted="a file that can be read") from err
    frames = checked(data)
    try:
        batches = tuple(decoded(data[: frames.whole_bytes], sealed_columns)) if frames.batches else ()
    except ValueError:  # a stream of something else; the caller says how many bytes are not ours
        return Scan(name=path.name, torn_bytes=len(data))
    torn_bytes = len(data) - frames.whole_bytes - (len(END) if frames.ended else 0)
    return Scan(name=path.name, batches=batches, facts=facts, ended=frames.ended, torn_bytes=torn_bytes)
