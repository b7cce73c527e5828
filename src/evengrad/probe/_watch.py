"""Hooks on every layer for one forward and backward, and the layer readings that they collect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evengrad.nouns import LayerReading
from evengrad.probe._functional import FunctionalActivations, attention_absmax
from evengrad.probe._kinds import (
    CONVOLUTIONS,
    FUNCTIONS,
    RECURRENT,
    nonlinearity_of,
    own_parameters,
    parametrizations_of,
    plain_name,
    unit_dim_of,
)
from evengrad.probe._sample_inside import UNKNOWN, inside
from evengrad.probe._statistics import activation_vector, is_additive_mask
from evengrad.probe._through_time import data_of, stand_in_for, watch_time
from evengrad.probe._watch_entries import Entry, float_tensors, reading_of, to_host, vectors_of, weights_of


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
        self._paused = False
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
        given = stand_in_for(module, args[0])
        if given is not args[0]:
            self.inputs.append(data_of(given))
        return (given, *args[1:]), kwargs

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
        entry.training = module.training
        self._measure(entry, output, unit_dim)
        self._measure_inside(entry, module, (args, kwargs), result)
        if not all(value is output for value in float_tensors(result)):
            self._all_outputs_finite(entry, result)
        if isinstance(module, CONVOLUTIONS) or weights_of(module):
            self._channels_first = isinstance(module, CONVOLUTIONS)
        if isinstance(module, RECURRENT) and args:
            watch_time(module, args[0], entry.see_time)

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

    def _measure_inside(
        self, entry: Entry, module: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]], result: Any
    ) -> None:
        """Look at gates and attention scores; what is called for it is no part of the model."""
        self._paused = True
        try:
            found = inside(module, 0, *given, result)
        except UNKNOWN:
            found = None
        self._paused = False
        if found is not None and found.ndim:
            entry.gates = found
        else:
            entry.logit = found

    def _all_outputs_finite(self, entry: Entry, result: Any) -> None:
        """A non-finite value in any output counts, not only in the one whose statistics are kept."""
        assert entry.activation is not None
        finite = _all_finite(list(float_tensors(result)))
        entry.activation[0] = finite.to(entry.activation)

    def _see_function(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> None:
        module = self._open[-1] if self._open else None
        if self._paused or module is None or nonlinearity_of(module) is not None:
            return
        if isinstance(module, (*RECURRENT, nn.Softmax)) or not (result.is_floating_point() or result.is_complex()):
            return
        prefix = self._names.get(module, "")
        nonlinearity = name if name in FUNCTIONS else None
        entry = self._new_entry(f"{prefix}.{name}()" if prefix else f"{name}()", None, nonlinearity, kind=name)
        # In place the argument is the result: none of these makes NaN of a number.
        entry.input_finite = _inputs_finite([*float_tensors(args), *float_tensors(kwargs)])
        entry.training = module.training
        try:
            entry.logit = attention_absmax(name, args, kwargs)
        except UNKNOWN:
            entry.logit = None
        unit_dim = unit_dim_of(None, ndim=result.ndim, channels_first=self._channels_first and nonlinearity is not None)
        self._measure(entry, result, unit_dim)

    def saw_non_finite(self) -> bool:
        """Tell whether an output so far is not finite; waits for the device, so ask only when something went wrong."""
        return any(entry.activation is not None and not bool(entry.activation[0]) for entry in self.entries)

    def readings(self, gradients: Mapping[Tensor, Tensor | None] | None) -> tuple[LayerReading, ...]:
        """Bring everything to the host, in one transfer per device.

        Args:
            gradients: The gradient of each parameter, None where there is none; None if there was no backward.
        """
        vectors = [vector for entry in self.entries for vector in vectors_of(entry, gradients or {})]
        values = iter(to_host(vectors))
        return tuple(reading_of(entry, values, went_back=gradients is not None) for entry in self.entries)


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module is read as a layer: it owns parameters, or has no children; a scripted one has no hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    return bool(own_parameters(module)) or next(module.children(), None) is None


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
