"""Find the models whose parameters an optimizer holds, in a script that was never asked for them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from torch import Tensor, fx, nn
from torch.optim import Optimizer

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
INNER_WRAPPERS = frozenset(WRAPPERS[1:])  # a user's own `module` inside a model stays
MOST_SCANS = 64  # a script with thousands of optimizers over loose tensors shall not pay for each


@final
class ModelsInMemory:
    """Know the outermost modules that are alive, and name an optimizer's parameters by them.

    They are looked up in the garbage collector's list of objects, when an optimizer comes whose parameters no known
    module has. So a model is found however it is called, also through `model.forward`, a method of its own or
    `torch.func`, and nothing is attached to any module: global module hooks slow every call of every module, make
    `torch.compile` warn at each call, and let it compile again when they go. Not found is a model that was made before
    `gc.freeze()`.

    References are weak: a model lives as long as without.

    Cost: One walk over all objects, 0.1 s for 300,000, for the first optimizer and for one with a new model.
    """

    def __init__(self) -> None:
        self._roots: list[weakref.ref[nn.Module]] = []
        self._scans = 0

    def naming(self, optimizer: Optimizer) -> tuple[nn.Module, str]:
        """Return a module that names the optimizer's parameters, and what to call it in a message."""
        wanted = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        roots, missing = _cover(self._alive(), wanted)
        if missing and self._scans < MOST_SCANS:
            self._scans += 1
            self._roots = [weakref.ref(root) for root in _outermost()]
            roots, missing = _cover(self._alive(), wanted)
        if not roots:
            return Naming({}, _places(optimizer)), "loose tensors"
        if len(roots) == 1 and not any(map(_wrapped, _names(roots[0]).values())):
            return roots[0], type(roots[0]).__name__
        labels = _labels(roots)
        return Naming(labels, {}), ", ".join(labels)

    def _alive(self) -> list[nn.Module]:
        return [root for reference in self._roots if (root := reference()) is not None]


@final
class Naming(nn.Module):
    """Name the parameters of one or several models as their author does, without the names of wrappers.

    Args:
        models: By label. A single one gives its names as they are; of several each name begins with the label.
        loose: Tensors of no model, by name.
    """

    def __init__(self, models: Mapping[str, nn.Module], loose: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._loose = dict(loose)
        self._named = weakref.WeakSet(models.values())
        if len(models) == 1:
            (model,) = models.values()
            vars(self).update((kind, vars(model)[kind]) for kind in ("_modules", "_parameters", "_buffers"))
        else:
            self._modules.update(models)  # not add_module, which calls global registration hooks of the script

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters; `prefix` comes before each name."""
        before = f"{prefix}." if prefix else ""
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            yield before + ".".join(part for part in name.split(".") if part not in INNER_WRAPPERS), parameter
        for name, tensor in self._loose.items():
            yield before + name, tensor  # type: ignore[misc]

    @property
    def training(self) -> bool:
        """Whether one of the models is in training mode."""
        return any(model.training for model in self._named) or not self._named

    @training.setter
    def training(self, _: bool) -> None:
        """Leave the models in theirs."""


def models_of(model: nn.Module) -> list[nn.Module]:
    """Return the models that one stands for: itself, unless it only names them."""
    return list(model._named) if isinstance(model, Naming) else [model]


def _labels(roots: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Call each by its class, the second of a class with a 2."""
    labels: dict[str, nn.Module] = {}
    for root in roots:
        label, number = type(root).__name__, 1
        while label in labels:
            number += 1
            label = f"{type(root).__name__}{number}"
        labels[label] = root
    return labels


def _wrapped(name: str) -> bool:
    return not INNER_WRAPPERS.isdisjoint(name.split("."))


def _places(optimizer: Optimizer) -> dict[str, Tensor]:
    """Call tensors by their place in the optimizer, as the guard does."""
    return {
        f"optimizer.group{number}.{place}": tensor
        for number, group in enumerate(optimizer.param_groups)
        for place, tensor in enumerate(group["params"])
    }


def _outermost() -> list[nn.Module]:
    """Find the modules that no other module has, wrappers such as DistributedDataParallel taken off."""
    # `type`, not `isinstance`: asking a lazy proxy for its class may load what it stands for.
    alive = [one for one in gc.get_objects() if issubclass(type(one), nn.Module) and type(one) is not Naming]
    inner = {id(child) for module in alive for child in _children(module).values() if child is not None}
    roots = [_unwrapped(module) for module in alive if id(module) not in inner]
    return list({id(root): root for root in roots}.values())


def _unwrapped(module: nn.Module) -> nn.Module:
    while len(children := _children(module)) == 1 and not vars(module).get("_parameters"):
        ((name, child),) = children.items()
        if name not in WRAPPERS or child is None:
            break
        module = child
    return module


def _children(module: nn.Module) -> dict[str, nn.Module | None]:
    """List children by name; of a module that another thread is just making there are none."""
    return dict(vars(module).get("_modules", {}).items())


def _cover(candidates: Sequence[nn.Module], wanted: Sequence[Tensor]) -> tuple[list[nn.Module], bool]:
    """Choose models that have the parameters, each time the one with most; say whether some are in none.

    The same on every rank, whatever order the garbage collector has: a tie goes to the smaller model, then by name.
    """
    left = {id(parameter): place for place, parameter in reversed(list(enumerate(wanted)))}
    named = [(model, names) for model in candidates if left.keys() & (names := _names(model)).keys()]
    chosen: list[tuple[int, nn.Module]] = []
    while left and named:
        model, names = min(named, key=lambda one: _rank(one[0], one[1], left))
        found = left.keys() & names.keys()
        if not found:
            break
        chosen.append((min(left[one] for one in found), model))
        for one in found:
            del left[one]
    return [model for _, model in sorted(chosen, key=lambda one: one[0])], bool(left)


def _rank(model: nn.Module, names: dict[int, str], left: dict[int, int]) -> tuple[int, bool, int, str, list[str]]:
    found = left.keys() & names.keys()
    made_by_compiler = isinstance(model, fx.GraphModule)
    return -len(found), made_by_compiler, len(names), type(model).__name__, sorted(names[one] for one in found)


def _names(model: nn.Module) -> dict[int, str]:
    try:
        return {id(parameter): name for name, parameter in model.named_parameters()}
    except Exception:  # a model of the script that is half made or has a method of its own: any other names serve
        return {}
