"""What trained parameters and their gradients are, and what a step does to them, from samples of their elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import prod, sqrt
from typing import Any, final

import torch
from torch import Tensor, nn

from evengrad.nouns import ParameterReading
from evengrad.probe._kinds import CONVOLUTIONS, RECURRENT
from evengrad.probe._sample import width_for
from evengrad.probe._sample_hooks import plain
from evengrad.probe._statistics import precise
from evengrad.probe._weight_rows import AFTER, FIELDS, GRADIENT, WEIGHT, Cut, Rows

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
OF_UNITS = (nn.Linear, nn.Bilinear, *CONVOLUTIONS, *RECURRENT)  # a row is a unit even where it has one element only
HEAD = 2  # numbers before all others: whether a step was seen, and what the loss was scaled with
FLAGS = 3  # of each parameter: density and sampled elements of its gradient, whether they are those of the weight
WIDE = (torch.float64, torch.complex128)
CHEAP = 1 << 14  # elements of padding that are reduced in less time than forty operations take to start
NO_GRADIENT = (-1.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What is known of a parameter before anything is measured."""

    name: str
    numel: int
    fan_in: int
    dtype: str

    def reading(self, **numbers: Any) -> ParameterReading:
        """Make a reading."""
        return ParameterReading(name=self.name, numel=self.numel, fan_in=self.fan_in, dtype=self.dtype, **numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seat:
    """Where the numbers of a parameter are in the packed vector.

    Args:
        count: Elements of its sample.
        padding: Zeros in the row beyond it.
        start: Of the numbers in the order of `FIELDS`.
        flags: Of those of the gradient.
        spread: Of the norms of the difference to the mean unit; None where there are no units to compare.
    """

    count: int
    padding: int
    start: int
    flags: int
    spread: int | None


@final
class WeightSampler:
    """Read parameters and their gradients around an optimizer step, without changing it.

    `before()` belongs after the backward, `after()` after the step; what they copy, `packed()` reduces to one vector on
    the device. `readings` makes readings of a host copy of it, at any time later. Where `after()` was not called since
    `before()`, what the step did is None.

    Of a parameter of at most 4,096 elements all are read. A larger one is seen as a matrix, a row for each unit, and
    read at about 64 rows at even distances, and in each at blocks of 16 columns at even distances: 4,096 elements or a
    few less, the same ones each time. Numbers are of finite elements. Complex parameters are read as their real and
    imaginary parts. Of a sparse gradient larger than that the values are sampled: its rms, zeros and tiny elements are
    exact as far as the sample is, `still_frac` and `grad_row_spread` None.

    Only what can be looked at is read: of a sharded parameter (DTensor), an empty one, or one of integers the numbers
    are those of a `ParameterReading` that nobody has filled in. A parameter that is given twice is read under its first
    name. `moved_ratio` begins anew when a parameter changes device, dtype or shape.

    Args:
        parameters: By their names, in the order of the readings.
        model: Whose parameters they are, to know embeddings and transposed convolutions; None takes the first dimension
            of every weight for its units, and compares no units of a single input.

    Cost: 64 KiB of memory for a parameter of 4,096 elements or more. Two copies of the sample before the step, one
        after it; some forty operations for each of at most nine widths (on a CPU for each MiB of samples), and ten for
        each shape of samples. No host synchronisation, except where a large sparse gradient has to be coalesced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(4, 2, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sampler = WeightSampler(dict(model.named_parameters()), model)
        >>> (0.5 * model.weight.square().sum()).backward()
        >>> sampler.before()
        >>> optimizer.step()
        >>> sampler.after()
        >>> (reading,) = sampler.readings(sampler.packed().tolist())
        >>> round(reading.update_ratio, 6), reading.fan_in, reading.still_frac
        (0.1, 4, 0.0)
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], model: nn.Module | None = None) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for name, parameter in parameters.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                self._parameters[name] = parameter
        self._modules = {} if model is None else _modules_of(model)
        self._planned = False
        self._facts: list[_Facts] = []
        self._seats: list[_Seat | None] = []
        self._groups: list[tuple[Rows, list[nn.Parameter]]] = []
        self._size = 0
        self._by: Tensor | None = None
        self._flags: list[float] = []
        self._sampled = self._stepped = False

    def before(self, by: Tensor | None = None, gradients: Mapping[Tensor, Tensor | None] | None = None) -> None:
        """Sample weights and gradients: after the backward, before anything clips, and before the step.

        Args:
            by: What a GradScaler has multiplied the loss with, of one element; None for nothing.
            gradients: The gradient of each parameter; None takes those in `.grad`.
        """
        self._forget()
        self._by = by
        with torch.no_grad():
            if not self._planned or self._has_changed():
                self._plan()
            try:
                self._take_before(gradients)
            except RuntimeError:  # another shape than planned for; a true error comes again
                self._plan()
                self._take_before(gradients)
        self._sampled = True

    def after(self) -> None:
        """Sample the weights again: after the step, and before anything else changes them."""
        if not self._sampled:
            return
        with torch.no_grad():
            if self._has_changed():
                return
            for rows, members in self._groups:
                rows.take(AFTER, [_real(parameter) for parameter in members])
        self._stepped = True

    def packed(self) -> Tensor:
        """Reduce what was sampled.

        Returns:
            One dimension, float64 where the device has it, on the parameters' device: the first accelerator where they
            are on several. Empty when there is nothing to read. `readings` wants a host copy of it.
        """
        if not self._sampled or not self._groups:
            return torch.empty(0, device="cpu")
        with torch.no_grad():
            vectors = [vector for rows, _ in self._groups for vector in rows.statistics()]
            device = next((one.device for one in vectors if one.device.type != "cpu"), vectors[0].device)
            wide = precise(device)
            head = torch.full((HEAD,), float(self._stepped), device=device, dtype=wide)
            if self._by is None:
                head[1:].fill_(1.0)
            else:
                head[1:].copy_(self._by.detach().reshape(1), non_blocking=True)
            flags = torch.tensor(self._flags, dtype=wide).to(device, non_blocking=True)
            return torch.cat([head, flags, *(one.to(device, wide, non_blocking=True) for one in vectors)])

    def readings(self, numbers: Sequence[float]) -> tuple[ParameterReading, ...]:
        """Make readings of what `packed()` gave, in the order of the parameters.

        Args:
            numbers: A host copy.

        Returns:
            A reading for each parameter; empty where there are no numbers, or where they are of a time before the
            parameters changed shape.
        """
        if not numbers or len(numbers) != self._size:
            return ()
        pairs = zip(self._facts, self._seats, strict=True)
        return tuple(facts.reading() if seat is None else _reading(facts, seat, numbers) for facts, seat in pairs)

    def _forget(self) -> None:
        self._sampled = self._stepped = False
        self._by = None
        self._flags = []

    def _has_changed(self) -> bool:
        """Tell whether a parameter is elsewhere, or of another dtype, than planned for."""
        for rows, members in self._groups:
            device = rows.device
            for parameter, cut in zip(members, rows.cuts, strict=True):
                if parameter.dtype is not cut.dtype or parameter.device != device:
                    return True
        return False

    def _take_before(self, gradients: Mapping[Tensor, Tensor | None] | None) -> None:
        self._flags = []
        for rows, members in self._groups:
            rows.take(WEIGHT, [_real(parameter) for parameter in members])
            found = [one.grad if gradients is None else gradients.get(one) for one in members]
            dense: list[Tensor | None] = []
            for place, (gradient, cut) in enumerate(zip(found, rows.cuts, strict=True)):
                value = None if gradient is None else _dense(gradient, small=cut.whole)
                dense.append(value)
                if value is not None:
                    self._flags += (1.0, cut.count, 1.0)
                elif gradient is None or not gradient.is_sparse:
                    self._flags += NO_GRADIENT
                else:
                    self._flags += _take_sparse(rows, place, gradient)
            rows.take(GRADIENT, dense)

    def _plan(self) -> None:
        """Decide how everything is sampled, and where its numbers will be."""
        self._planned = True
        names = list(self._parameters)
        modules = {name: self._modules.get(id(parameter)) for name, parameter in self._parameters.items()}
        cuts: dict[str, Cut] = {}
        for name, parameter in self._parameters.items():
            value = plain(parameter)
            if value is not None and value.is_floating_point() and value.numel():
                cuts[name] = Cut(value, _unit_dim(parameter, modules[name]), parameter.dtype)
        keys = _keys({name: (self._parameters[name], cut) for name, cut in cuts.items()})
        order = sorted(cuts, key=keys.__getitem__)
        self._facts = [_facts(name, self._parameters[name], modules[name]) for name in names]
        self._groups = []
        for (_, _, width), members in groupby(order, key=lambda name: keys[name][:3]):
            found = list(members)
            parameters = [self._parameters[name] for name in found]
            dtype = torch.float64 if parameters[0].dtype in WIDE else torch.float32
            rows = Rows([cuts[name] for name in found], parameters[0].device, dtype, width)
            self._groups.append((rows, parameters))
        self._seat(order, cuts, modules)

    def _seat(self, order: list[str], cuts: Mapping[str, Cut], modules: Mapping[str, nn.Module | None]) -> None:
        """Find where the numbers of each parameter will be: head, flags, then what each group gives."""
        seats: dict[str, _Seat] = {}
        start = HEAD + FLAGS * len(order)
        names = iter(order)
        for rows, _ in self._groups:
            after = start + len(FIELDS) * len(rows.cuts)
            spreads: dict[int, int] = {}
            for run in rows.runs:
                for place in range(run.start, run.end):
                    spreads[place] = after
                    after += 2
            for place, cut in enumerate(rows.cuts):
                name = next(names)
                compared = cut.columns > 1 or isinstance(modules[name], OF_UNITS)
                seats[name] = _Seat(
                    count=cut.count,
                    padding=rows.width - cut.count,
                    start=start + len(FIELDS) * place,
                    flags=HEAD + FLAGS * len(seats),
                    spread=spreads.get(place) if compared else None,
                )
            start = after
        self._seats = [seats.get(name) for name in self._parameters]
        self._size = start


def _reading(facts: _Facts, seat: _Seat, numbers: Sequence[float]) -> ParameterReading:
    stepped, by = bool(numbers[0]), numbers[1] or 1.0
    density, sampled, aligned = numbers[seat.flags : seat.flags + FLAGS]
    (finite, grad_finite, norm, grad_norm, moved, update, first, grad_absmax, zeros, small, still, total) = numbers[
        seat.start : seat.start + len(FIELDS)
    ]
    finite = max(finite - seat.padding, 1.0)
    found: dict[str, float | None] = {"weight_rms": norm / sqrt(finite), "weight_mean": total / finite}
    found["moved_ratio"] = moved / first if first else None
    found["update_ratio"] = update / norm if stepped and norm else None
    if seat.spread is not None:
        found["row_spread"] = numbers[seat.spread] / norm if norm else 0.0
    if density < 0:
        return facts.reading(**found)
    beyond = seat.padding + seat.count - sampled  # zeros in the row that are not of the gradient
    here, zeros, small = max(sampled, 1.0), zeros - beyond, small - zeros
    found["grad_rms"] = grad_norm / sqrt(max(grad_finite - beyond, 1.0)) * sqrt(density) / by
    found["grad_absmax"] = grad_absmax / by
    found["grad_zero_frac"] = 1.0 - density * (1.0 - zeros / here)
    found["grad_tiny_frac"] = density * small / here
    if aligned and stepped and sampled > zeros:
        found["still_frac"] = still / (sampled - zeros)
    if aligned and seat.spread is not None:
        found["grad_row_spread"] = numbers[seat.spread + 1] / grad_norm if grad_norm else 0.0
    return facts.reading(**found)


def _facts(name: str, parameter: nn.Parameter, module: nn.Module | None) -> _Facts:
    known = not nn.parameter.is_lazy(parameter)
    return _Facts(
        name=name,
        numel=parameter.numel() if known else 0,
        fan_in=_fan_in(parameter, module) if known else 0,
        dtype=str(parameter.dtype).removeprefix("torch."),
    )


def _fan_in(parameter: nn.Parameter, module: nn.Module | None) -> int:
    if parameter.ndim < 2 or isinstance(module, EMBEDDINGS):
        return 0
    unit_dim = _unit_dim(parameter, module)
    inputs = prod(size for dim, size in enumerate(parameter.shape) if dim != unit_dim)
    return inputs // module.groups if isinstance(module, TRANSPOSED) else inputs


def _unit_dim(parameter: nn.Parameter, module: nn.Module | None) -> int | None:
    """Tell which dimension of a weight counts units: the second of transposed convolutions, and of GPT-2's `Conv1D`."""
    if parameter.ndim < 2:
        return None
    crosswise = type(module).__name__ == "Conv1D" and getattr(module, "nf", None) == parameter.shape[1]
    return int(isinstance(module, TRANSPOSED) or crosswise)


def _modules_of(model: nn.Module) -> dict[int, nn.Module]:
    """Find the module of each parameter; of a tied one that which computes with it, not the embedding."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and not isinstance(found.get(id(parameter)), OF_UNITS):
                found[id(parameter)] = module
    return found


def _keys(sampled: Mapping[str, tuple[nn.Parameter, Cut]]) -> dict[str, tuple[str, bool, int, int, int]]:
    """Say with what each parameter is reduced: device, precision and width; then in which order, by shape.

    Few samples are reduced with wider ones: that costs less than operations of their own.
    """
    kinds = {name: (str(one.device), one.dtype in WIDE, width_for(cut.count)) for name, (one, cut) in sampled.items()}
    counts = Counter(kinds.values())
    joined: dict[tuple[str, bool, int], int] = {}
    ascending = sorted(counts)
    for kind, wider in pairwise(ascending):
        if kind[:2] == wider[:2] and counts[kind] * (wider[2] - kind[2]) <= CHEAP:
            counts[wider] += counts[kind]
            joined[kind] = wider[2]
    for kind in reversed(ascending):
        if kind in joined:
            joined[kind] = joined.get((*kind[:2], joined[kind]), joined[kind])
    return {
        name: (*kind[:2], joined.get(kind, kind[2]), sampled[name][1].rows, sampled[name][1].columns)
        for name, kind in kinds.items()
    }


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _dense(gradient: Tensor, *, small: bool) -> Tensor | None:
    """Give a gradient as real numbers with one for each element of its parameter; None where that cannot be."""
    if gradient.is_sparse and small:
        gradient = gradient.to_dense()
    return plain(gradient)


def _take_sparse(rows: Rows, place: int, gradient: Tensor) -> tuple[float, float, float]:
    """Sample the values of a sparse gradient, and give its flags."""
    values = _real(gradient.coalesce().values())
    whole = gradient.numel() * (2 if gradient.is_complex() else 1)
    return values.numel() / whole, float(rows.take_values(place, values)), 0.0
