"""How long the sequences are that recurrent layers run over."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.treat._forward_order import run
from evengrad.treat._random_state import random_state_kept


def sequence_lengths(model: nn.Module, names: Iterable[str], batch_input: Any) -> dict[str, int]:
    """Return the longest sequence of each named layer on a batch, or how often a cell was called.

    Layers that the batch does not reach are left out.

    Raises:
        TreatmentError: The model does not run on the batch.
    """
    lengths: dict[str, int] = {}
    with random_state_kept(), torch.no_grad():
        scratch = copy.deepcopy(model).eval()
        for name in names:
            _watch(scratch.get_submodule(name), name, lengths)
        run(scratch, batch_input)
    return lengths


def _watch(layer: nn.Module, name: str, lengths: dict[str, int]) -> None:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module, nn.RNNBase):
            length = _length(module, args[0] if args else kwargs.get("input"))
            lengths[name] = max(lengths.get(name, 0), length)
        else:
            lengths[name] = lengths.get(name, 0) + 1

    layer.register_forward_pre_hook(before, with_kwargs=True)


def _length(layer: nn.RNNBase, sequence: Any) -> int:
    if isinstance(sequence, PackedSequence):
        return len(sequence.batch_sizes)
    if not isinstance(sequence, Tensor):
        return 0
    return sequence.shape[1 if layer.batch_first and sequence.dim() == 3 else 0]
