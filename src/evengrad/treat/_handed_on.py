"""Which module's output is, untouched, which module's input: recorded from a forward pass."""

import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from evengrad.treat._forward_order import Place, first_tensor, places, run
from evengrad.treat._random_state import random_state_kept

Key = tuple[int, int]  # where the memory of a tensor is, and how often it was written to; a view has that of its base


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One call of a module.

    Args:
        place: The module.
        came: The key of its first input tensor.
        went: The key of its first output tensor.
        shape: The shape of that output.
    """

    place: Place
    came: Key | None
    went: Key | None
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HandedOn:
    """The calls of a forward pass in evaluation mode.

    Args:
        uses: In the order in which they end.
        output: The key of the first tensor of the model's output.
    """

    uses: tuple[Use, ...]
    output: Key | None

    def maker(self, key: Key | None, before: int) -> int | None:
        """Find the last call before a position whose output has the key."""
        if key is None:
            return None
        return next((index for index in range(before - 1, -1, -1) if self.uses[index].went == key), None)


def handed_on(model: nn.Module, batch_input: Any) -> HandedOn:
    """Run a copy in evaluation mode and note what goes into and comes out of each module.

    Raises:
        TreatmentError: The model does not run on the batch.
    """
    with random_state_kept(), torch.no_grad():
        scratch = copy.deepcopy(model).eval()
        recorder = _Recorder()
        for place in places(model):
            recorder.watch(place, scratch.get_submodule(place.name))
        output = first_tensor(run(scratch, batch_input))
        return HandedOn(uses=tuple(recorder.uses), output=recorder.key(output))


@final
class _Recorder:
    def __init__(self) -> None:
        self.uses: list[Use] = []
        self._alive: list[Tensor] = []  # so that no other tensor gets the same memory
        self._came: list[Key | None] = []

    def watch(self, place: Place, module: nn.Module) -> None:
        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._came.append(self.key(first_tensor((args, kwargs))))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            shape = () if tensor is None else tuple(tensor.shape)
            self.uses.append(Use(place=place, came=self._came.pop(), went=self.key(tensor), shape=shape))

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)

    def key(self, tensor: Tensor | None) -> Key | None:
        if tensor is None or tensor.layout != torch.strided or tensor.numel() == 0:
            return None
        self._alive.append(tensor)
        return tensor.untyped_storage().data_ptr(), tensor._version
