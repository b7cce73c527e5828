"""What is seen of one call of one module, and the layer readings that are made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate
from math import isnan
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import LayerReading
from evengrad.probe._host_numbers import gradient_of, on_host
from evengrad.probe._kinds import batches_tracked_by, own_parameters
from evengrad.probe._statistics import ACTIVATION_FIELDS, gradient_vector, precise

Numbers = Tensor | tuple[float, ...] | None
"""What was measured: on its device still, or on the host already; None where there was nothing to measure."""

DEEPEST = 6  # how far into nested outputs one looks for tensors; objects may refer to themselves


@final
class Entry:
    """What the hooks saw of one call of one module; the numbers of an accelerator are still there."""

    def __init__(self, name: str, module: nn.Module | None, *, kind: str, nonlinearity: str | None) -> None:
        self.name = name
        self.module = module
        self.kind = kind
        self.nonlinearity = nonlinearity
        self.numel = self.units = self.observations = 0
        self.input_finite: Numbers = None
        self.activation: Numbers = None
        self.others_finite: Numbers = None  # all outputs, where there are several
        self.gradient: Numbers = None
        self.time: Tensor | None = None
        self.gates: Tensor | None = None
        self.logit: Tensor | None = None
        self.training = True
        self.number = 0  # in the graph of the calls
        tracked = batches_tracked_by(module)
        self.tracked = None if tracked is None else tracked.detach().clone()  # the model is put back as it was found

    def see_gradient(self, gradient: Tensor | None) -> None:
        """Tensor hook at the output; torch calls it with None where only another output of the node is used."""
        if gradient is not None:
            array = on_host(gradient)
            self.gradient = gradient_vector(gradient) if array is None else gradient_of(array)

    def see_time(self, profile: Tensor) -> None:
        """Keep the gradient at a recurrent module's input, step by step."""
        self.time = profile


def float_tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Find the floating-point and complex tensors in what a module takes or gives, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
        return
    for item in _parts(value) if depth < DEEPEST else ():
        yield from float_tensors(item, depth + 1)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    return []


def weights_of(module: nn.Module | None) -> list[Tensor]:
    """List a module's own parameters of two or more dimensions."""
    if module is None:
        return []
    return [parameter for parameter in own_parameters(module) if parameter.ndim >= 2]


def numbers_of(entry: Entry) -> list[Numbers]:
    """Everything numeric of an entry."""
    return [
        entry.input_finite,
        entry.activation,
        entry.others_finite,
        entry.gradient,
        entry.time,
        entry.gates,
        entry.logit,
        entry.tracked,
    ]


def to_host(numbers: list[Numbers]) -> list[tuple[float, ...]]:
    """Bring what is on devices to the host, in one transfer for each; nothing is an empty tuple."""
    there: dict[torch.device, list[Tensor]] = defaultdict(list)
    for one in numbers:
        if isinstance(one, Tensor):
            there[one.device].append(one)
    brought = {device: iter(_split(tensors, device)) for device, tensors in there.items()}
    return [next(brought[one.device]) if isinstance(one, Tensor) else one or () for one in numbers]


def _split(tensors: list[Tensor], device: torch.device) -> list[tuple[float, ...]]:
    flat = torch.cat([tensor.to(precise(device)).reshape(-1) for tensor in tensors]).tolist()
    lengths = [tensor.numel() for tensor in tensors]
    return [tuple(flat[end - length : end]) for end, length in zip(accumulate(lengths), lengths, strict=True)]


def reading_of(
    entry: Entry,
    numbers: Sequence[tuple[float, ...]],
    norms: tuple[float | None, float | None],
    *,
    after: tuple[str, ...] | None,
    gate: bool,
) -> LayerReading:
    """Make a reading.

    Args:
        entry: What was seen.
        numbers: Those of `numbers_of`, on the host.
        norms: Of the weights, and of their gradients.
        after: The calls before it.
        gate: Whether it is one.
    """
    input_finite, activation, others_finite, gradient, time, gates, logit, tracked = numbers
    stats = dict(zip(ACTIVATION_FIELDS, activation, strict=True))
    saturated = stats["saturated_frac"]
    return LayerReading(
        name=entry.name,
        kind=entry.kind,
        weighted=norms[0] is not None,
        nonlinearity=entry.nonlinearity,
        numel=entry.numel,
        units=entry.units,
        observations=entry.observations,
        activation_rms=stats["activation_rms"],
        activation_absmax=stats["activation_absmax"],
        zero_frac=stats["zero_frac"],
        dead_frac=stats["dead_frac"],
        saturated_frac=None if isnan(saturated) else saturated,
        grad_rms=gradient[1] if gradient else None,
        weight_norm=norms[0],
        weight_grad_norm=norms[1],
        input_finite=bool(not input_finite or input_finite[0]),
        output_finite=bool(stats["output_finite"]) and bool(not others_finite or others_finite[0]),
        grad_finite=bool(not gradient or gradient[0]),
        time_grad_rms=time,
        activation_mean=stats["activation_mean"],
        training=entry.training,
        tracked=int(tracked[0]) if tracked else None,
        logit_absmax=logit[0] if logit else None,
        gate_stuck_frac=gates[: len(gates) // 2],
        gate_mean=gates[len(gates) // 2 :],
        after=after,
        gate=gate,
    )
