"""Compiled models run eagerly while they are sampled: no hook fires in compiled code."""

from __future__ import annotations

import sys
from typing import Any, final

import torch
from torch import nn


@final
class Eagerly:
    """Lets what torch has compiled of a model run as it was written, and puts it back after that.

    What `torch.compile` or `Module.compile` has made of the model, or of a module in it, is passed by in these modules
    alone: nothing is compiled anew then or later, and other models stay as they are. What is compiled around the model,
    as in `torch.compile(model)` of a model that was handed over plain or in a compiled training step, cannot be seen
    from it. The first step runs under `torch.compiler.set_stance("force_eager")` from `start` to `stop`, which is for
    all of the process, and so do, where a step has passed without it and no hook has fired, the later ones; if that
    does not help either it is not tried again.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._passed_by: list[tuple[nn.Module, str, Any, Any]] = []
        self._stance: Any = None
        self._around = True  # whether something may be compiled around the model
        self._known = self._in_vain = False

    def start(self) -> None:
        """Run eagerly from now on."""
        self.stop()
        for module in self._modules:
            own = vars(module)
            if own.get("_compiled_call_impl") is not None:
                self._pass_by(module, "_compiled_call_impl", None)
            inner = module._modules.get("_orig_mod")
            if inner is not None and "forward" in own:
                self._pass_by(module, "forward", inner.__call__)
        if self._around and not self._in_vain and not self._passed_by and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")

    def stop(self) -> None:
        """Run compiled again, except what has been compiled anew in between."""
        for module, name, before, instead in self._passed_by:
            if vars(module).get(name) is instead:
                vars(module)[name] = before
        self._passed_by.clear()
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def judge(self, *, fired: bool) -> None:
        """Learn from a step that has passed whether hooks fire."""
        if self._stance is None or not self._known:
            self._around = self._known and not fired
            self._known = True
        elif not fired:
            self._in_vain = True

    def _pass_by(self, module: nn.Module, name: str, instead: Any) -> None:
        own = vars(module)
        self._passed_by.append((module, name, own[name], instead))
        own[name] = instead
