"""Putting a module in the place of another, under every name that it has, in words of code too."""

from typing import Any

from torch import nn

from evengrad.treat._forward_order import names_of

# Where a module keeps what `register_forward_hook` and its kin were given.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that hold the forward and backward hooks of a module, to be put into another."""
    return {key: value for key, value in vars(module).items() if key in HOOKS}


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has a forward or backward hook now."""
    return any(isinstance(held, dict) and held for held in hooks_of(module).values())


def replace_everywhere_(model: nn.Module, name: str, new: nn.Module) -> tuple[str, ...]:
    """Put a module where the named one is, under all of its names, and return them, the given one first."""
    old = model.get_submodule(name)
    names = (name, *(alias for alias in names_of(model, old) if alias != name))
    new.train(old.training) if not any(module is old for module in new.modules()) else _set_mode_(new, old)
    for alias in names:
        model.set_submodule(alias, new)
    return names


def alias_code(aliases: dict[str, tuple[str, ...]]) -> str:
    """Write the lines that give a shared module its other names; empty when nothing is shared."""
    pairs = [(alias, names[0]) for names in aliases.values() for alias in names[1:]]
    if not pairs:
        return ""
    return f"\nfor alias, name in {pairs!r}:\n    model.set_submodule(alias, model.get_submodule(name))"


def _set_mode_(new: nn.Module, old: nn.Module) -> None:
    """Give the new modules around an old one its mode, and leave the modes of those below it."""
    below = set(old.modules())
    for module in new.modules():
        if module not in below:
            module.training = old.training
