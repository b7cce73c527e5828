"""Messages over a pipe: one letter for the kind, eight bytes for the length, then the bytes."""

from __future__ import annotations

import struct
from typing import IO

HEAD = struct.Struct("!cQ")
PATIENCE = 1 << 16  # bytes before the first message; a start-up file of the interpreter may have printed some

START = b"\n\0evengrad\0\n"  # from here on the worker's output is messages
SETTINGS, PLAN, FORGET = b"S", b"P", b"F"  # to a worker
READY, BEGUN, TICK, RESULT = b"Y", b"B", b"T", b"R"  # from a worker


def write_frame(stream: IO[bytes], kind: bytes, *parts: bytes) -> None:
    """Write one message.

    Raises:
        OSError: The other end is gone.
    """
    stream.write(HEAD.pack(kind, sum(map(len, parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """Wait for the next message.

    Raises:
        EOFError: The other end is gone.
    """
    kind, length = HEAD.unpack(_exactly(stream, HEAD.size))
    return kind, _exactly(stream, length)


def wait_for_start(stream: IO[bytes]) -> None:
    """Read over what comes before the first message.

    Raises:
        EOFError: The other end is gone, or what it says is something else.
    """
    seen = b""
    while not seen.endswith(START):
        if len(seen) > PATIENCE:
            raise EOFError("no message")
        seen += _exactly(stream, 1)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = stream.read(min(count - len(data), 1 << 24))
        if not part:
            raise EOFError("the other end is gone")
        data += part
    return bytes(data)
