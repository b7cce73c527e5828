"""The same training with its targets shuffled: what it reaches is what there is to reach without learning anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from evengrad.nouns import Task, Trial

# A gain below this share of the metric is held against a control: the noise of a validation set of a hundred samples is
# a tenth of it, and the best of a search is chosen by it.
DOUBT_FRAC = 0.25


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffled:
    """Make the batches of a task with the targets of each batch in another order; can be pickled if they can.

    A batch of one takes the target of the batch before.
    """

    train: Callable[[], Iterable[Any]]

    def __call__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        before: Any = None
        for data, target in self.train():
            count = _count(target)
            if count > 1:
                yield data, _reordered(target, torch.randperm(count, generator=generator))
            else:
                yield data, target if before is None else before
            before = target


def control_of(task: Task) -> Task:
    """Shuffle the targets that a task trains on; what it is validated on stays."""
    return replace(task, train=Shuffled(train=task.train))


def is_doubtful(gains: Sequence[float], after: Sequence[Trial]) -> bool:
    """Tell whether gains are so small that the choice among many treatments may have made them.

    Args:
        gains: Of the pairs.
        after: The treated trainings.
    """
    reached = max((abs(trial.metric) for trial in after if trial.metric is not None), default=0.0)
    return not gains or min(gains) < DOUBT_FRAC * reached


def _count(target: Any) -> int:
    sizes = {len(tensor) if tensor.dim() else 1 for tensor in _tensors(target)}
    return sizes.pop() if len(sizes) == 1 else 1


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _reordered(value: Any, order: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[order.to(value.device)]
    if isinstance(value, dict):
        return {key: _reordered(item, order) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_reordered(item, order) for item in value)
    return value
