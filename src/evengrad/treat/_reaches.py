"""Whether what a module hands on is used."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from evengrad.treat._forward_order import first_tensor, run
from evengrad.treat._random_state import random_state_kept


def reaches_output(model: nn.Module, name: str, batch_input: Any) -> bool:
    """Tell whether the first tensor of what a module returns has a part in what the model returns.

    True without a batch. A recurrent layer returns its output and its state, and many models read the state only.
    """
    if batch_input is None:
        return True
    with random_state_kept(), torch.enable_grad():
        scratch = copy.deepcopy(model).train(False).requires_grad_(False)
        marks: list[Tensor] = []

        def mark(_module: nn.Module, _args: Any, output: Any) -> Any:
            marks.append(torch.zeros((), dtype=first_tensor(output).dtype, requires_grad=True))  # type: ignore[union-attr]
            return _with_first(output, marks[-1])

        scratch.get_submodule(name).register_forward_hook(mark)
        total = _total(run(scratch, batch_input))
        if total is None or not total.requires_grad:
            return False
        return any(grad is not None for grad in torch.autograd.grad(total, marks, allow_unused=True))


def _with_first(output: Any, mark: Tensor) -> Any:
    """Return an output whose first tensor depends on the mark."""
    if isinstance(output, Tensor):
        return output + mark.to(output.device)
    if hasattr(output, "_replace") and hasattr(output, "data"):  # a packed sequence
        return output._replace(data=output.data + mark.to(output.data.device))
    return (_with_first(output[0], mark), *output[1:])


def _total(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.double().sum() if value.is_floating_point() else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    sums = [total for item in items if (total := _total(item)) is not None]
    return torch.stack(sums).sum() if sums else None
