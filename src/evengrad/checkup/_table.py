"""The table of a checkup: one row per layer, a bar for decades."""

from __future__ import annotations

from math import isfinite, log10

from evengrad.nouns import LayerReading, Reading, printable

BAR_CELLS = 16
LEAST_DECADES = 8.0  # what a bar spans at the least, so that a healthy model shows full bars
LEVELS = "▁▂▃▄▅▆▇█"
LONGEST_NAME = 36


def table(reading: Reading) -> str:
    """Draw the layers of a reading.

    The bar is the gradient norm at the layer's output on a logarithmic scale: full for the largest of all layers; its
    head says how many decades a cell stands for, half a one or more. A recurrent layer has a second row with the
    gradient at its input over time, a level per decade.
    """
    layers = [layer for layer in reading.layers if layer.grad_rms is not None or not layer.output_finite]
    layers = layers or list(reading.layers)
    norms = [layer.grad_norm for layer in layers if layer.grad_norm is not None and isfinite(layer.grad_norm)]
    largest = max(norms, default=0.0)
    span = max(LEAST_DECADES, *(log10(largest) - log10(norm) for norm in norms if norm > 0.0), 0.0)
    width = min(LONGEST_NAME, max([len(printable(layer.name)) for layer in layers] + [5]))
    kinds = min(20, max([len(layer.kind) for layer in layers] + [4]))
    scale = f"{span / BAR_CELLS:.1f} decades/cell"
    head = (
        f"{'layer':<{width}}  {'kind':<{kinds}}  {'act rms':>8}  {'grad rms':>8}  |{scale:<{BAR_CELLS}}|"
        f"  {'dW/W':>8}  {'zero':>5}  {'dead':>5}  {'sat':>5}"
    )
    rows = [head, "-" * len(head)]
    for layer in layers:
        rows.append(_row(layer, (largest, span), width, kinds))
        if layer.time_grad_rms:
            rows.append(f"{'':<{width}}  over time {_over_time(layer.time_grad_rms)}")
    return "\n".join(rows)


def _row(layer: LayerReading, scale: tuple[float, float], width: int, kinds: int) -> str:
    ratio = None
    if layer.weight_grad_norm is not None and layer.weight_norm:
        ratio = layer.weight_grad_norm / layer.weight_norm
    activation = layer.activation_rms if layer.output_finite else float("nan")
    return (
        f"{_shorten(printable(layer.name), width):<{width}}  {layer.kind[:kinds]:<{kinds}}  {_number(activation):>8}  "
        f"{_number(layer.grad_rms):>8}  |{bar(layer.grad_norm, *scale):<{BAR_CELLS}}|  {_number(ratio):>8}  "
        f"{layer.zero_frac:>5.0%}  {layer.dead_frac:>5.0%}  "
        + (f"{layer.saturated_frac:>5.0%}" if layer.saturated_frac is not None else f"{'':>5}")
    ).rstrip()


def bar(size: float | None, largest: float, span_decades: float = LEAST_DECADES) -> str:
    """Draw a size on a logarithmic scale: full at the largest, nothing left `span_decades` below it.

    Example:
        >>> bar(1.0, 100.0)
        '████████████'
        >>> bar(0.0, 100.0), bar(float("nan"), 100.0)
        ('', 'not finite')
    """
    if size is None or largest <= 0.0 or size == 0.0:
        return ""
    if not isfinite(size):
        return "not finite"
    cells = round(BAR_CELLS * (1.0 - (log10(largest) - log10(size)) / span_decades))
    return "█" * cells if cells > 0 else "▏"


def _over_time(profile: tuple[float, ...], most: int = 64) -> str:
    """Draw at most 64 time steps, earliest left, one level per decade below the largest."""
    chosen = [profile[round(index * (len(profile) - 1) / (most - 1))] for index in range(most)]
    chosen = list(profile) if len(profile) <= most else chosen
    largest = max((value for value in profile if isfinite(value)), default=0.0)
    cells = [_level(value, largest) for value in chosen]
    low = min((value for value in profile if isfinite(value)), default=0.0)
    return f"{''.join(cells)} {_number(profile[0])} to {_number(profile[-1])}, lowest {_number(low)}"


def _level(value: float, largest: float) -> str:
    if not isfinite(value):
        return "!"
    if value <= 0.0 or largest <= 0.0:
        return " "
    below = log10(largest) - log10(value)
    return LEVELS[max(0, len(LEVELS) - 1 - int(below))]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if not isfinite(value):
        return str(value)
    return "0" if value == 0.0 else f"{value:.1e}"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[-(width - 1) :]
