"""Which parameters a guard guards, what they are called, and where they belong."""

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.clip.transforms import Target
from evengrad.nouns import ModelError, OptimizerError


def optimizers_of(model: object, optimizer: object) -> list[Optimizer]:
    """List the optimizers of an `optimizer` argument; refuse a model and optimizers that cannot be guarded together.

    Raises:
        ModelError: The model is no module, or has no parameters.
        OptimizerError: An optimizer is no torch optimizer, is given twice, or none holds a parameter of the model.
    """
    optimizers: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not isinstance(model, nn.Module):
        raise ModelError("model", came=type(model).__name__, wanted="a torch.nn.Module")
    if not any(True for _ in model.parameters()):
        raise ModelError("model", came=f"{type(model).__name__} without parameters", wanted="a model with parameters")
    if not optimizers:
        raise OptimizerError("optimizer", came="an empty sequence", wanted="at least one torch.optim.Optimizer")
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise OptimizerError("optimizer", came=_named(one), wanted="a torch.optim.Optimizer")
    if len({id(one) for one in optimizers}) < len(optimizers):
        raise OptimizerError("optimizer", came="the same one twice", wanted="each optimizer once")
    own = {id(parameter) for parameter in model.parameters()}
    for one in optimizers:
        if not any(id(parameter) in own for group in one.param_groups for parameter in group["params"]):
            raise OptimizerError(
                "optimizer",
                came=f"{type(one).__name__} with none of the parameters of {type(model).__name__}",
                wanted="an optimizer of this model",
                advice="make it after the model has been copied, moved or wrapped: Adam(model.parameters())",
            )
    return optimizers


def _named(thing: object) -> str:
    if isinstance(thing, Tensor):
        return "a tensor (a parameter or a gradient)"
    return type(thing).__name__


def targets_of(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Target]:
    """List what the optimizers hold, in their order, tied parameters once.

    A parameter that is not the model's is called by its place: `optimizer.group0.3`, `optimizer2.group0.3`.
    """
    named = model.named_parameters()  # of a compiled model as they are in the model itself
    names = {id(parameter): name.replace("_orig_mod.", "") for name, parameter in named}
    owners: dict[int, nn.Module] = {}
    last: set[int] = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        for parameter in own:
            owners.setdefault(id(parameter), module)
        if any(parameter.dim() >= 2 for parameter in own):
            last = {id(parameter) for parameter in own}
    found: dict[int, Target] = {}
    for at, optimizer in enumerate(optimizers):
        prefix = "optimizer" if at == 0 else f"optimizer{at + 1}"
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                target = Target(
                    name=names.get(id(parameter), f"{prefix}.group{number}.{place}"),
                    parameter=parameter,
                    module=owners.get(id(parameter)),
                    last=id(parameter) in last,
                    optimizer=optimizer,
                    group=group,
                )
                found.setdefault(id(parameter), target)
    return list(found.values())


Groups = list[tuple[dict[str, Any], list[Tensor]]]


def groups(optimizers: Sequence[Optimizer]) -> Groups:
    """List the groups and the parameters of each."""
    return [(group, list(group["params"])) for optimizer in optimizers for group in optimizer.param_groups]


def regrouped(known: Groups, optimizers: Sequence[Optimizer]) -> bool:
    """Tell whether a parameter was added, taken away or replaced by another since; cheap, for every step.

    Also whether a group is another one: loading an optimizer's state makes new ones.
    """
    now = [group for optimizer in optimizers for group in optimizer.param_groups]
    return len(known) != len(now) or not all(
        old is new and len(held) == len(new["params"]) and all(map(is_, held, new["params"]))
        for (old, held), new in zip(known, now, strict=True)
    )


def dtype_name(parameters: Sequence[Tensor]) -> str:
    """Name the dtype of most parameters as torch does: `float32`."""
    dtypes: dict[torch.dtype, int] = {}
    for parameter in parameters:
        dtypes[parameter.dtype] = dtypes.get(parameter.dtype, 0) + 1
    return str(max(dtypes, key=lambda dtype: dtypes[dtype])).removeprefix("torch.")
