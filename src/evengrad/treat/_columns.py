"""Mean and standard deviation of the columns of tensors, gathered batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import Task, called
from evengrad.treat._random_state import random_state_kept

MOST_SAMPLES = 10_000
MOST_BATCHES = 1_000
RESOLUTION = 2.0**-23  # of float32: a column that varies by less, relative to its mean, is constant
# Within these the mean and standard deviation of a column do no harm that normalising could undo.
NEAR_MEAN = 0.5
NEAR_STD = (0.3, 3.0)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What to subtract and to divide by, one number per column.

    Args:
        mean: Of each column; a single number for all elements together.
        std: Of each column, never 0: a constant one has the median of the others, whose unit it most likely has, or 1.
        tail: How many dimensions come after that of the columns.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    tail: int

    @property
    def near_one(self) -> bool:
        """Whether it is so close to mean 0 and standard deviation 1 that nothing is to be gained."""
        low, high = NEAR_STD
        return all(abs(mean) <= NEAR_MEAN for mean in self.mean) and all(low <= std <= high for std in self.std)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation in a shape that goes with the tensors they were measured on."""
        shape = (len(self.mean),) + (1,) * self.tail if len(self.mean) > 1 or self.tail else ()
        return torch.tensor(self.mean).reshape(shape), torch.tensor(self.std).reshape(shape)

    def written(self) -> tuple[str, str]:
        """Return mean and standard deviation as code."""
        shape = tuple(self.tensors()[0].shape)
        parts = ([float(f"{value:.7g}") for value in values] for values in (self.mean, self.std))
        mean, std = (f"torch.tensor({part!r}).reshape({shape!r})" for part in parts)
        return mean, std

    @property
    def done(self) -> str:
        """Say what is done with these numbers."""
        return f"minus its mean ({_span(self.mean)}), over its standard deviation ({_span(self.std)})"


@final
class Columns:
    """Gather the moments of columns in float64, by the parallel formula of Chan et al. 1979.

    Where the number of columns differs between batches all elements are taken together.

    Args:
        dim: Which dimension the columns are; None to take all elements together.

    Example:
        >>> columns = Columns(1)
        >>> columns.add(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> columns.scale().mean
        (2.0, 20.0)
    """

    def __init__(self, dim: int | None) -> None:
        self._dim = dim
        self._columns: _Moments | None = None
        self._all: _Moments | None = None
        self._tail = 0
        self.finite = True

    def add(self, tensor: Tensor) -> None:
        """Add a batch; one that is not finite is only noted."""
        values = tensor.detach().to("cpu", torch.float64)
        if values.numel() == 0:
            return
        self.finite = self.finite and bool(values.isfinite().all())
        self._all = _Moments.of(values.reshape(-1, 1)).with_(self._all)
        if self._dim is None:
            return
        self._tail = values.dim() - 1 - self._dim
        width = values.shape[self._dim]
        if self._columns is not None and len(self._columns.mean) != width:
            self._dim = self._columns = None
            return
        rows = values.movedim(self._dim, -1).reshape(-1, width)
        self._columns = _Moments.of(rows).with_(self._columns)

    def scale(self) -> Scale | None:
        """Return what to subtract and divide by; None when nothing varies, or nothing was added."""
        moments = self._all if self._columns is None else self._columns
        if moments is None or not self.finite:
            return None
        std = (moments.squares / moments.count).sqrt()
        varying = std > RESOLUTION * moments.mean.abs()
        if not bool(varying.any()):
            return None
        std = torch.where(varying, std, std[varying].median())
        tail = 0 if self._columns is None else self._tail
        return Scale(mean=tuple(moments.mean.tolist()), std=tuple(std.tolist()), tail=tail)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moments:
    """How many rows, their means, and the sums of the squared distances from them."""

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(rows: Tensor) -> "_Moments":
        mean = rows.mean(0)
        return _Moments(count=len(rows), mean=mean, squares=(rows - mean).square().sum(0))

    def with_(self, other: "_Moments | None") -> "_Moments":
        if other is None:
            return self
        count = self.count + other.count
        apart = self.mean - other.mean
        return _Moments(
            count=count,
            mean=other.mean + apart * (self.count / count),
            squares=self.squares + other.squares + apart.square() * (self.count * other.count / count),
        )


def over_training_batches(task: Task, use: Callable[[Any, Any], None]) -> None:
    """Call a function with the batches of the first pass over a task's training data, 10,000 samples at most.

    The global random states are as before at the end.

    Raises:
        TaskError: `train()` raised.
    """
    samples = 0
    with random_state_kept():
        batches = called("Task.train()", lambda: iter(task.train()), wanted="batches")
        for _ in range(MOST_BATCHES):
            batch = called("Task.train()", lambda: next(batches, None), wanted="batches")
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                break
            use(batch[0], batch[1])
            samples += samples_in(batch[0])
            if samples >= MOST_SAMPLES:
                break
        if close := getattr(batches, "close", None):
            close()


def samples_in(value: Any) -> int:
    """Count the rows of the first tensor; 1 where there is none."""
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if isinstance(value, Tensor):
        return len(value) if value.dim() else 1
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((samples_in(item) for item in items), 1)


def _span(numbers: tuple[float, ...]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
