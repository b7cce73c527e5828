"""What an edited loss gives, held against the loss of the treated task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evengrad.nouns import Task, output_of
from evengrad.trial._patch_check import SEED, made_or_refused
from evengrad.trial._patch_source import NoPatchError
from evengrad.trial._precision import autocast_of
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import first_batch

DRAWS = 3
# The numbers in a source have seven digits; what a loss of differences makes of that is less.
TOLERANCE = 1e-4

Loss = Callable[[Any, Any], Any]
Cast = Callable[[], AbstractContextManager[object]]


def check_loss(loss: Loss, treated: Task) -> None:
    """Want the loss of the treated task and its slope, for the model's first output and for others of that kind.

    Raises:
        NoPatchError: It gives others, or raises, or there is nothing to try it on.
    """
    if getattr(treated, "backward", None) is not None:
        raise NoPatchError("the task has a loop of its own")
    model = made_or_refused(treated.model, "the treated factory")
    cast = partial(autocast_of, treated.autocast, model)
    output, target = _first_output(model, treated, cast)
    for seed in range(DRAWS):
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output)
        tried = output if seed == 0 else output + noise * output.std(correction=0)
        came, wanted = (
            made_or_refused(partial(_with_slope, one, tried, target, cast), "the edited loss")
            for one in (loss, treated.loss)
        )
        if not all(_near(one, other) for one, other in zip(came, wanted, strict=True)):
            raise NoPatchError("the edited loss gives other numbers than that of the treated task")


def _first_output(model: nn.Module, treated: Task, cast: Cast) -> tuple[Tensor, Any]:
    with seeded(SEED), torch.no_grad(), cast():
        inputs, target = first_batch(treated)
        output = output_of(model.eval(), inputs)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise NoPatchError(f"the model gives a {type(output).__name__}, on which the loss cannot be tried")
    return output, target


def _with_slope(loss: Loss, output: Tensor, target: Any, cast: Cast) -> tuple[Tensor, Tensor]:
    leaf = output.detach().clone().requires_grad_()
    with torch.enable_grad(), cast():
        value = loss(leaf, target)
    (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bound = TOLERANCE * float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=bound, equal_nan=True)
