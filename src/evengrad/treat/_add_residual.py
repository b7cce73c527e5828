"""Give the path through the layers shortcuts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch import Tensor, nn
from torch.nn.utils import parametrize

from evengrad.nouns import Task, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activations import activation_name, is_custom_activation
from evengrad.treat._forward_order import (
    DROPOUTS,
    Place,
    followed_by_weighted,
    inside_torch,
    is_norm,
    is_sequence,
    parent_of,
    places,
)
from evengrad.treat._on_a_copy import not_run, nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._surgery import alias_code, replace_everywhere_

RESIDUAL_CODE = """\
class Residual(nn.Module):
    def __init__(self, *block):
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x):
        return x + self.block(x)

"""

Run = tuple[str, int, int]  # the name of an nn.Sequential, the first and the last index


@final
class Residual(nn.Module):
    """Add a block's input to its output: `x + block(x)`.

    Example:
        >>> import torch
        >>> Residual(nn.ReLU())(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  4.])
    """

    def __init__(self, *block: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        """Add the input to what the block makes of it."""
        result: Tensor = x + self.block(x)
        return result


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddResidual(AbstractTreatment):
    """Put shortcuts around the layers of a copy that give as many values as they take.

    In an `nn.Sequential` a layer with the norm, activation and dropout behind it becomes one block `x + block(x)`, in
    the place of the layer; `nn.Identity` stands where the others were, so that the names of what follows stay.
    Elsewhere a dense layer or a convolution (stride 1, same size) is wrapped alone. The last weighted layer and those
    inside torch's attention and transformer layers are left as they are. The weights stay, under longer names in the
    state. Without `batch_input` the copy is not run: a forward of one's own that reads `layer.weight` then breaks
    unnoticed, and `changes` names the layers for which that may be.

    Blocks add up: without a norm in them the output of n blocks after He's initialisation has about 2^(n/2) times the
    scale of the input. Combine with `AddNormalization`, put first, to hold it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> treated = AddResidual().treat(model)
        >>> treated.changes
        ('2 to 3: a shortcut around them',)
        >>> treated.subject[2], treated.subject[3]
        (Residual(
          (block): Sequential(
            (0): Linear(in_features=4, out_features=4, bias=True)
            (1): ReLU()
          )
        ), Identity())

    Source:
        He et al. 2016, arXiv 1512.03385.
    """

    effort: ClassVar[int] = 5
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "a path without shortcuts"

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Put shortcuts into a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with shortcuts: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Put shortcuts in, in place."""
        order = places(model, batch_input)
        runs = _runs(model, order)
        lone = _lone(model, order, runs)
        if not runs and not lone:
            raise nothing_found(self, "a layer inside the network that gives as many values as it takes")
        for run in runs:
            _join_(model, run)
        aliases = {name: replace_everywhere_(model, name, Residual(model.get_submodule(name))) for name in lone}
        said = _said(runs, aliases)
        wrapped = (*(f"{name}.{first}" if name else str(first) for name, first, _ in runs), *lone)
        return replace(said, changes=(*said.changes, *not_run(model, wrapped, batch_input)))


def _runs(model: nn.Module, order: tuple[Place, ...]) -> list[Run]:
    """Find, in each nn.Sequential, layers of equal width with the norm, activation and dropout behind them."""
    runs: list[Run] = []
    held: set[nn.Module] = set()  # a layer with its norm is an nn.Sequential too, and part of a run already
    for name, layers in model.named_modules():
        if not is_sequence(layers) or layers in held or "parametrizations" in name.split("."):
            continue
        if isinstance(parent_of(model, name), Residual) and name:
            continue  # a block that has its shortcut
        entries = _entries(layers)
        index = 0
        while index < len(entries):
            last = index
            if _can_be_block(order, entries[index]):
                last = _end_of_run(entries, index)
                runs.append((name, index, last))
                held.update(entries[index : last + 1])
            index = last + 1
    return runs


def _end_of_run(entries: list[nn.Module], index: int) -> int:
    wanted: tuple[Callable[[nn.Module], bool], ...] = (is_norm, _is_activation, _is_dropout)
    for fits in wanted:
        if index + 1 < len(entries) and fits(entries[index + 1]):
            index += 1
    return index


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, DROPOUTS)


def _is_activation(module: nn.Module) -> bool:
    return activation_name(module) is not None or is_custom_activation(module)


def _can_be_block(order: tuple[Place, ...], module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        parts = list(module)
        return len(parts) == 2 and is_norm(parts[1]) and _can_be_block(order, parts[0])
    return _keeps_shape(module) and followed_by_weighted(order, module)


def _lone(model: nn.Module, order: tuple[Place, ...], runs: list[Run]) -> list[str]:
    in_runs = {
        module
        for name, first, last in runs
        for entry in _entries(model.get_submodule(name))[first : last + 1]
        for module in entry.modules()
    }
    found: dict[str, None] = {}
    for place in order:
        if not place.name or place.module in in_runs or inside_torch(model, place.name):
            continue
        parent = parent_of(model, place.name)
        in_sequence = is_sequence(parent)
        if not in_sequence and _keeps_shape(place.module) and followed_by_weighted(order, place.module):
            found[place.name] = None
    return list(found)


def _keeps_shape(module: nn.Module) -> bool:
    """Tell whether a layer gives as many values as it takes, at the same positions."""
    if parametrize.is_parametrized(module):
        return False
    if isinstance(module, nn.Linear):
        return module.in_features == module.out_features
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or module.in_channels != module.out_channels:
        return False
    if any(step != 1 for step in module.stride):
        return False
    if isinstance(module.padding, str):
        return module.padding == "same"
    reach = (gap * (size - 1) for gap, size in zip(module.dilation, module.kernel_size, strict=True))
    return all(2 * padding == needed for padding, needed in zip(module.padding, reach, strict=True))


def _join_(model: nn.Module, run: Run) -> None:
    name, first, last = run
    layers = model.get_submodule(name)
    block = Residual(*_entries(layers)[first : last + 1])
    block.training = block.block.training = layers.training
    for index, key in enumerate(tuple(layers._modules)):
        if first <= index <= last:
            setattr(layers, key, block if index == first else nn.Identity().train(layers.training))


def _entries(sequence: nn.Module) -> list[nn.Module]:
    return [module for module in sequence._modules.values() if module is not None]


def _said(runs: list[Run], aliases: dict[str, tuple[str, ...]]) -> Change:
    changes = []
    for name, first, last in runs:
        prefix = f"{name}." if name else ""
        where = f"{prefix}{first}" if first == last else f"{prefix}{first} to {prefix}{last}"
        changes.append(f"{where}: a shortcut around {'it' if first == last else 'them'}")
    code = RESIDUAL_CODE
    if runs:
        code += (
            f"\nfor name, first, last in {runs!r}:\n"
            "    layers = model.get_submodule(name)\n"
            "    layers[first] = Residual(*list(layers)[first:last + 1])\n"
            "    for index in range(first + 1, last + 1):\n"
            "        layers[index] = nn.Identity()"
        )
    if aliases:
        names = tuple(alias for found in aliases.values() for alias in found)
        changes.append(f"{shortened(names)}: a shortcut around each")
        code += (
            f"\nfor name in {list(aliases)!r}:\n"
            "    model.set_submodule(name, Residual(model.get_submodule(name)))" + alias_code(aliases)
        )
    return Change(changes=tuple(changes), code=code)
