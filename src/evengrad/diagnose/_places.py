"""Where the ends of a model are, among the layers of a reading."""

from evengrad.diagnose._profile import without_call
from evengrad.nouns import LayerReading, Reading


def last_weighted(reading: Reading) -> LayerReading | None:
    """Find the last layer with weights."""
    return next((layer for layer in reversed(reading.layers) if layer.weighted), None)


def first_weighted(reading: Reading) -> LayerReading | None:
    """Find the first layer with weights that takes numbers, not ids."""
    return next((layer for layer in reading.layers if layer.weighted and "Embedding" not in layer.kind), None)


def last_layers(reading: Reading) -> tuple[str, ...]:
    """Name the last non-linearity when it stands behind all weights, else the last layer with weights.

    A model whose layers were not read is called `output`.
    """
    for layer in reversed(reading.layers):
        if layer.weighted:
            return (without_call(layer.name),)
        if layer.nonlinearity is not None or layer.kind in {"Softmax", "LogSoftmax", "Softmax2d", "Softmin"}:
            return (without_call(layer.name),)
    return ("output",)
