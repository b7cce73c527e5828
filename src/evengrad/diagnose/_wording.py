"""How numbers are written in messages."""


def figures(number: float) -> str:
    """Write three significant figures, with a power of ten where a number is long; a factor of one shows its precision.

    Example:
        >>> [figures(number) for number in (1.0, 0.5, 0.0451, 1037.0, 69026262.16)]
        ['1.00', '0.5', '0.0451', '1040', '6.9e+07']
    """
    text = f"{number:.3g}"
    if 1000.0 <= abs(number) < 1e5:
        return f"{float(text):.0f}"
    return "1.00" if text == "1" else text
