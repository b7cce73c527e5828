"""Hooks on every layer for one forward and backward, and the layer readings that they collect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import accumulate
from math import isnan
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from evengrad.nouns import LayerReading
from evengrad.probe._functional import FunctionalActivations
from evengrad.probe._kinds import (
    CONVOLUTIONS,
    RECURRENT,
    nonlinearity_of,
    own_parameters,
    parametrizations_of,
    plain_name,
    unit_dim_of,
)
from evengrad.probe._statistics import (
    ACTIVATION_FIELDS,
    GRADIENT_FIELDS,
    activation_vector,
    gradient_vector,
    is_additive_mask,
    norm,
    precise,
    time_profile,
)


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

    def see_gradient(self, gradient: Tensor | None) -> None:
        """Tensor hook at the output; torch calls it with None where only another output of the node is used."""
        if gradient is not None:
            self.gradient = gradient_vector(gradient)


@final
class Watch:
    """Watch one forward, and the backward that follows it.

    Args:
        model: Modules that own parameters, and modules without children, get a forward hook; non-linearities that are
            called as functions are seen through a torch-function mode.

    Leave the block after the forward and before the backward: what a checkpointed part computes again on the way back
    is not a second call. `inputs` then holds the leaf tensors that stand in for the inputs of recurrent modules; a
    backward by `torch.autograd.grad` must include them for their gradients to be computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.entries: list[Entry] = []
        self.inputs: list[Tensor] = []
        inner = parametrizations_of(model)
        named = {module: plain_name(name) for name, module in model.named_modules()}
        self._names = {module: name for module, name in named.items() if module not in inner}
        self._watched = {module: name for module, name in self._names.items() if is_layer(module)}
        self._calls: Counter[str] = Counter()
        self._open: list[nn.Module] = []
        self._channels_first = False
        self._handles: list[RemovableHandle] = []
        self._stack = ExitStack()

    def __enter__(self) -> Watch:
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._enter_module, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave_module, with_kwargs=True, always_call=True))
        self._stack.enter_context(FunctionalActivations(self._see_function))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter_module(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._open.append(module)
        if not isinstance(module, RECURRENT) or not args:
            return None
        return (self._with_gradient(args[0]), *args[1:]), kwargs

    def _with_gradient(self, value: Any) -> Any:
        """Stand in for a recurrent module's input that carries no gradient, so that one arrives there."""
        if isinstance(value, PackedSequence):
            return value._replace(data=self._with_gradient(value.data))
        if not isinstance(value, Tensor) or value.requires_grad or not value.is_floating_point():
            return value
        stand_in = value.detach().requires_grad_()
        self.inputs.append(stand_in)
        return stand_in

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._open and self._open[-1] is module:
            self._open.pop()
        if module not in self._watched:
            return
        output = next(float_tensors(result), None)
        if output is None:
            return
        entry = self._new_entry(self._watched[module] or "(model)", module, nonlinearity_of(module))
        entry.input_finite = _inputs_finite([*float_tensors(args), *float_tensors(list(kwargs.values()))])
        unit_dim = unit_dim_of(module, ndim=output.ndim, channels_first=self._channels_first)
        self._measure(entry, output, unit_dim)
        if not all(value is output for value in float_tensors(result)):
            self._all_outputs_finite(entry, result)
        if isinstance(module, CONVOLUTIONS) or weights_of(module):
            self._channels_first = isinstance(module, CONVOLUTIONS)
        if isinstance(module, RECURRENT) and args:
            self._watch_time(entry, module, args[0])

    def _new_entry(self, name: str, module: nn.Module | None, nonlinearity: str | None, kind: str = "") -> Entry:
        self._calls[name] += 1
        number = self._calls[name]
        entry = Entry(
            name if number == 1 else f"{name}#{number}",
            module,
            kind=kind or type(module).__name__,
            nonlinearity=nonlinearity,
        )
        self.entries.append(entry)
        return entry

    def _measure(self, entry: Entry, output: Tensor, unit_dim: int) -> None:
        entry.numel = output.numel()
        entry.units = output.shape[unit_dim] if output.ndim else 1
        entry.observations = entry.numel // max(entry.units, 1)
        entry.activation = activation_vector(output, unit_dim=unit_dim, nonlinearity=entry.nonlinearity)
        if output.requires_grad:
            output.register_hook(entry.see_gradient)

    def _all_outputs_finite(self, entry: Entry, result: Any) -> None:
        """A non-finite value in any output counts, not only in the one whose statistics are kept."""
        assert entry.activation is not None
        finite = _all_finite(list(float_tensors(result)))
        entry.activation[0] = finite.to(entry.activation)

    def _see_function(self, name: str, argument: Tensor, result: Tensor) -> None:
        module = self._open[-1] if self._open else None
        if module is None or nonlinearity_of(module) is not None or isinstance(module, RECURRENT):
            return
        if not (result.is_floating_point() or result.is_complex()):
            return
        prefix = self._names.get(module, "")
        entry = self._new_entry(f"{prefix}.{name}()" if prefix else f"{name}()", None, name, kind=name)
        entry.input_finite = _all_finite([argument])  # in place it is the result: none of these makes NaN of a number
        self._measure(entry, result, unit_dim_of(None, ndim=result.ndim, channels_first=self._channels_first))

    def _watch_time(self, entry: Entry, module: nn.Module, value: Any) -> None:
        if isinstance(value, PackedSequence):
            sizes = value.batch_sizes.tolist()  # already on the host
            if value.data.requires_grad:
                value.data.register_hook(lambda gradient: _see_packed_time(entry, gradient, sizes))
            return
        if not isinstance(value, Tensor) or not value.requires_grad or value.ndim < 2:
            return
        time_dim = 1 if getattr(module, "batch_first", False) and value.ndim == 3 else 0
        value.register_hook(lambda gradient: _see_time(entry, gradient, time_dim))

    def saw_non_finite(self) -> bool:
        """Tell whether an output so far is not finite; waits for the device, so ask only when something went wrong."""
        return any(entry.activation is not None and not bool(entry.activation[0]) for entry in self.entries)

    def readings(self, gradients: Mapping[Tensor, Tensor | None] | None) -> tuple[LayerReading, ...]:
        """Bring everything to the host, in one transfer per device.

        Args:
            gradients: The gradient of each parameter, None where there is none; None if there was no backward.
        """
        vectors = [vector for entry in self.entries for vector in _vectors(entry, gradients or {})]
        values = iter(_to_host(vectors))
        return tuple(_reading(entry, values, went_back=gradients is not None) for entry in self.entries)


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module is read as a layer: it owns parameters, or has no children."""
    return bool(own_parameters(module)) or next(module.children(), None) is None


def float_tensors(value: Any) -> Iterator[Tensor]:
    """Find the floating-point and complex tensors in what a module takes or gives, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, PackedSequence):
        yield from float_tensors(value.data)
    elif isinstance(value, dict):
        yield from float_tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from float_tensors(item)


def _all_finite(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.ones(())
    return torch.stack([torch.isfinite(tensor.detach()).all().to(tensors[0].device) for tensor in tensors]).all()


def all_finite(value: Any) -> bool:
    """Tell whether every floating-point tensor in an output is finite; waits for the device."""
    return bool(_all_finite(list(float_tensors(value))))


def _inputs_finite(tensors: list[Tensor]) -> Tensor:
    """Judge inputs: after the first one a mask may follow, zeros and minus infinities that are added to scores."""
    if not tensors:
        return torch.ones(())
    others = [torch.isfinite(tensor).all() | is_additive_mask(tensor) for tensor in tensors[1:]]
    return torch.stack([part.to(tensors[0].device) for part in (_all_finite(tensors[:1]), *others)]).all()


def _see_time(entry: Entry, gradient: Tensor, time_dim: int) -> None:
    entry.time = time_profile(gradient, time_dim=time_dim)


def _see_packed_time(entry: Entry, gradient: Tensor, sizes: list[int]) -> None:
    steps = [time_profile(step.unsqueeze(0), time_dim=0) for step in gradient.split(sizes)]
    entry.time = torch.cat(steps)


def weights_of(module: nn.Module | None) -> list[Tensor]:
    """List a module's own parameters of two or more dimensions."""
    if module is None:
        return []
    return [parameter for parameter in own_parameters(module) if parameter.ndim >= 2]


def _vectors(entry: Entry, gradients: Mapping[Tensor, Tensor | None]) -> list[Tensor]:
    """Everything numeric of an entry as vectors; NaN stands for "not there"."""
    assert entry.activation is not None
    device = entry.activation.device
    like = torch.empty(0, dtype=precise(device), device=device)
    weights = weights_of(entry.module)
    arrived = [gradient for weight in weights if (gradient := gradients.get(weight)) is not None]
    finite = torch.ones(()) if entry.input_finite is None else entry.input_finite
    head = torch.stack([part.to(like) for part in (finite, norm(weights), norm(arrived))])
    gradient = like.new_full((len(GRADIENT_FIELDS),), float("nan")) if entry.gradient is None else entry.gradient
    return [head, entry.activation, gradient.to(like), like if entry.time is None else entry.time.to(like)]


def _to_host(vectors: list[Tensor]) -> list[list[float]]:
    if not vectors:
        return []
    flat = torch.cat([vector.to(vectors[0]) for vector in vectors]).tolist()
    lengths = [vector.numel() for vector in vectors]
    return [flat[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]


def _reading(entry: Entry, values: Iterator[list[float]], *, went_back: bool) -> LayerReading:
    head, activation, gradient, time = next(values), next(values), next(values), next(values)
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
    )
