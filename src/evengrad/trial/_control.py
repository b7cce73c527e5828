"""The same training with its targets shuffled: what it reaches is what there is to reach without learning anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, final

import torch
from torch import Tensor

from evengrad.nouns import Task, Trial

# A gain below this share of the metric is held against a control: the noise of a validation set of a hundred samples is
# a tenth of it, and the best of a search is chosen by it.
DOUBT_FRAC = 0.25


MOST_KNOWN = 1_000_000  # samples whose targets are remembered: those of a stream do not come again


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffled:
    """Make the batches of a task with targets that belong to other samples; can be pickled if they can.

    A sample keeps the target that it was given whenever it comes again, so that the control can learn by heart what the
    treated training can. A new one takes the target of another one in its batch; a single one that of the batch before.

    Args:
        train: Makes the batches.
        seed: Of the order: each training has its own, or all controls would show the same luck.
    """

    train: Callable[[], Iterable[Any]]
    seed: int = 0
    given: dict[bytes, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed)
        before: Any = None
        for data, target in self.train():
            order = torch.randperm(_count(target), generator=generator)
            keys = _keys(data, len(order))
            if len(order) == 1:
                yield data, self._kept(keys, target if before is None else before)
            else:
                yield data, self._exchanged(keys, target, order)
            before = target

    def _exchanged(self, keys: Sequence[bytes], target: Any, order: Tensor) -> Any:
        """Give new samples the targets of others, and known ones those that they had."""
        rows = _tensors(target)
        fresh = {
            key: [row[order[place]].detach().clone() for row in rows]
            for place, key in enumerate(keys)
            if key not in self.given
        }
        found = [self.given.get(key) or fresh[key] for key in keys]
        fit = all(one.shape == row.shape[1:] for given in found for one, row in zip(given, rows, strict=True))
        if not (keys and fit):  # with nothing to know a sample by, batches of the same order have the same targets
            return _reordered(target, order)
        if len(self.given) < MOST_KNOWN:
            self.given.update(fresh)
        columns = [[given[place] for given in found] for place in range(len(rows))]
        return _with(target, iter([torch.stack(column).to(row) for column, row in zip(columns, rows, strict=True)]))

    def _kept(self, keys: Sequence[bytes], target: Any) -> Any:
        """Give a single sample a target, and the same one again."""
        if not keys:
            return target
        kept = self.given.setdefault(keys[0], [tensor.detach().clone() for tensor in _tensors(target)])
        return _with(target, iter(kept))


def control_of(task: Task, seed: int = 0) -> Task:
    """Shuffle the targets that a task trains on; what it is validated on stays."""
    return replace(task, train=Shuffled(train=task.train, seed=seed))


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


def _keys(data: Any, count: int) -> list[bytes]:
    """Tell samples by what is in them; none where an input is not one row for each target."""
    parts = _tensors(data)
    if not parts or any(not part.dim() or len(part) != count for part in parts if count > 1):
        return []
    try:
        rows = [part.detach().cpu().reshape(count, -1).contiguous().view(torch.uint8).numpy() for part in parts]
    except (RuntimeError, TypeError):  # of a layout that has no rows of bytes
        return []
    return [blake2b(b"".join(row[place].tobytes() for row in rows), digest_size=16).digest() for place in range(count)]


def _with(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Put other tensors in the places of those of a target."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: _with(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_with(item, tensors) for item in value)
    return value


def _reordered(value: Any, order: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[order.to(value.device)]
    if isinstance(value, dict):
        return {key: _reordered(item, order) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_reordered(item, order) for item in value)
    return value
