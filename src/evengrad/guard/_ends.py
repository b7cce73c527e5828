"""What goes into the model and what becomes of its output, at a sampled step."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evengrad.guard._found_loss import roots_of_backward
from evengrad.guard._protect_hooks import Nothing
from evengrad.probe import EndsSample


@final
class EndsOfModel:
    """Hold what a model was called with and what it gave, until its loss is known or its backward begins.

    Of several calls the last before that counts, of those in training mode and with gradients.

    Args:
        model: The model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handle: RemovableHandle | None = None
        self._held: tuple[Any, Any] | None = None
        self._sample: EndsSample | None = None

    def begin(self) -> None:
        """Watch the model's next forward."""
        self.end()
        if not isinstance(self._model, torch.jit.ScriptModule):
            self._handle = self._model.register_forward_hook(_Hook(self), with_kwargs=True)

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take in a call."""
        if self._sample is None and self._model.training and torch.is_grad_enabled():
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
        if self._held is not None:
            roots = roots_of_backward()
            self.look(roots[0] if roots is not None and len(roots) == 1 and roots[0].grad_fn is not None else None)

    def take(self) -> EndsSample | None:
        """Return what was read, and let the model go."""
        self.look(None)
        sample = self._sample
        self.end()
        return sample

    def end(self) -> None:
        """Let the model go."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._held = self._sample = None


@final
class _Hook:
    """Forward hook of the model; nothing of it is compiled, and in a copy of the model it does nothing."""

    def __init__(self, ends: EndsOfModel) -> None:
        self._ends = ends

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            self._ends.called(args, kwargs, output)

    def __reduce__(self) -> tuple[object, ...]:
        return Nothing, ()
