"""The frames of an Arrow stream, found and checked before a decoder sees them.

Arrow has no checksum, and nanoarrow's decoder may crash the process on damaged bytes. So the last number of each batch
is the CRC-32 of all bytes of the file before it: the header, the earlier batches, and this one.
"""

import struct
import zlib
from dataclasses import dataclass

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # the end-of-stream marker of the Arrow format
SEAL_BYTES = 8
UNSEALED = 0x5EA1_0000_0000  # stands where the seal comes; larger than any CRC-32

_CONTINUATION = END[:4]
_PREFIX_BYTES = 8
_BODY_LENGTH = 4 + 2 * 3  # in a flatbuffer's table of fields: two sizes, then the fields; this is Message's fourth


def sealed(message: bytes, crc: int) -> tuple[bytes, int]:
    """Put the checksum into a batch; `crc` is that of all bytes before. Returns the batch and the crc after it."""
    assert message.endswith(UNSEALED.to_bytes(SEAL_BYTES, "little")), "the seal is not the last number of the batch"
    crc = zlib.crc32(memoryview(message)[:-SEAL_BYTES], crc)
    seal = crc.to_bytes(SEAL_BYTES, "little")
    return message[:-SEAL_BYTES] + seal, zlib.crc32(seal, crc)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """How much of a stream is good.

    Args:
        whole_bytes: Length of the header and the batches that are whole, with right checksums.
        batches: How many these are; a header without a batch is only known to be of the right length.
        ended: Whether the end marker follows.
    """

    whole_bytes: int
    batches: int
    ended: bool


def checked(data: bytes) -> Frames:
    """Walk over a stream up to its end or its first damage."""
    view = memoryview(data)
    whole_bytes = _frame_bytes(view)
    crc, batches = zlib.crc32(view[:whole_bytes]), 0
    while whole_bytes:
        size = _frame_bytes(view[whole_bytes:])
        frame = view[whole_bytes : whole_bytes + size]
        crc = zlib.crc32(frame[:-SEAL_BYTES], crc)
        if size < _PREFIX_BYTES + SEAL_BYTES or int.from_bytes(frame[-SEAL_BYTES:], "little") != crc:
            break
        crc = zlib.crc32(frame[-SEAL_BYTES:], crc)
        whole_bytes += size
        batches += 1
    ended = whole_bytes > 0 and view[whole_bytes : whole_bytes + len(END)] == END
    return Frames(whole_bytes=whole_bytes, batches=batches, ended=ended)


def _frame_bytes(view: memoryview) -> int:
    """Measure the message at the front: prefix, metadata, body; 0 when it is none or not all there."""
    if len(view) < _PREFIX_BYTES or view[:4] != _CONTINUATION:
        return 0
    try:
        (metadata_bytes,) = struct.unpack_from("<i", view, 4)
        if metadata_bytes <= 0:
            return 0
        metadata = view[_PREFIX_BYTES : _PREFIX_BYTES + metadata_bytes]
        (table,) = struct.unpack_from("<I", metadata)
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        (fields_bytes,) = struct.unpack_from("<H", metadata, fields)
        place = struct.unpack_from("<H", metadata, fields + _BODY_LENGTH)[0] if fields_bytes > _BODY_LENGTH else 0
        body_bytes = struct.unpack_from("<q", metadata, table + place)[0] if place else 0  # left out means 0
    except struct.error:
        return 0
    size = int(_PREFIX_BYTES + metadata_bytes + body_bytes)
    return size if body_bytes >= 0 and size <= len(view) else 0
