"""Which parameters a guard guards, and what they are called."""

from collections.abc import Sequence
from operator import is_

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import ModelError, OptimizerError


def check(model: object, optimizer: object) -> None:
    """Refuse a model and an optimizer that cannot be guarded together.

    Raises:
        ModelError: The model is no module, or has no parameters.
        OptimizerError: The optimizer is no torch optimizer, or holds none of the model's parameters.
    """
    if not isinstance(model, nn.Module):
        raise ModelError("model", came=type(model).__name__, wanted="a torch.nn.Module")
    if not any(True for _ in model.parameters()):
        raise ModelError("model", came=f"{type(model).__name__} without parameters", wanted="a model with parameters")
    if not isinstance(optimizer, Optimizer):
        raise OptimizerError("optimizer", came=type(optimizer).__name__, wanted="a torch.optim.Optimizer")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise OptimizerError(
            "optimizer",
            came=f"{type(optimizer).__name__} with none of the parameters of {type(model).__name__}",
            wanted="an optimizer of this model",
            advice="make it after the model has been copied, moved or wrapped: Adam(model.parameters())",
        )


def named(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Name what the optimizer holds, in its order, tied parameters once.

    A parameter that is not the model's is called by its place: `optimizer.group0.3`.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[int, tuple[str, Tensor]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), f"optimizer.group{number}.{place}")
            found.setdefault(id(parameter), (name, parameter))
    return dict(found.values())


def groups(optimizer: Optimizer) -> list[list[Tensor]]:
    """List the parameters of each group."""
    return [list(group["params"]) for group in optimizer.param_groups]


def regrouped(known: list[list[Tensor]], optimizer: Optimizer) -> bool:
    """Tell whether a parameter was added, taken away or replaced by another since; cheap, for every step."""
    now = optimizer.param_groups
    return len(known) != len(now) or not all(
        len(old) == len(group["params"]) and all(map(is_, old, group["params"]))
        for old, group in zip(known, now, strict=True)
    )


def dtype_name(parameters: Sequence[Tensor]) -> str:
    """Name the dtype of most parameters as torch does: `float32`."""
    dtypes: dict[torch.dtype, int] = {}
    for parameter in parameters:
        dtypes[parameter.dtype] = dtypes.get(parameter.dtype, 0) + 1
    return str(max(dtypes, key=lambda dtype: dtypes[dtype])).removeprefix("torch.")
