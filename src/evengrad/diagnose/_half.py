"""Whether a forward ran in float16: its numbers are on the grid of float16, whatever the weights are kept in."""

import struct
from math import isfinite

from evengrad.nouns import Reading

# A number of float32 is on the grid of float16 by chance once in 2^13 times.
FEWEST_NUMBERS = 2


def ran_in_float16(reading: Reading) -> bool:
    """Tell whether the layers with weights have given numbers of float16, as under autocast.

    Judged by their largest magnitudes and by the ends of the output's range: all of them are numbers of float16, and
    not all of bfloat16, whose grid is coarser.

    Example:
        >>> from evengrad.nouns import Ends, TensorReading
        >>> output = TensorReading(name="output", minimum=-0.3330078125, maximum=1.234375)
        >>> ran_in_float16(Reading(ends=Ends(output=output)))
        True
    """
    numbers = [layer.activation_absmax for layer in reading.layers if layer.weighted]
    output = reading.ends.output if reading.ends is not None else None
    numbers += [] if output is None else [output.minimum, output.maximum]
    numbers = [number for number in numbers if isfinite(number) and number != 0.0]
    return len(numbers) >= FEWEST_NUMBERS and all(map(_is_half, numbers)) and not all(map(_is_brain, numbers))


def _is_half(number: float) -> bool:
    try:
        return bool(struct.unpack("e", struct.pack("e", number))[0] == number)
    except OverflowError:
        return False


def _is_brain(number: float) -> bool:
    try:
        return bool(struct.unpack(">f", struct.pack(">f", number)[:2] + b"\0\0")[0] == number)
    except OverflowError:
        return False
