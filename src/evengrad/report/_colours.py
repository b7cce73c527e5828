"""The cividis scale, and a heat map as a PNG image that needs no script to be seen."""

import struct
import zlib

import numpy as np

from evengrad.report._grid import Grid

# Nuñez, Anderton, Renslow 2018 (10.1371/journal.pone.0199239): even in lightness and the same to colour-blind eyes.
CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
ZERO = "#dde1e7"  # lighter than any grey of the scale
BAD = "#e0352b"

_STEPS = 254  # of 256 palette places; the last two are zero and not finite


def scale() -> list[list[object]]:
    """Give the colour scale as plotly takes it."""
    return [[round(place / (len(CIVIDIS) - 1), 4), colour] for place, colour in enumerate(CIVIDIS)]


def png(grid: Grid, low: float, high: float) -> bytes:
    """Draw one pixel per cell, `low` to `high` decades over the scale."""
    share_LT = (np.nan_to_num(grid.decades_LT) - low) / max(high - low, 1e-9)
    pixel_LT = np.rint(np.clip(share_LT, 0.0, 1.0) * (_STEPS - 1)).astype(np.uint8)
    pixel_LT[grid.zero_LT] = _STEPS
    pixel_LT[grid.bad_LT] = _STEPS + 1
    rows, columns = pixel_LT.shape
    lines = np.hstack([np.zeros((rows, 1), np.uint8), pixel_LT])  # each line begins with its filter: none
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", _palette()),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _palette() -> bytes:
    stops_S3 = np.array([list(bytes.fromhex(colour[1:])) for colour in CIVIDIS], dtype=np.float64)
    places = np.linspace(0, len(CIVIDIS) - 1, _STEPS)
    ramp = np.stack([np.interp(places, range(len(CIVIDIS)), stops_S3[:, channel]) for channel in range(3)], axis=1)
    return np.rint(ramp).astype(np.uint8).tobytes() + bytes.fromhex(ZERO[1:]) + bytes.fromhex(BAD[1:])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
