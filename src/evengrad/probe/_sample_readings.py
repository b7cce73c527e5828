"""From the packed numbers of samples to layer readings, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import nn

from evengrad.nouns import LayerReading, SettingError
from evengrad.probe._kinds import CONVOLUTIONS, nonlinearity_of, unit_dim_of
from evengrad.probe._statistics import RELATIVE_SLOPES
from evengrad.probe._watch_entries import weights_of


@final
class About:
    """What is known of a module before it is called."""

    __slots__ = ("_unit_dims", "convolution", "kind", "module", "name", "nonlinearity", "saturating", "weighted")

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.kind = type(module).__name__
        self.nonlinearity = nonlinearity_of(module)
        self.saturating = self.nonlinearity if self.nonlinearity in RELATIVE_SLOPES else None
        self.weighted = bool(weights_of(module))
        self.convolution = isinstance(module, CONVOLUTIONS)
        self._unit_dims: dict[tuple[int, bool], int] = {}

    def units(self, shape: torch.Size, *, channels_first: bool) -> int:
        """Count the units of an output."""
        if not shape:
            return 1
        key = (len(shape), channels_first)
        dim = self._unit_dims.get(key)
        if dim is None:
            dim = self._unit_dims[key] = unit_dim_of(self.module, ndim=len(shape), channels_first=channels_first)
        return shape[dim]


class Seen(NamedTuple):
    """Where the numbers of one call are.

    Args:
        about: The module; None for what the first module took.
        shape: Of the output.
        elements: Sampled ones of the output.
        grad_elements: Sampled ones of the gradient; None when none arrived.
        padding: Zeros in the row beyond the sample of the output.
        padding_saturates: Whether these zeros count as saturated.
        start: Where in the packed vector the numbers begin, in the order of `FIELDS`.
    """

    about: About | None
    shape: torch.Size
    elements: int
    grad_elements: int | None
    padding: int
    padding_saturates: bool
    start: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the numbers of one `Sampler.packed()` stand for; made by the sampler, to be handed back to it.

    Args:
        calls: In the order of the forward pass.
        first_input: What the first module took.
        size: How many numbers there are.
    """

    calls: tuple[Seen, ...] = ()
    first_input: Seen | None = None
    size: int = 0


def layer_readings(numbers: Sequence[float], layout: Layout, loss_scale: float) -> tuple[LayerReading, ...]:
    """Make a reading of each call."""
    if len(numbers) != layout.size:
        raise SettingError(
            "numbers",
            came=f"{len(numbers)} numbers",
            wanted=f"the {layout.size} of the layout",
            advice="keep sampler.layout beside what packed() gave when they are read after the next packed()",
        )
    calls: dict[str, int] = {}
    finite = layout.first_input is None or _all_finite(layout.first_input, numbers)
    channels_first = False
    found: list[LayerReading] = []
    for seen in layout.calls:
        about = seen.about
        assert about is not None
        number = calls[about.name] = calls.get(about.name, 0) + 1
        units = about.units(seen.shape, channels_first=channels_first)
        name = about.name if number == 1 else f"{about.name}#{number}"
        reading = _reading(seen, numbers, name=name, units=units, input_finite=finite, loss_scale=loss_scale)
        found.append(reading)
        finite = finite and reading.output_finite
        if about.convolution or about.weighted:
            channels_first = about.convolution
    return tuple(found)


def _all_finite(seen: Seen, numbers: Sequence[float]) -> bool:
    return numbers[seen.start] - seen.padding >= seen.elements


def _reading(
    seen: Seen, numbers: Sequence[float], *, name: str, units: int, input_finite: bool, loss_scale: float
) -> LayerReading:
    finite, grad_finite, absmax, grad_absmax, norm, grad_norm, zeros, saturated = numbers[seen.start : seen.start + 8]
    about, count, grad_count, padding = seen.about, seen.elements, seen.grad_elements, seen.padding
    assert about is not None
    finite -= padding
    grad_rms: float | None = None
    if grad_count is not None:
        grad_finite -= padding + count - grad_count
        grad_rms = grad_absmax * grad_norm / max(grad_finite, 1.0) ** 0.5 / loss_scale
    saturated_frac: float | None = None
    if about.saturating is not None and count:
        saturated_frac = (saturated - padding * seen.padding_saturates) / count
    return LayerReading(
        name=name,
        kind=about.kind,
        weighted=about.weighted,
        nonlinearity=about.nonlinearity,
        numel=seen.shape.numel(),
        units=units,
        activation_rms=absmax * norm / max(finite, 1.0) ** 0.5,
        activation_absmax=absmax,
        zero_frac=(zeros - padding) / max(count, 1),
        saturated_frac=saturated_frac,
        grad_rms=grad_rms,
        input_finite=input_finite,
        output_finite=finite >= count,
        grad_finite=grad_count is None or grad_finite >= grad_count,
    )
