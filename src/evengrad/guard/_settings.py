"""Checks of what a guard is given."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evengrad.guard._rollback import Rollback
from evengrad.nouns import LossError, SettingError


def owner(hook: object) -> object:
    """Return the object whose method a hook is; the method may be kept out of torch.compile."""
    return getattr(getattr(hook, "__wrapped__", hook), "__self__", None)


def check_settings(scaler: object, max_consecutive_skips: object, rollback: object, on_event: object) -> None:
    """Refuse settings of the wrong kind.

    Raises:
        SettingError: One is.
    """
    whole = isinstance(max_consecutive_skips, int) and not isinstance(max_consecutive_skips, bool)
    if not whole or max_consecutive_skips < 0:  # type: ignore[operator]
        raise SettingError("max_consecutive_skips", came=repr(max_consecutive_skips), wanted="a whole number from 0")
    if scaler is not None and not (hasattr(scaler, "unscale_") and hasattr(scaler, "is_enabled")):
        raise SettingError("scaler", came=type(scaler).__name__, wanted="a torch.amp.GradScaler or None")
    if rollback is not None and not isinstance(rollback, Rollback):
        raise SettingError("rollback", came=type(rollback).__name__, wanted="a Rollback or None")
    if isinstance(rollback, Rollback) and max_consecutive_skips < rollback.after_skips:  # type: ignore[operator]
        came = f"{max_consecutive_skips}, below the rollback's after_skips={rollback.after_skips}"
        raise SettingError("max_consecutive_skips", came=came, wanted="at least that many: it ends the run before")
    if on_event is not None and not callable(on_event):
        raise SettingError("on_event", came=type(on_event).__name__, wanted="a function of one Event, or None")


def loss_of(loss: object) -> Tensor | float:
    """Copy a loss: on a CPU the number, elsewhere the tensor, on its device.

    Raises:
        LossError: It is no scalar.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise LossError("loss", came=f"shape {tuple(loss.shape)}", wanted="a scalar", advice="reduce it: .mean()")
        if loss.is_complex():
            raise LossError(
                "loss", came="a complex number", wanted="a real one", advice="take its real part or modulus"
            )
        loss = loss.detach().reshape(())
        if loss.device.type == "cpu":
            return float((loss.float() if loss.dtype is torch.bfloat16 else loss).numpy())
        return loss.clone()  # a replayed CUDA graph writes its loss in place
    try:
        return float(loss)  # type: ignore[arg-type]
    except (TypeError, ValueError) as err:
        raise LossError("loss", came=type(loss).__name__, wanted="a scalar tensor or a number") from err


def has_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a step was called with a closure; the first argument is the optimizer."""
    return (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None


def is_nested(optimizer: Optimizer) -> bool:
    """Whether a step of an optimizer is going on inside another step of the same one: it calls its base class's.

    Asked only where an earlier step has not ended: it may as well have raised, so the stack has to tell.
    """
    steps, frame = 0, sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "wrapper":  # looking at a frame's variables keeps them alive until it ends
            arguments = frame.f_locals.get("args")
            steps += isinstance(arguments, tuple) and any(one is optimizer for one in arguments[:1])
        frame = frame.f_back  # type: ignore[assignment]
    return steps > 1


def found_inf_of(scaler: Any, optimizers: Sequence[Optimizer]) -> Tensor | None:
    """Return what a GradScaler has found when it unscaled: not zero for something; None where it does not tell."""
    find = getattr(scaler, "_found_inf_per_device", None)
    found = [] if find is None else [one for optimizer in optimizers for one in find(optimizer).values()]
    return torch.stack([one.reshape(()).to(found[0].device) for one in found]).sum() if found else None


def scaler_that_calls() -> Any:
    """Return the GradScaler that is calling `step`, None for none; asked once, where no scaler was given."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in {"step", "_maybe_opt_step"}:  # no other: looking at a frame keeps its variables
            scaler = frame.f_locals.get("self")
            if isinstance(scaler, torch.amp.GradScaler) and scaler.is_enabled():
                return scaler
        frame = frame.f_back  # type: ignore[assignment]
    return None


def still_scaled(scaler: Any, optimizers: Sequence[Optimizer], stepping: Optimizer | None) -> frozenset[int]:
    """Return the ids of the optimizers whose gradients a GradScaler has not unscaled yet.

    Args:
        scaler: The scaler; None for none.
        optimizers: The optimizers.
        stepping: The one that is in its step: a fused one unscales within it, where it has a `grad_scale`.
    """
    if scaler is None and stepping is None:
        return frozenset()
    states = getattr(scaler, "_per_optimizer_states", {})
    scaled = {id(one) for one in optimizers if scaler is not None and not _is_unscaled(states.get(id(one)))}
    if stepping is not None:
        scaled.discard(id(stepping))
        if getattr(stepping, "grad_scale", None) is not None:
            scaled.add(id(stepping))
    return frozenset(scaled)


def _is_unscaled(state: Mapping[str, Any] | None) -> bool:
    stage = getattr((state or {}).get("stage"), "name", "READY")
    return stage != "READY"


def unscale(scaler: Any, optimizer: Optimizer) -> None:
    """Unscale the gradients unless the loop has; a scaler says only by raising that it has."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as err:
        if "already been called" not in str(err) and "after step()" not in str(err):
            raise


def averaged(loss: Tensor | float | None, device: torch.device) -> Tensor | float | None:
    """Average a loss over those processes of a distributed run that know it, so that all of them decide alike.

    A collective: every process calls it at each step, whether it knows the loss or not.
    """
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not there or torch.distributed.get_world_size() == 1:
        return loss
    mine = torch.zeros(2, dtype=torch.float32, device=device)  # the sum, and of how many
    if loss is not None:
        mine[0], mine[1] = loss, 1.0
    torch.distributed.all_reduce(mine)
    return mine[0] / mine[1]  # not a number where nobody has handed it over
