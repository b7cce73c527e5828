"""A model given a class of its own, derived from its class, that does something before or after its forward."""

import copyreg
from functools import wraps
from typing import Any

from torch import nn

from evengrad.nouns import TreatmentError


class Derived(nn.Module):
    """What the derived classes have in common: they are made anew when an instance is unpickled."""

    derived_from: tuple[type[nn.Module], type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__ or made[1][0] is not type(self):  # type: ignore[attr-defined]
            return made  # the model says itself how it is pickled
        return (_blank, (*_chain(type(self)), *made[1][1:]), *made[2:])


def derive_(model: nn.Module, addition: type[nn.Module], label: str) -> None:
    """Derive the class of a model, in place: its attributes, names and state stay, and `isinstance` holds.

    Args:
        model: Whose class is changed.
        addition: A class of a module with a `forward` that calls `super().forward`; stands before the model's class.
        label: Of the treatment, for the error.

    Raises:
        TreatmentError: The model's class cannot be derived from, as that of scripted modules, or its `forward` was
            replaced on the instance.
    """
    if "forward" in vars(model):  # it would be called, and not what is added
        raise TreatmentError(
            label, came=f"a {type(model).__name__} whose forward was replaced", wanted="one with its class's forward"
        )
    try:
        model.__class__ = _derived(type(model), addition)
    except TypeError as err:
        raise TreatmentError(
            label, came=f"a {type(model).__name__}: {err}"[:300], wanted="a model whose class can be derived from"
        ) from err


def _derived(base: type[nn.Module], addition: type[nn.Module]) -> type[nn.Module]:
    bases = (addition, base) if issubclass(base, Derived) else (Derived, addition, base)
    body = {"derived_from": (base, addition), "__module__": base.__module__, "__doc__": base.__doc__}
    body["forward"] = _signed(base, addition)
    return type(f"{addition.__name__.lstrip('_')}{base.__name__}", bases, body)


def _signed(base: type[nn.Module], addition: type[nn.Module]) -> Any:
    """Give the addition's forward the signature of the model's: what takes arguments by name asks for it."""

    @wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return addition.forward(self, *args, **kwargs)

    return forward


def _chain(kind: type[nn.Module]) -> tuple[type[nn.Module], tuple[type[nn.Module], ...]]:
    """Split a derived class into the class that it began with and what was added, in that order."""
    added: list[type[nn.Module]] = []
    while "derived_from" in vars(kind):
        kind, addition = kind.derived_from  # type: ignore[attr-defined]
        added.insert(0, addition)
    return kind, tuple(added)


def _blank(base: type[nn.Module], added: tuple[type[nn.Module], ...], *args: Any) -> nn.Module:
    kind = base
    for addition in added:
        kind = _derived(kind, addition)
    return kind.__new__(kind, *args)
