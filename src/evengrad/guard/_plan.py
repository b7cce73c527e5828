"""What a guard guards as it is now, and how it decides for it."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.guard._apply import AbstractApply
from evengrad.guard._names import groups, regrouped, targets_of
from evengrad.guard._program import Part, Program
from evengrad.guard._saved import carried
from evengrad.measure import first_accelerator


@final
class Plan:
    """The parameters of the optimizers, their names, and the program over them; made anew when parameters change.

    Args:
        model: Gives the names.
        optimizers: Hold the parameters.
        parts: The policies and transforms.
        apply: How decisions are made and applied.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], parts: Sequence[Part], apply: AbstractApply
    ) -> None:
        self._model, self._parts = model, parts
        self.optimizers = list(optimizers)
        self.apply = apply
        self._make()

    def refresh(self) -> None:
        """Plan anew if a parameter was added, taken away or replaced; what is remembered of the others stays."""
        if not regrouped(self._groups, self.optimizers):
            return
        names, states = self.names, self.program.states
        self._make()
        self.program.states = carried(states, names, self.program)

    def copied(self) -> list[Any]:
        """Copy what policies and transforms remember, for a snapshot."""
        return self.program.copied()

    def restore(self, copied: list[Any]) -> None:
        """Let them remember that instead."""
        self.program.restore(copied)

    def _make(self) -> None:
        targets = targets_of(self._model, self.optimizers)
        self.device = first_accelerator([target.parameter for target in targets])
        like = torch.empty(1, device=self.device) if self.apply.on_device else None
        self.program = Program(self._parts, targets, like)
        self.names = self.program.names
        self._groups = groups(self.optimizers)
