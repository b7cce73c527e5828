"""What a guard guards as it is now, and how it decides for it."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.guard._apply import AbstractApply
from evengrad.guard._models_in_memory import models_of
from evengrad.guard._names import groups, regrouped, targets_of
from evengrad.guard._program import Part, Program
from evengrad.guard._saved import carried
from evengrad.measure import first_accelerator
from evengrad.nouns import Setup
from evengrad.probe import setup_of


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
        self._setup: Setup | None = None
        self._make()

    @property
    def setup(self) -> Setup:
        """What is known of model and optimizers before they train; made anew when the optimizers' groups change."""
        if self._setup is None:
            named = dict(zip(self.names, self.program.parameters, strict=True))
            models = models_of(self._model)
            self._setup = setup_of(models[0] if len(models) == 1 else self._model, self.optimizers, named)
        return self._setup

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
        self._setup = None
