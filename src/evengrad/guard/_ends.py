"""What goes into the model and what becomes of its output, at a sampled step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evengrad.guard._found_loss import roots_of_backward
from evengrad.guard._protect_hooks import Nothing
from evengrad.guard._skips import LOGGER
from evengrad.nouns import printable
from evengrad.probe import EndsSample


@final
class EndsOfModel:
    """Hold what a model was called with and what it gave, until its loss is known or its backward begins.

    Of several calls with gradients the last before that counts. Those in training mode oust those in evaluation mode,
    before and after; one in evaluation mode counts only if its loss is handed over or a gradient arrives, so that an
    evaluation that has forgotten `no_grad` is not taken for the training.

    Args:
        model: The model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._in_training = False  # the mode of the call that is held, or was read
        self._held: tuple[Any, Any] | None = None
        self._sample: EndsSample | None = None

    def begin(self) -> None:
        """Watch the model's next forward."""
        self.end()
        if not isinstance(self._model, torch.jit.ScriptModule):
            self._handles = [
                self._model.register_forward_pre_hook(_Hook(self.enters)),
                self._model.register_forward_hook(_Hook(self.called), with_kwargs=True),
            ]

    def enters(self, _: tuple[Any, ...]) -> None:
        """Let go of the call before, and its graph, where this one takes its place."""
        if torch.is_grad_enabled() and (self._model.training or not self._in_training):
            self._held = None

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take in a call."""
        if not torch.is_grad_enabled():
            return
        training = self._model.training
        if training and not self._in_training:
            self._held = self._sample = None
            self._in_training = True
        if self._sample is None and training == self._in_training:
            self._held = ((*args, kwargs) if kwargs else args, output)

    def look(self, loss: Tensor | None) -> None:
        """Read what is held, with the way from the loss back; a loss without a graph, a copy perhaps, says nothing."""
        held = self._held
        if held is None or self._sample is not None or (loss is not None and loss.grad_fn is None):
            return
        self._held = None
        self._sample = EndsSample(*held, loss=loss)

    def backward_begins(self) -> None:
        """Look at the latest moment: what the loss itself had saved may be freed already."""
        if self._model.training and not self._in_training:
            self._held = None  # an evaluation before a training that calls parts of the model
        if self._held is not None:
            roots = roots_of_backward()
            self.look(roots[0] if roots is not None and len(roots) == 1 and roots[0].grad_fn is not None else None)

    def take(self) -> EndsSample | None:
        """Return what was read, and let the model go."""
        if self._in_training:
            self.look(None)
        sample = self._sample
        self.end()
        return sample

    def end(self) -> None:
        """Let the model go."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held = self._sample = None
        self._in_training = False


@final
class _Hook:
    """Hook of the model; nothing of it is compiled, and in a copy of the model it does nothing."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __call__(self, _: nn.Module, *given: Any) -> None:
        if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return
        try:
            self._run(*given)
        except Exception as err:  # whatever it is, it must not come out of the user's forward
            LOGGER.warning("a call of the model was not looked at: %s", printable(f"{type(err).__name__}: {err}"[:300]))

    def __reduce__(self) -> tuple[object, ...]:
        return Nothing, ()
