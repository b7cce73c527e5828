"""Make text from a user's model safe to show: control characters become visible, long strings are shortened."""

LONGEST_NAME = 300  # characters of a name or a label
LONGEST_SENTENCE = 1200  # a message may hold several names
LONGEST_CODE = 100_000

_UNSAFE = dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFEFF, 0xFFFE, 0xFFFF), "\ufffd")
# Marks that turn the direction of writing: they can make a name look like another one.
_UNSAFE |= dict.fromkeys((0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
_UNSAFE |= {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421", 0x2028: "\u240a", 0x2029: "\u240a"}
_UNSAFE_BUT_LINES = {code: shown for code, shown in _UNSAFE.items() if code not in {0x09, 0x0A}}


def name(text: str) -> str:
    r"""Show a name on one line.

    Example:
        >>> name("a\x1b[31mb")
        'a␛[31mb'
    """
    return shortened_to(text, LONGEST_NAME).translate(_UNSAFE)


def sentence(text: str) -> str:
    """Show prose on one line."""
    return shortened_to(" ".join(text.split()), LONGEST_SENTENCE).translate(_UNSAFE)


def code(text: str) -> str:
    """Show code: line ends and tabs stay."""
    return shortened_to(with_lines(text).strip("\n"), LONGEST_CODE)


def with_lines(text: str) -> str:
    """Replace what a terminal or a browser would obey, except for line ends and tabs."""
    return text.replace("\r\n", "\n").translate(_UNSAFE_BUT_LINES)


def shortened_to(text: str, most: int) -> str:
    """Leave out the middle of a long string and say how much is gone.

    Example:
        >>> shortened_to("abcdefghij" * 10, 30)
        'abcdef… (90 left out) …ghij'
    """
    if len(text) <= most:
        return text
    note = f"… ({len(text) - most + 20} left out) …"
    kept = most - 20
    head = kept * 2 // 3
    return text[:head] + note + text[len(text) - (kept - head) :]


def tick(text: str, most: int) -> str:
    """Shorten a label for an axis: the end of a dotted name tells layers apart, so it stays."""
    shown = name(text)
    if len(shown) <= most:
        return shown
    return "…" + shown[len(shown) - most + 1 :]
