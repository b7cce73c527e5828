"""A reading whose gradients were those of a loss that had been multiplied."""

from dataclasses import replace

from evengrad.nouns import LayerReading, ParameterReading, Reading


def unscaled(reading: Reading, loss_scale: float) -> Reading:
    """Divide every gradient of a reading by what the loss was multiplied with.

    Shares of a gradient that are zero, tiny or not finite stay as they were seen: they say what the type could hold.
    """
    return replace(
        reading,
        grad_norms=tuple(norm / loss_scale for norm in reading.grad_norms),
        total_norm=_divided(reading.total_norm, loss_scale),
        layers=tuple(_layer(layer, loss_scale) for layer in reading.layers),
        weights=tuple(_parameter(weight, loss_scale) for weight in reading.weights),
    )


def _layer(layer: LayerReading, by: float) -> LayerReading:
    return replace(
        layer,
        grad_rms=_divided(layer.grad_rms, by),
        weight_grad_norm=_divided(layer.weight_grad_norm, by),
        time_grad_rms=tuple(value / by for value in layer.time_grad_rms),
    )


def _parameter(weight: ParameterReading, by: float) -> ParameterReading:
    return replace(weight, grad_rms=_divided(weight.grad_rms, by), grad_absmax=_divided(weight.grad_absmax, by))


def _divided(value: float | None, by: float) -> float | None:
    return None if value is None else value / by
