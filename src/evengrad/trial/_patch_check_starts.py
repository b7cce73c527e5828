"""The values that what is made starts with, held against those of the treated task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evengrad.nouns import Task
from evengrad.trial._patch_check import SEED, made_or_refused
from evengrad.trial._patch_source import NoPatchError

SEEDS = (SEED, SEED + 1, SEED + 2)
# Draws of few bits agree here and there by chance; a bias of which one gate starts at 1 has a quarter of fixed values.
LEAST_SHARE = 0.1
# The numbers in a source have seven digits.
TOLERANCE = 1e-5


def check_starts(make: Callable[[], Any], treated: Task) -> None:
    """Want the starting values of the treated task wherever these are not drawn: zeros, constants, statistics of data.

    What is the same for three seeds is taken to be not drawn.

    Args:
        make: The edited factory, of which `check_model` has found that it makes tensors of the same names and shapes.
        treated: The treated task.

    Raises:
        NoPatchError: Such a value is another.
    """
    came = _tensors(made_or_refused(make, "the edited factory"))
    wanted = [_tensors(made_or_refused(treated.model, "the treated factory", seed=seed)) for seed in SEEDS]
    for name, value in wanted[0].items():
        fixed = _fixed([one.get(name) for one in wanted])
        if fixed is not None and not _near(came[name][fixed], value[fixed]):
            raise NoPatchError(f"the edited factory makes a model in which {name} starts with other values")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    found = {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}
    return {name: value.detach() for name, value in found.items()}


def _fixed(values: list[Tensor | None]) -> Tensor | None:
    """Tell which elements of a tensor do not differ between seeds; None where they are too few to tell."""
    first, *others = values
    if first is None or first.numel() == 0:
        return None
    same = torch.ones_like(first, dtype=torch.bool)
    for other in others:
        if other is None or other.shape != first.shape:
            return None
        same &= (first == other) | ((first != first) & (other != other))  # noqa: PLR0124 (not a number is not itself)
    return same if float(same.double().mean()) >= LEAST_SHARE else None


def _near(one: Tensor, other: Tensor) -> bool:
    bound = max(TOLERANCE, torch.finfo(one.dtype).eps) if one.is_floating_point() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=bound, atol=0.0, equal_nan=True)
