"""What is known of a training before its first step: the optimizer, who is left out, and where the code is."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import Setup
from evengrad.probe._kinds import plain_name
from evengrad.probe._untrained import as_drawn

MOST_SOURCES = 200
MOST_ITEMS = 256  # of one list or mapping
DEEPEST = 3
OF_TORCH = frozenset(vars(nn.Module()))  # attributes in which torch keeps what is registered
NOT_THEIRS = frozenset({"torch", "evengrad"})


def setup_of(
    model: nn.Module, optimizers: Sequence[Optimizer] = (), parameters: Mapping[str, Tensor] | None = None
) -> Setup:
    """Look at a model and its optimizers, once, before they train.

    `left_out` is empty where there is no optimizer, as nobody knows who will train what. `unregistered` names modules
    and parameters in lists, tuples and mappings of a module (three deep at most) that nobody registers anywhere in the
    model, that require a gradient, and that no optimizer holds. `untrained` are those that look as drawn, see
    `as_drawn`; whether anything moves them, only the run can show.

    Args:
        model: The model.
        optimizers: Those that train it.
        parameters: Of which `numels` tells the sizes, by their names; None for those of the model.

    Cost: One walk over modules, parameters and their attributes; no file is read. Numbers of an optimizer that it keeps
        on an accelerator are waited for, and those of 200 weights that nothing trains.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> setup = setup_of(model, [torch.optim.AdamW(model[0].parameters(), weight_decay=0.1)])
        >>> setup.optimizer, setup.eps, setup.weight_decay, setup.momentum
        ('AdamW', 1e-08, 0.1, 0.9)
        >>> setup.left_out, setup.numels
        (('1.weight', '1.bias'), (6, 2, 2, 1))
    """
    return setup_and_untrained(model, optimizers, parameters)[0]


def setup_and_untrained(
    model: nn.Module, optimizers: Sequence[Optimizer] = (), parameters: Mapping[str, Tensor] | None = None
) -> tuple[Setup, dict[str, Tensor]]:
    """Do as `setup_of`, and give the untrained weights by their names."""
    named = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    groups = [group for optimizer in optimizers for group in _groups(optimizer)]
    held = {id(parameter) for group in groups for parameter in group.get("params", ())}
    left_out = [name for name, one in named.items() if one.requires_grad and id(one) not in held] if held else []
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    hidden = dict(_unregistered(model, held))
    inside = {name: one for place, thing in hidden.items() for name, one in _inside(place, thing)}
    untrained = _untrained({name: named[name] for name in left_out}, {name: named[name] for name in frozen}, inside)
    epsilons = [number for group in groups if (number := _number(group.get("eps"))) is not None]
    setup = Setup(
        optimizer=" + ".join(type(optimizer).__name__ for optimizer in optimizers),
        eps=max(epsilons, default=None),
        weight_decay=max((_number(group.get("weight_decay")) or 0.0 for group in groups), default=0.0),
        momentum=max(map(_momentum, groups), default=0.0),
        numels=tuple(_numel(parameter) for parameter in (named if parameters is None else parameters).values()),
        left_out=tuple(left_out),
        frozen=tuple(frozen),
        unregistered=tuple(hidden),
        untrained=tuple(untrained),
        sources=tuple(_sources(model)),
    )
    return setup, untrained


def _untrained(*kinds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights that are as drawn, each kind judged by itself."""
    return {name: kind[name] for kind in kinds for name in as_drawn(kind)}


def _inside(place: str, thing: nn.Module | nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    if isinstance(thing, nn.Parameter):
        yield place, thing
    else:
        yield from ((f"{place}.{plain_name(name)}", one) for name, one in thing.named_parameters())


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Give the parameter groups, each with the defaults that it does not set itself."""
    return [{**optimizer.defaults, **group} for group in optimizer.param_groups]


def _number(value: Any) -> float | None:
    """Read a setting; None for a pair, as Adafactor's epsilons, of which neither is what others call by that name."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number or (isinstance(value, Tensor) and value.ndim == 0) else None


def _momentum(group: Mapping[str, Any]) -> float:
    betas = group.get("betas")
    first = betas[0] if isinstance(betas, tuple | list) and betas else group.get("momentum")
    return _number(first) or 0.0


def _numel(parameter: Tensor) -> int:
    return 0 if nn.parameter.is_lazy(parameter) else parameter.numel()


def _unregistered(model: nn.Module, held: set[int]) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    modules = dict(model.named_modules())
    known = {id(module) for module in modules.values()} | held
    known |= {id(parameter) for parameter in model.parameters()}
    told: set[int] = set()
    for name, module in modules.items():
        prefix = plain_name(name)
        for attribute, value in vars(module).items():
            if attribute in OF_TORCH or not isinstance(value, list | tuple | dict):
                continue
            start = f"{prefix}.{attribute}" if prefix else attribute
            for place, thing in _things(start, value, DEEPEST):
                if id(thing) not in told and _trains_unseen(thing, known):
                    told.add(id(thing))
                    yield place, thing


def _things(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Find modules and parameters in nested containers; whatever else is there is left alone."""
    if isinstance(value, nn.Module | nn.Parameter):
        yield name, value
    elif depth and isinstance(value, list | tuple):
        for place, item in enumerate(value[:MOST_ITEMS]):
            yield from _things(f"{name}[{place}]", item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in list(value.items())[:MOST_ITEMS]:
            yield from _things(f"{name}[{key!r:.40}]", item, depth - 1)


def _trains_unseen(thing: nn.Module | nn.Parameter, known: set[int]) -> bool:
    if id(thing) in known:
        return False
    parameters: Iterable[nn.Parameter] = [thing] if isinstance(thing, nn.Parameter) else thing.parameters()
    return any(parameter.requires_grad and id(parameter) not in known for parameter in parameters)


def _sources(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Tell where the forward of each module stands that is not torch's; what was typed into a prompt has no place."""
    places: dict[type, str | None] = {}
    found = 0
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in places:
            places[kind] = _place(kind)
        place = places[kind]
        if place is not None and found < MOST_SOURCES:
            found += 1
            yield plain_name(name) or "(model)", place


def _place(kind: type[nn.Module]) -> str | None:
    """Give file, line and name of a class's forward; None where it is torch's own or has no file."""
    try:
        forward = inspect.unwrap(kind.forward)
        owner = str(getattr(forward, "__module__", "")).split(".")[0]
        code = getattr(forward, "__code__", None)
        if owner in NOT_THEIRS or kind.__module__.split(".")[0] in NOT_THEIRS or not isinstance(code, CodeType):
            return None
        path = Path(code.co_filename)
        if not path.is_file():
            return None
        name = getattr(forward, "__qualname__", "forward").split("<locals>.")[-1]
        return f"{_shown(path)}:{code.co_firstlineno} in {name}"
    except (OSError, ValueError, AttributeError, TypeError):  # a file name that is none, wrappers in a circle
        return None


def _shown(path: Path) -> str:
    """Shorten a path: as seen from the working directory where it is inside, else its last two parts."""
    path = path.absolute()
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return Path(*path.parts[-2:]).as_posix()
