"""Reconnect what the optimizer does not train."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import Task, TreatmentError, in_words, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import changed_copy, only_for_tasks
from evengrad.treat._on_a_task import built, first_input
from evengrad.treat._optimizer_of import optimizer_of
from evengrad.treat._random_state import random_state_kept

NAME = "TrainEverything()"
OWN = frozenset(vars(nn.Module()))  # what torch itself keeps in a module


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectedModel:
    """Build a model, register what it holds in plain lists, and thaw it; can be pickled if the factory can."""

    factory: Callable[[], nn.Module]

    def __call__(self) -> nn.Module:
        return changed_copy(NAME, _connect_, self.factory(), batch_input=None).subject


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CompletedOptimizer:
    """Make an optimizer and add the parameters that it lacks; can be pickled if the factory can."""

    factory: Callable[[nn.Module], Optimizer]

    def __call__(self, model: nn.Module) -> Optimizer:
        optimizer = self.factory(model)
        missing = missing_of(model, optimizer)
        if missing:
            group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            named = group.pop("param_names", None) is not None
            optimizer.add_param_group({"params": list(missing.items()) if named else list(missing.values()), **group})
        return optimizer


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEverything(AbstractTreatment):
    """Train all of the model, in a copy of the task.

    Modules and parameters that the model keeps in plain lists, tuples or dictionaries, where torch does not see them,
    are registered under the same names; a list with other things in it stays, and its modules are registered beside
    it. Frozen parameters are thawed. What the optimizer does not hold is added to it
    as one more group, with the settings of its first group.

    A part that was frozen or left out on purpose (a pretrained body, a target network, a fixed encoding) is trained
    too: nothing in a model says what was meant. `changes` names every part; this is a question to you.

    What is refused: a task whose optimizer trains everything already, an optimizer that takes no further group (or no
    such parameters), and a model that does not run after it.

    Example:
        >>> TrainEverything().label
        'TrainEverything()'
    """

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "parts that the optimizer does not train"

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no optimizer."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no optimizer."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Reconnect everything in a copy of the task: `AbstractTreatment.treat_task`."""
        own_loop = getattr(task, "backward", None) is not None
        with random_state_kept():
            torch.manual_seed(seed)
            data = None if own_loop else first_input(task.train)
            torch.manual_seed(seed)
            treated = changed_copy(NAME, _connect_, built(task), batch_input=data)
        lonely = replace(task, model=lambda: treated.subject)
        missing = tuple(missing_of(treated.subject, optimizer_of(lonely, task.optimizer, seed)))
        if not missing and not treated.changes:
            raise TreatmentError(NAME, came="an optimizer that trains everything", wanted="one that does not")
        completed = CompletedOptimizer(factory=task.optimizer)
        try:
            completed(treated.subject)
        except Exception as err:  # an optimizer of the user's own: anything may come
            raise TreatmentError(
                NAME,
                came=in_words(err, when="when a group was added"),
                wanted="an optimizer that takes a further group",
            ) from err
        subject = replace(task, model=ConnectedModel(factory=task.model)) if treated.changes else task
        subject = replace(subject, optimizer=completed) if missing else subject
        added = (f"{shortened(missing)}: added to the optimizer",) if missing else ()
        code = [treated.code] if treated.code else []
        return Treated(
            subject=subject, changes=(*treated.changes, *added), code="\n".join([*code, *([CODE] if missing else [])])
        )


CODE = (
    "# right after the optimizer is made\n"
    "held = {id(value) for group in optimizer.param_groups for value in group['params']}\n"
    "missing = [value for value in model.parameters() if id(value) not in held]\n"
    "if missing:\n"
    "    first = {key: value for key, value in optimizer.param_groups[0].items() if key != 'params'}\n"
    "    optimizer.add_param_group({'params': missing, **first})"
)


def missing_of(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Name the parameters that can have a gradient and are not in the optimizer."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    return {name: value for name, value in model.named_parameters() if id(value) not in held and _trains(value)}


def _trains(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _connect_(model: nn.Module) -> Change:
    """Register and thaw, in place; the change has no sentence where there was nothing to do."""
    found = []
    while hidden := _hidden(model):  # what was registered may hide more
        setattr(model.get_submodule(hidden.owner), hidden.name, hidden.new)
        found.append(hidden)
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad and _trains(value)]
    for name in frozen:
        model.get_parameter(name).requires_grad_(True)
    names = tuple(f"{one.owner}.{one.name}".lstrip(".") for one in found)
    changes = [f"{shortened(names)}: registered, so that its parameters are the model's"] if names else []
    changes += [f"{shortened(tuple(frozen))}: thawed"] if frozen else []
    lines = [f"owner = model.get_submodule({one.owner!r})\nowner.{one.name} = {one.code}" for one in found]
    lines += ["model.requires_grad_(True)"] if frozen else []
    return Change(changes=tuple(changes), code="\n".join(lines))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hidden:
    """Something that a module keeps where torch does not see it.

    Args:
        owner: Name of the module.
        name: Name to register it under.
        new: What to register.
        code: The same in words of code, from `owner`.
    """

    owner: str
    name: str
    new: nn.Module | nn.Parameter
    code: str


def _hidden(model: nn.Module) -> _Hidden | None:
    """Find the first hidden thing; torch's own modules keep lists of what they have registered."""
    known = {id(one) for one in (*model.modules(), *model.parameters())}
    for owner, module in model.named_modules():
        kept = {} if type(module).__module__.startswith("torch.") else vars(module)
        for name, value in kept.items():
            if name not in OWN and name.isidentifier() and not all(id(part) in known for part in _parts(value)):
                container = _container(value, f"owner.{name}")
                if container is not None:
                    return _Hidden(owner=owner, name=name, new=container[0], code=container[1])
                if (single := _single(value, known)) is not None:
                    place, part, code = single
                    return _Hidden(owner=owner, name=f"{name}_{place}", new=part, code=code.format(f"owner.{name}"))
    return None


def _parts(value: Any) -> Iterator[nn.Module | nn.Parameter]:
    """Give the modules and parameters in a container, in containers in it too."""
    for item in _items(value):
        if isinstance(item, nn.Module | nn.Parameter):
            yield item
        else:
            yield from _parts(item)


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _container(value: Any, code: str) -> tuple[nn.Module, str] | None:
    """Make the container of torch that takes the place of a plain one, and write it; None where there is none."""
    items, keys = _items(value), list(value) if isinstance(value, dict) else range(len(value))
    inner = [
        _container(item, f"{code}[{key!r}]") if any(_parts(item)) else None
        for key, item in zip(keys, items, strict=True)
    ]
    made = [item if one is None else one[0] for item, one in zip(items, inner, strict=True)]
    kind = next((kind for kind in (nn.Module, nn.Parameter) if all(isinstance(item, kind) for item in made)), None)
    if kind is None or (isinstance(value, dict) and not all(_is_key(key) for key in keys)):
        return None
    name = f"{'Module' if kind is nn.Module else 'Parameter'}{'Dict' if isinstance(value, dict) else 'List'}"
    parts = [f"{code}[{key!r}]" if one is None else one[1] for key, one in zip(keys, inner, strict=True)]
    if any(inner) and isinstance(value, dict):
        code = "{" + ", ".join(f"{key!r}: {part}" for key, part in zip(keys, parts, strict=True)) + "}"
    elif any(inner):
        code = f"[{', '.join(parts)}]"
    container: nn.Module = getattr(nn, name)(dict(zip(keys, made, strict=True)) if isinstance(value, dict) else made)
    return container, f"nn.{name}({code})"


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and key != "" and "." not in key and not hasattr(nn.ModuleDict, key)


def _single(value: Any, known: set[int]) -> tuple[int, nn.Module | nn.Parameter, str] | None:
    """Find a hidden module that stands among other things: its place, itself, and how it is reached."""
    for place, item in enumerate(_items(value)):
        if isinstance(item, nn.Module | nn.Parameter) and id(item) not in known:
            return place, item, f"list({{}}.values())[{place}]" if isinstance(value, dict) else f"{{}}[{place}]"
    return None
