"""What a model calls as functions, in the forward of a step that is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any, final

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from evengrad.probe._functional import FunctionalActivations
from evengrad.probe._kinds import calls_functions, plain_name
from evengrad.probe._sample_hooks import Hook


def outside(work: Callable[..., None], *given: Any) -> None:
    """Run work with the mode off, which would look at each of its operations."""
    if has_torch_function((None,)):  # a mode is on in this thread
        handle_torch_function(work, (), *given)
    else:
        work(*given)


@final
class Functions:
    """A torch-function mode that is on while a module whose forward may call functions is running, and no longer.

    It is entered before the outermost such module and left after it, however it ends; in one thread at a time. A model
    that is made of torch's own modules alone calls no functions, and needs no mode.

    Args:
        model: The model.
        counts: Tells whether a forward that begins now is read, in this thread.
        seen: Called with the innermost module and its name, the function's name, its arguments and its result.
        left: Called when the mode is off again.
    """

    def __init__(
        self,
        model: nn.Module,
        counts: Callable[[], bool],
        seen: Callable[..., None],
        left: Callable[[], None],
    ) -> None:
        self._counts = counts
        self._seen = seen
        self._left = left
        self._names = {module: plain_name(name) for name, module in model.named_modules() if calls_functions(module)}
        self._hooks = [
            hook
            for module in self._names
            for hook in (Hook(module, self._enter, before=True), Hook(module, self._leave, always=True))
        ]
        self._path: list[nn.Module] = []
        self._mode: Any = None
        self._thread = 0

    def attach(self) -> None:
        """Put the hooks on."""
        for hook in self._hooks:
            hook.attach()

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.detach()

    def end(self) -> None:
        """Leave the mode where a forward was interrupted by what is no `Exception`, for which no hook is called."""
        if self._mode is not None and self._thread == get_ident():
            self._leave_mode()
        self._path.clear()

    def _enter(self, module: nn.Module, args: object) -> None:
        if self._path:
            if self._thread == get_ident():
                self._path.append(module)
        elif self._counts():
            self._path.append(module)
            self._thread = get_ident()
            self._mode = FunctionalActivations(self._see)
            self._mode.__enter__()

    def _leave(self, module: nn.Module, args: object, result: object) -> None:
        if self._thread != get_ident() or module not in self._path:
            return
        while self._path.pop() is not module:
            pass
        if not self._path:
            self._leave_mode()

    def _leave_mode(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
            self._left()

    def _see(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> None:
        if self._path:
            module = self._path[-1]
            self._seen((module, self._names.get(module, "")), name, args, kwargs, result)
