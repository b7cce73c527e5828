"""Hooks on every layer for one forward and backward, and the layer readings that they collect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evengrad.nouns import LayerReading
from evengrad.probe._call_graph import CallGraph, outputs_beside
from evengrad.probe._functional import FunctionalActivations, attention_absmax
from evengrad.probe._host_numbers import activation_of, is_finite, is_mask, on_host
from evengrad.probe._kinds import (
    CONVOLUTIONS,
    FUNCTIONS,
    RECURRENT,
    calls_functions,
    nonlinearity_of,
    own_parameters,
    parametrizations_of,
    plain_name,
    unit_dim_of,
)
from evengrad.probe._parameter_norms import ParameterNorms
from evengrad.probe._sample_functions import outside
from evengrad.probe._sample_inside import UNKNOWN, inside
from evengrad.probe._statistics import RELATIVE_SLOPES, activation_vector, is_additive_mask
from evengrad.probe._through_time import data_of, stand_in_for, watch_time
from evengrad.probe._watch_entries import (
    Entry,
    Numbers,
    float_tensors,
    numbers_of,
    reading_of,
    to_host,
    weights_of,
)


@final
class Watch:
    """Watch one forward, and the backward that follows it.

    Args:
        model: Modules that own parameters, and modules without children, get a forward hook; non-linearities that are
            called as functions are seen through a torch-function mode, which is on while a module whose forward may
            call some is running.

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
        self._callers = {module for module in self._names if calls_functions(module)}
        self._calls: Counter[str] = Counter()
        self._graph = CallGraph()
        self._open: list[nn.Module] = []
        self._channels_first = False
        self._paused = False
        self._handles: list[RemovableHandle] = []
        self._mode: Any = None
        self._depth = 0  # of the module for which the mode is on
        self._thread = 0

    def __enter__(self) -> Watch:
        self._thread = get_ident()
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._enter_module, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave_module, with_kwargs=True, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        self._leave_mode()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter_module(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._open.append(module)
        if self._mode is None and module in self._callers and get_ident() == self._thread:
            self._mode, self._depth = FunctionalActivations(self._see_function), len(self._open)
            self._mode.__enter__()
        if not isinstance(module, RECURRENT) or not args:
            return None
        given = stand_in_for(module, args[0])
        if given is not args[0]:
            self.inputs.append(data_of(given))
        return (given, *args[1:]), kwargs

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._open and self._open[-1] is module:
            self._open.pop()
            if len(self._open) < self._depth and get_ident() == self._thread:
                self._leave_mode()
        if module in self._watched:
            self._paused = True
            outside(self._see_module, module, args, kwargs, result)
            self._paused = False

    def _leave_mode(self) -> None:
        mode, self._mode, self._depth = self._mode, None, 0
        if mode is not None:
            mode.__exit__(None, None, None)

    def _see_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        outputs = list(float_tensors(result))
        if not outputs:
            return
        output = outputs[0]
        entry = self._new_entry(self._watched[module] or "(model)", module, nonlinearity_of(module))
        entry.input_finite = _inputs_finite([*float_tensors(args), *float_tensors(kwargs)])
        unit_dim = unit_dim_of(module, ndim=output.ndim, channels_first=self._channels_first)
        entry.training = module.training
        self._measure(entry, outputs_beside(output, outputs, module), unit_dim)
        self._measure_inside(entry, module, (args, kwargs), result)
        if any(other is not output for other in outputs):
            entry.others_finite = _finite(outputs)
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

    def _measure(self, entry: Entry, outputs: Sequence[Tensor], unit_dim: int) -> None:
        output = outputs[0]
        entry.numel = output.numel()
        entry.units = output.shape[unit_dim] if output.ndim else 1
        entry.observations = entry.numel // max(entry.units, 1)
        array = on_host(output)
        if array is None:
            entry.activation = activation_vector(output, unit_dim=unit_dim, nonlinearity=entry.nonlinearity)
        else:
            entry.activation = activation_of(array, unit_dim=unit_dim, nonlinearity=entry.nonlinearity)
        entry.number = self._graph.add(outputs, saturates=entry.nonlinearity in RELATIVE_SLOPES)
        if output.requires_grad:
            output.register_hook(entry.see_gradient)

    def _measure_inside(
        self, entry: Entry, module: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]], result: Any
    ) -> None:
        """Look at gates and attention scores."""
        try:
            found = inside(module, 0, *given, result)
        except UNKNOWN:
            found = None
        if found is not None and found.ndim:
            entry.gates = found
        else:
            entry.logit = found

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
        entry.input_finite = _inputs_finite([*float_tensors(args), *float_tensors(dict(kwargs))])
        entry.training = module.training
        try:
            entry.logit = attention_absmax(name, args, kwargs)
        except UNKNOWN:
            entry.logit = None
        unit_dim = unit_dim_of(None, ndim=result.ndim, channels_first=self._channels_first and nonlinearity is not None)
        self._measure(entry, [result], unit_dim)

    def saw_non_finite(self) -> bool:
        """Tell whether an output so far is not finite; waits for the device, so ask only when something went wrong."""
        seen = to_host([one for entry in self.entries for one in (entry.activation, entry.others_finite)])
        return any(numbers and not numbers[0] for numbers in seen)

    def readings(self, norms: ParameterNorms) -> tuple[LayerReading, ...]:
        """Bring everything to the host, in one transfer for each device.

        Args:
            norms: Of the model's parameters, and of their gradients where there was a backward.
        """
        numbers = [numbers_of(entry) for entry in self.entries]
        values = iter(to_host([one for some in numbers for one in some]))
        after = self._graph.after([entry.number for entry in self.entries])
        return tuple(
            reading_of(
                entry,
                [next(values) for _ in some],
                norms.of_weights(weights_of(entry.module)),
                after=None if places is None else tuple(self.entries[place].name for place in places),
                gate=self._graph.is_gate(entry.number),
            )
            for entry, some, places in zip(self.entries, numbers, after, strict=True)
        )


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module is read as a layer: it owns parameters, or has no children; a scripted one has no hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    return bool(own_parameters(module)) or next(module.children(), None) is None


def all_finite(value: Any) -> bool:
    """Tell whether every floating-point tensor in an output is finite; waits for the device."""
    return all(bool(one[0]) for one in to_host([_finite(list(float_tensors(value)))]))


def _finite(tensors: list[Tensor], *, masks: bool = False) -> Numbers:
    """Tell whether all is finite.

    Args:
        tensors: At least one; wherever they are.
        masks: Whether those after the first may be masks: zeros and minus infinities that are added to scores.
    """
    arrays = [on_host(tensor) for tensor in tensors]
    there = [array for array in arrays if array is not None]
    if len(there) == len(tensors):
        kept = (is_finite(array) or (masks and place > 0 and is_mask(array)) for place, array in enumerate(there))
        return (float(all(kept)),)
    device = next(tensor.device for tensor, array in zip(tensors, arrays, strict=True) if array is None)
    found = []
    for place, tensor in enumerate(tensors):
        one = torch.isfinite(tensor.detach()).all()
        found.append((one | is_additive_mask(tensor) if masks and place else one).to(device))
    return torch.stack(found).all()


def _inputs_finite(tensors: list[Tensor]) -> Numbers:
    return _finite(tensors, masks=True) if tensors else None
