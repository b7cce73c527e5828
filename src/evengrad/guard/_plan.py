"""What a guard guards as it is now, and how it decides for it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.guard._apply import AbstractApply
from evengrad.guard._left import Left
from evengrad.guard._models_in_memory import models_of
from evengrad.guard._names import groups, regrouped, targets_of
from evengrad.guard._program import Part, Program
from evengrad.guard._saved import carried
from evengrad.measure import first_accelerator
from evengrad.nouns import Setup
from evengrad.probe import setup_and_untrained


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
        self._left: Left | None = None
        self._told = False
        self._make()

    @property
    def setup(self) -> Setup:
        """What is known of model and optimizers before they train; made anew when the optimizers' groups change.

        Which weights stay untrained is not known before `look` has seen it.
        """
        self.watch()
        assert self._setup is not None
        return replace(self._setup, untrained=() if self._left is None else self._left.names)

    def watch(self) -> None:
        """Look at model and optimizers, and begin to watch weights that nobody trains."""
        if self._setup is None:
            named = dict(zip(self.names, self.program.parameters, strict=True))
            models = models_of(self._model)
            model = models[0] if len(models) == 1 else self._model
            self._setup, untrained = setup_and_untrained(model, self.optimizers, named)
            self._left = Left(untrained)

    def look(self, *, ends: bool = False) -> bool:
        """Look at times whether weights that nobody trains are still as drawn; tell whether `setup` has changed.

        Args:
            ends: Whether this is the end, and not after a step.
        """
        if self._left is None:  # an optimizer holds others now than when something was told
            told, self._told = self._told, False
            return told
        news = self._left.last() if ends else self._left.step()
        self._told = bool(self._left.names)
        return news

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
        self._setup = self._left = None
