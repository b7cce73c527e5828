"""What is seen of one call of one module, and the layer readings that are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import accumulate
from math import isnan
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import LayerReading
from evengrad.probe._kinds import batches_tracked_by, own_parameters
from evengrad.probe._statistics import ACTIVATION_FIELDS, GRADIENT_FIELDS, gradient_vector, norm, precise

DEEPEST = 6  # how far into nested outputs one looks for tensors; objects may refer to themselves


@final
class Entry:
    """What the hooks saw of one call of one module; every number is still a tensor on its device."""

    def __init__(self, name: str, module: nn.Module | None, *, kind: str, nonlinearity: str | None) -> None:
        self.name = name
        self.module = module
        self.kind = kind
        self.nonlinearity = nonlinearity
        self.numel = self.units = self.observations = 0
        self.input_finite: Tensor | None = None
        self.activation: Tensor | None = None
        self.gradient: Tensor | None = None
        self.time: Tensor | None = None
        self.gates: Tensor | None = None
        self.logit: Tensor | None = None
        self.training = True
        tracked = batches_tracked_by(module)
        self.tracked = None if tracked is None else tracked.detach().clone()  # the model is put back as it was found

    def see_gradient(self, gradient: Tensor | None) -> None:
        """Tensor hook at the output; torch calls it with None where only another output of the node is used."""
        if gradient is not None:
            self.gradient = gradient_vector(gradient)

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


def vectors_of(entry: Entry, gradients: Mapping[Tensor, Tensor | None]) -> list[Tensor]:
    """Everything numeric of an entry as vectors; NaN stands for "not there"."""
    assert entry.activation is not None
    device = entry.activation.device
    like = torch.empty(0, dtype=precise(device), device=device)
    weights = weights_of(entry.module)
    arrived = [gradient for weight in weights if (gradient := gradients.get(weight)) is not None]
    finite = torch.ones(()) if entry.input_finite is None else entry.input_finite
    head = torch.stack([part.to(like) for part in (finite, norm(weights), norm(arrived))])
    gradient = like.new_full((len(GRADIENT_FIELDS),), float("nan")) if entry.gradient is None else entry.gradient
    some = (entry.time, entry.gates, entry.logit, entry.tracked)
    return [
        head,
        entry.activation,
        gradient.to(like),
        *(like if one is None else one.to(like).reshape(-1) for one in some),
    ]


def to_host(vectors: list[Tensor]) -> list[list[float]]:
    if not vectors:
        return []
    flat = torch.cat([vector.to(vectors[0]) for vector in vectors]).tolist()
    lengths = [vector.numel() for vector in vectors]
    return [flat[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]


def reading_of(entry: Entry, values: Iterator[list[float]], *, went_back: bool) -> LayerReading:
    head, activation, gradient, time, gates, logit, tracked = (next(values) for _ in range(7))
    stats = dict(zip(ACTIVATION_FIELDS, activation, strict=True))
    weighted = bool(weights_of(entry.module))
    saturated = stats["saturated_frac"]
    return LayerReading(
        name=entry.name,
        kind=entry.kind,
        weighted=weighted,
        nonlinearity=entry.nonlinearity,
        numel=entry.numel,
        units=entry.units,
        observations=entry.observations,
        activation_rms=stats["activation_rms"],
        activation_absmax=stats["activation_absmax"],
        zero_frac=stats["zero_frac"],
        dead_frac=stats["dead_frac"],
        saturated_frac=None if isnan(saturated) else saturated,
        grad_rms=None if entry.gradient is None else gradient[1],
        weight_norm=head[1] if weighted else None,
        weight_grad_norm=head[2] if weighted and went_back else None,
        input_finite=bool(head[0]),
        output_finite=bool(stats["output_finite"]),
        grad_finite=entry.gradient is None or bool(gradient[0]),
        time_grad_rms=tuple(time),
        activation_mean=stats["activation_mean"],
        training=entry.training,
        tracked=int(tracked[0]) if tracked else None,
        logit_absmax=logit[0] if logit else None,
        gate_stuck_frac=tuple(gates[: len(gates) // 2]),
        gate_mean=tuple(gates[len(gates) // 2 :]),
    )
