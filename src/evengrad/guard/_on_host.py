"""Decide on the host; write only what is clipped."""

import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from evengrad.clip import AbstractPolicy, Array, Decision, SkipNonFinite, total_norm
from evengrad.guard._apply import AbstractApply, Held
from evengrad.guard._attributes import Attributes, can_fold_now, grad_scale_of
from evengrad.guard._outcome import Decided, Given, Outcome, is_search
from evengrad.guard._program import Program, order
from evengrad.measure import scale_, scale_each_


@final
class OnHost(AbstractApply):
    """Decide on the host, in NumPy, and multiply gradients only where something is clipped.

    Free on a CPU, where the norms are host memory already. On an accelerator it copies P numbers and so waits for the
    device once per step, as a GradScaler does. A step is skipped by giving the optimizer no gradients: it touches
    neither weights nor moments nor counters, whatever optimizer it is.

    Args:
        fold: Whether a factor for all goes into the kernel of a fused optimizer where it can, which saves a read and a
            write of the gradients; the kernel writes them back multiplied.
    """

    __slots__ = ("_attributes", "_fold", "_held", "_one")

    on_device = False

    def __init__(self, *, fold: bool) -> None:
        self._fold = fold
        self._held = Held()
        self._attributes = Attributes()
        self._one: Tensor | None = None

    def described(self, program: Program) -> str:
        """Say how it applies a decision and what that waits for, for the guard's repr."""
        cpu = all(parameter.device.type == "cpu" for parameter in program.parameters)
        if program.per_tensor:
            way = "conditional per-tensor multiply"
        elif type(program.first) is SkipNonFinite and not program.rest:
            way = "left alone"
        else:
            folds = self._fold and not program.rest
            way = "folded into the fused step where it clips" if folds else "conditional multiply"
        return f"{way}, decided on the host: " + ("free on a CPU" if cpu else "waits once per step for the accelerator")

    def decide(self, program: Program, given: Given, fold: Sequence[Optimizer]) -> Decided:
        """Measure, decide, and change the gradients; a skip leaves every memory as it was."""
        by, found_inf, loss, scale = _read(given)
        norms_P = program.measured(2.0)
        first = program.first
        own_P = norms_P if order(first) == 2.0 else program.measured(order(first))
        if by != 1.0:
            norms_P, own_P = norms_P / np.float32(by), own_P / np.float32(by)
        decision = program.decided_first(own_P, loss)
        norm = float(decision.norm[0])
        total = norm if own_P is norms_P else float(total_norm(norms_P)[0])
        skip = found_inf or bool(decision.skip[0]) or not math.isfinite(total)
        smallest = 1.0
        unscaled = False
        divisor: Tensor | None = None
        if not skip:
            states: list[Any] = [decision.state]
            if self._folds(program, decision, fold):
                smallest = float(decision.scale[0])
                divisor = None if smallest == 1.0 else torch.tensor(1 / smallest, dtype=torch.float32)
            else:
                smallest = self._multiply(program, decision)
            if program.rest:
                unscaled = by != 1.0
                if unscaled:
                    scale_(_grads(program), 1 / by)
                rest, skip = self._go_on(program, program.signals(loss), states)
                smallest *= rest
            if not skip:
                program.states = states
        elif not found_inf and bool(decision.skip[0]):
            program.states = [decision.state, *program.states[1:]]  # a policy may remember what it has left out
        outcome = Outcome(
            norms_P=norms_P,
            total=total,
            norm=norm,
            scale=1.0 if skip else smallest,
            skipped=skip,
            overflow=found_inf and is_search(loss, scale),
            loss=loss,
        )
        return Decided(outcome=outcome, unscaled=unscaled, by=divisor)

    def enter(self, decided: Decided, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step: so that it does nothing when it is to be left out."""
        if decided.known_skipped():
            self._held.hold(optimizer)
        elif decided.by is not None:
            self._attributes.set(optimizer, grad_scale=grad_scale_of(decided, optimizer))
        elif decided.unscaled and getattr(optimizer, "grad_scale", None) is not None:
            self._one = torch.ones_like(optimizer.grad_scale) if self._one is None else self._one  # type: ignore[attr-defined]
            self._attributes.set(optimizer, grad_scale=self._one)

    def leave(self, optimizer: Optimizer) -> None:
        """Clear away what `enter` prepared."""
        if self._held.there or self._attributes.there:
            self._held.release(optimizer)
            self._attributes.restore(optimizer)

    def leave_all(self) -> None:
        """Clear away what is prepared, for every optimizer."""
        self._held.release_all()
        self._attributes.restore_all()

    def _go_on(self, program: Program, signals: Any, states: list[Any]) -> tuple[float, bool]:
        """Run what comes after the first policy; returns the smallest factor, and whether to skip after all."""
        smallest = 1.0
        for number, part in enumerate(program.rest, start=1):
            if isinstance(part, AbstractPolicy):
                decision = part(program.measured(order(part)), program.states[number], signals)
                if bool(decision.skip[0]):
                    program.states[number] = decision.state  # a policy may remember what it has left out
                    return 1.0, True
                smallest *= self._multiply(program, decision)
                states.append(decision.state)
            else:
                states.append(program.transform_(number))
        return smallest, False

    def _folds(self, program: Program, decision: Decision, fold: Sequence[Optimizer]) -> bool:
        """Whether the optimizers take the factor into their step."""
        alone = self._fold and bool(fold) and not program.rest and len(decision.scale) == 1
        return alone and all(can_fold_now(optimizer) for optimizer in fold)

    def _multiply(self, program: Program, decision: Decision) -> float:
        """Multiply the gradients where a factor is not 1; returns the smallest."""
        factors: Array = decision.scale
        if len(factors) == 1:
            factor = float(factors[0])
            if factor != 1.0:
                scale_(_grads(program), factor)
            return factor
        each: list[float] = factors.tolist()
        if any(factor != 1.0 for factor in each):
            scale_each_(_grads(program), each)
        return min(each)


def _grads(program: Program) -> list[Tensor | None]:
    return [parameter.grad for parameter in program.parameters]


def _read(given: Given) -> tuple[float, bool, float | None, float | None]:
    """Read the numbers beside the norms: on a CPU their own memory, on an accelerator by one copy."""
    fields = {"by": given.by, "found_inf": given.found_inf, "scale": given.scale, "loss": given.loss}
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    loss = None if isinstance(given.loss, Tensor) else given.loss
    if not tensors:
        return 1.0, False, loss, None
    there = [one.detach().reshape(1).to(torch.float64) for one in tensors.values()]
    device = next((one.device for one in there if one.device.type != "cpu"), torch.device("cpu"))
    packed = torch.cat([one.to(device) for one in there]) if len(there) > 1 else there[0]
    numbers = dict(zip(tensors, packed.cpu().numpy().tolist(), strict=True))
    return numbers.get("by", 1.0), numbers.get("found_inf", 0.0) != 0, numbers.get("loss", loss), numbers.get("scale")
