"""Compiled models run eagerly while they are sampled: no hook fires in compiled code."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import nn

COMPILED = "_compiled_call_impl"  # where `Module.compile` keeps what it has made
MOST_LOOKS = 3  # for what holds the model: each is a walk over all objects in memory
INNER = "_orig_mod"  # where the module lies that `torch.compile` has wrapped


def is_compiled(model: nn.Module) -> bool:
    """Tell whether a model is compiled, or a part of it, or something that holds it: in no such module a hook fires.

    A compiled function that calls the model, such as a whole training step, is not found.

    Args:
        model: The model; `torch.compile(model)` need not be handed over to be found.

    Cost: One walk over all objects in memory, 0.1 s for 300,000, where torch's compiler is loaded.

    Example:
        >>> import torch
        >>> is_compiled(torch.nn.Linear(2, 2))
        False
    """
    return next(_compiled_in(model), None) is not None or bool(_wrappers_of(model))


@final
class Eagerly:
    """Lets what torch has compiled run as it was written where a call counts, and compiled where it does not.

    In each compiled module of the model, and in each that holds the model, what is called is stood in for by what
    chooses between the two; nothing is compiled anew then or later, and no setting of the process is touched.

    Args:
        model: The model.
        counts: Tells whether a call that begins now is to be read.
    """

    def __init__(self, model: nn.Module, counts: Callable[[], bool]) -> None:
        self._model = model
        self._counts = counts
        self._gates: list[tuple[nn.Module, str, Gate]] = []
        self._wrappers: list[weakref.ref[nn.Module]] | None = None  # None until one has looked
        self._looks_left = MOST_LOOKS

    def start(self) -> None:
        """Run eagerly from now on what counts."""
        self.stop()
        if self._wrappers is None:
            self._looks_left -= 1
            self._wrappers = [weakref.ref(one) for one in _wrappers_of(self._model)]
        for module, name in _compiled_in(self._model):
            eager = module._call_impl if name == COMPILED else _inner(module)
            self._stand_in(module, name, eager)
        for reference in self._wrappers:
            if (wrapper := reference()) is not None:
                self._stand_in(wrapper, "forward", _inner(wrapper))

    def stop(self) -> None:
        """Run compiled again."""
        for module, name, gate in self._gates:
            if vars(module).get(name) is gate:  # else it has been compiled anew in between
                vars(module)[name] = gate.compiled
        self._gates.clear()

    def look_again(self) -> None:
        """Look at the next start for what holds the model: in a step that has passed no hook has fired."""
        if not self._wrappers and self._looks_left > 0:
            self._wrappers = None

    def _stand_in(self, module: nn.Module, name: str, eager: Callable[..., Any]) -> None:
        gate = Gate(vars(module)[name], eager, self._counts)
        vars(module)[name] = gate
        self._gates.append((module, name, gate))


@final
class Gate:
    """Chooses between what is compiled and what is not at each call."""

    __slots__ = ("_counts", "_eager", "compiled")

    def __init__(self, compiled: Callable[..., Any], eager: Callable[..., Any], counts: Callable[[], bool]) -> None:
        self.compiled = compiled
        self._eager = eager
        self._counts = counts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; a compiler that looks at what is around it finds it compiled."""
        if torch.compiler.is_dynamo_compiling() or not self._counts():
            return self.compiled(*args, **kwargs)
        return self._eager(*args, **kwargs)


def _compiled_in(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Find the compiled modules of a model, and where each keeps what was compiled."""
    for module in model.modules():
        if vars(module).get(COMPILED) is not None:
            yield module, COMPILED
        if _is_wrapper(module):
            yield module, "forward"


def _wrappers_of(model: nn.Module) -> list[nn.Module]:
    """Find the compiled modules that hold the model."""
    if "torch._dynamo" not in sys.modules:
        return []
    own = set(model.modules())
    # `type`, not `isinstance`: asking a lazy proxy for its class may load what it stands for.
    alive = [one for one in gc.get_objects() if issubclass(type(one), nn.Module) and one not in own]
    return [one for one in alive if _is_wrapper(one) and any(part is model for part in one.modules())]


def _is_wrapper(module: nn.Module) -> bool:
    return "forward" in vars(module) and INNER in vars(module).get("_modules", {})


def _inner(module: nn.Module) -> Callable[..., Any]:
    inner = module._modules[INNER]
    assert inner is not None
    return inner.__call__
