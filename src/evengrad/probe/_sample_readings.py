"""From the packed numbers of samples to layer readings, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evengrad.nouns import LayerReading, SettingError
from evengrad.probe._functional import SOFTMAX
from evengrad.probe._kinds import CONVOLUTIONS, FUNCTIONS, RECTIFIERS, SPECIAL, nonlinearity_of, unit_dim_of
from evengrad.probe._sample import FIELDS
from evengrad.probe._statistics import RELATIVE_SLOPES
from evengrad.probe._watch_entries import weights_of


@final
class About:
    """What is known of a module, or of a function that is called in one, before it is called.

    Args:
        name: The module's, or `module.function()`.
        module: None for a function.
        function: Its name.
    """

    __slots__ = (
        "_unit_dims",
        "batch_norm", "convolution",
        "function",
        "kind",
        "module",
        "name",
        "nonlinearity",
        "rectifies",
        "saturating",
        "special",
        "weighted",
        "with_kwargs",
    )  # fmt: skip

    def __init__(self, name: str, module: nn.Module | None, function: str = "") -> None:
        self.name = name
        self.module = module
        self.kind = function or type(module).__name__
        self.nonlinearity = nonlinearity_of(module) if module is not None else _known(function)
        self.function = self.nonlinearity or (SOFTMAX if isinstance(module, nn.Softmax) else "")  # that it calls itself
        self.saturating = self.nonlinearity if self.nonlinearity in RELATIVE_SLOPES else None
        self.rectifies = self.nonlinearity in RECTIFIERS
        self.weighted = bool(weights_of(module))
        self.convolution = isinstance(module, CONVOLUTIONS)
        self.batch_norm = isinstance(module, _BatchNorm)
        self.special = isinstance(module, SPECIAL)
        self.with_kwargs = isinstance(module, nn.MultiheadAttention)
        self._unit_dims: dict[tuple[int, bool], int] = {}

    def unit_dim(self, ndim: int, *, channels_first: bool) -> int:
        """Tell which dimension of an output counts units."""
        key = (ndim, channels_first)
        dim = self._unit_dims.get(key)
        if dim is None:
            first = channels_first and (self.module is not None or self.nonlinearity is not None)
            dim = self._unit_dims[key] = unit_dim_of(self.module, ndim=ndim, channels_first=first)
        return dim

    def units(self, shape: torch.Size, *, channels_first: bool) -> int:
        """Count the units of an output."""
        return shape[self.unit_dim(len(shape), channels_first=channels_first)] if shape else 1


def _known(function: str) -> str | None:
    return function if function in FUNCTIONS else None


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
        training: Whether the module was in training mode.
        units: Of a rectifier; None for all else.
        observations: How often each of these units was seen in the window; None for all else.
        places: Where further numbers are, by the field of the reading.
    """

    about: About | None
    shape: torch.Size
    elements: int
    grad_elements: int | None
    padding: int
    padding_saturates: bool
    start: int
    training: bool
    units: int | None
    observations: int | None
    places: Mapping[str, slice]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the numbers of one `Sampler.packed()` stand for; made by the sampler, to be handed back to it.

    Args:
        calls: In the order of the forward pass.
        first_input: What the first module took.
        size: How many numbers there are.
        after: The places of the calls that are directly before each in the graph; None where nobody knows.
        gates: Places of the calls that are gates.
    """

    calls: tuple[Seen, ...] = ()
    first_input: Seen | None = None
    size: int = 0
    after: tuple[tuple[int, ...] | None, ...] = ()
    gates: frozenset[int] = frozenset()


def layer_readings(numbers: Sequence[float], layout: Layout, loss_scale: float) -> tuple[LayerReading, ...]:
    """Make a reading of each call."""
    loss_scale = loss_scale or 1.0  # a scale that has come down to zero: the gradients are zero as well
    if len(numbers) != layout.size:
        raise SettingError(
            "numbers",
            came=f"{len(numbers)} numbers",
            wanted=f"the {layout.size} of the layout",
            advice="keep sampler.layout beside what packed() gave when they are read after the next packed()",
        )
    names = _names(layout)
    finite = layout.first_input is None or _all_finite(layout.first_input, numbers)
    channels_first = False
    found: list[LayerReading] = []
    for place, (seen, name) in enumerate(zip(layout.calls, names, strict=True)):
        about = seen.about
        assert about is not None
        units = about.units(seen.shape, channels_first=channels_first)
        before = layout.after[place] if layout.after else None
        of_graph = (None if before is None else tuple([names[one] for one in before]), place in layout.gates)
        reading = _reading((seen, name, *of_graph), numbers, units=units, input_finite=finite, loss_scale=loss_scale)
        found.append(reading)
        finite = finite and reading.output_finite
        if about.convolution or about.weighted:
            channels_first = about.convolution
    return tuple(found)


def _names(layout: Layout) -> list[str]:
    calls: dict[str, int] = {}
    names = []
    for seen in layout.calls:
        assert seen.about is not None
        name = seen.about.name
        number = calls[name] = calls.get(name, 0) + 1
        names.append(name if number == 1 else f"{name}#{number}")
    return names


def _all_finite(seen: Seen, numbers: Sequence[float]) -> bool:
    return numbers[seen.start] - seen.padding >= seen.elements


def _reading(
    call: tuple[Seen, str, tuple[str, ...] | None, bool],
    numbers: Sequence[float],
    *,
    units: int,
    input_finite: bool,
    loss_scale: float,
) -> LayerReading:
    seen, name, after, gate = call
    of = dict(zip(FIELDS, numbers[seen.start : seen.start + len(FIELDS)], strict=True))
    about, count, grad_count, padding = seen.about, seen.elements, seen.grad_elements, seen.padding
    assert about is not None
    finite, grad_finite = of["finite_count"] - padding, True
    grad_rms: float | None = None
    if grad_count is not None:
        of_gradient = of["grad_finite_count"] - padding - count + grad_count
        grad_finite = of_gradient >= grad_count
        grad_rms = of["grad_absmax"] * of["grad_relative_norm"] / max(of_gradient, 1.0) ** 0.5 / loss_scale
    saturated_frac: float | None = None
    if about.saturating is not None and count:
        saturated_frac = (of["saturated_count"] - padding * seen.padding_saturates) / count
    more = {field: numbers[place] for field, place in seen.places.items()}
    gates = more.get("gates", ())
    return LayerReading(
        name=name,
        kind=about.kind,
        weighted=about.weighted,
        nonlinearity=about.nonlinearity,
        numel=seen.shape.numel(),
        units=units if seen.units is None else seen.units,
        observations=seen.observations or (seen.shape.numel() // max(units, 1) if about.batch_norm else 0),
        activation_rms=of["absmax"] * of["relative_norm"] / max(finite, 1.0) ** 0.5,
        activation_absmax=of["absmax"],
        zero_frac=(of["zero_count"] - padding) / max(count, 1),
        dead_frac=more["dead"][0] if "dead" in more else 0.0,
        saturated_frac=saturated_frac,
        grad_rms=grad_rms,
        input_finite=input_finite,
        output_finite=finite >= count,
        grad_finite=grad_finite,
        time_grad_rms=tuple([value / loss_scale for value in more.get("time", ())]),
        activation_mean=of["absmax"] * of["relative_sum"] / max(finite, 1.0),
        training=seen.training,
        tracked=int(more["tracked"][0]) if "tracked" in more else None,
        logit_absmax=more["logit"][0] if "logit" in more else None,
        gate_stuck_frac=tuple(gates[: len(gates) // 2]),
        gate_mean=tuple(gates[len(gates) // 2 :]),
        after=after,
        gate=gate,
    )
