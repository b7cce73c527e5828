"""The activations that a model's output goes through, behind its last layer."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from evengrad.treat._activations import activation_name
from evengrad.treat._forward_order import DROPOUTS, is_sequence, places
from evengrad.treat._handed_on import handed_on

_PASSING = (*DROPOUTS, nn.Identity, nn.Flatten, nn.Unflatten)
_SOFTMAX = {nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax", nn.Softmin: "softmin", nn.Softmax2d: "softmax"}
# An output that is positive on purpose: a rate, a variance.
_ON_PURPOSE = frozenset({"softplus"})


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputActivation:
    """One activation on the output.

    Args:
        name: Its dotted name.
        kind: In torch's functional spelling.
        one_unit: Whether it is a softmax over a single unit, which is constant. Not known without a batch.
        elsewhere: Whether the same module is used inside the network too.
    """

    name: str
    kind: str
    one_unit: bool = False
    elsewhere: bool = False


def output_activations(model: nn.Module, batch_input: Any) -> tuple[OutputActivation, ...]:
    """List the activations between the last layer and the output, the last one first.

    With a batch, the first tensor of the output is followed back through modules that hand it on untouched; without
    one, the last entries of an `nn.Sequential` count.
    """
    if batch_input is None:
        return _last_entries(model)
    record = handed_on(model, batch_input)
    found: list[OutputActivation] = []
    calls = [use.place.module for use in record.uses]
    index = record.maker(record.output, len(record.uses))
    while index is not None:
        use = record.uses[index]
        kind = _kind_of(use.place.module)
        if kind is None and not isinstance(use.place.module, _PASSING):
            break
        if kind is not None:
            one_unit = "softm" in kind and _units(use.place.module, use.shape) == 1
            elsewhere = calls.count(use.place.module) > 1
            found.append(OutputActivation(name=use.place.name, kind=kind, one_unit=one_unit, elsewhere=elsewhere))
        index = record.maker(use.came, index)
    first = calls.index(model.get_submodule(found[-1].name)) if found else 0
    weighted = any(use.place.weighted for use in record.uses[:first])
    return tuple(each for each in found if each.name) if weighted else ()


def _last_entries(model: nn.Module) -> tuple[OutputActivation, ...]:
    weighted = any(place.weighted for place in places(model))
    found: list[OutputActivation] = []
    for name, module in reversed(_flat("", model)):
        kind = _kind_of(module)
        if kind is None and not isinstance(module, _PASSING):
            break
        if kind is not None and name:
            elsewhere = sum(each is module for _, each in _flat("", model)) > 1
            found.append(OutputActivation(name=name, kind=kind, elsewhere=elsewhere))
    return tuple(found) if weighted else ()


def _flat(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if not is_sequence(module):
        return [(name, module)]
    children = (
        (f"{name}.{key}" if name else key, child) for key, child in module._modules.items() if child is not None
    )
    return [entry for key, child in children for entry in _flat(key, child)]


def _kind_of(module: nn.Module) -> str | None:
    kind = next((_SOFTMAX[each] for each in type(module).__mro__ if each in _SOFTMAX), activation_name(module))
    return None if kind in _ON_PURPOSE else kind


def _units(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Count what a softmax runs over; without a dimension torch takes the second one of a matrix."""
    dim = -3 if isinstance(module, nn.Softmax2d) else getattr(module, "dim", None)
    if dim is None:
        dim = 0 if len(shape) in {0, 1, 3} else 1
    return shape[dim] if shape else 1
