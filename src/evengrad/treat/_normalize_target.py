"""Let the network learn a normalised target, while the model gives raw numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from evengrad.nouns import Task, TreatmentError, in_words
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._columns import Columns, Scale, over_training_batches
from evengrad.treat._forward_order import run
from evengrad.treat._on_a_copy import changed_copy, only_for_tasks
from evengrad.treat._on_a_task import built, task_with_model
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._subclassed import derive_

# A loss of differences does not notice when output and target are moved together; in float64 what is left is rounding,
# and in a loss that turns to float32 by itself the rounding of that.
TOLERANCE = 1e-3
SHIFTS = (1.0, -3.0, 10.0)
NAME = "NormalizeTarget()"


class Rescaled(nn.Module):
    """Multiply the output by a standard deviation and add a mean, after the forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own forward and turn its output into raw numbers."""
        output = super().forward(*args, **kwargs)
        mean, std = self.get_buffer("target_mean"), self.get_buffer("target_std")
        return (output * std + mean).to(output.dtype)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RescaledModel:
    """Build a model whose output is turned into raw numbers; can be pickled if the factory can."""

    factory: Callable[[], nn.Module]
    scale: Scale

    def __call__(self) -> nn.Module:
        return changed_copy(NAME, partial(_rescale_, self.scale), self.factory(), batch_input=None).subject


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizedLoss:
    """Compare output and target as multiples of the target's deviation; can be pickled if the loss can."""

    loss: Callable[[Any, Any], Tensor]
    scale: Scale

    def __call__(self, output: Any, target: Any) -> Tensor:
        mean, std = (value.to(output.device) for value in self.scale.tensors())
        return self.loss((output - mean) / std, ((target - mean) / std).to(target.dtype))

    def code(self) -> tuple[tuple[str, str, str, str], ...]:
        """Write what is done: definitions, what becomes of output and of target, what stands around the loss."""
        return ((_normalized(self.scale), "normalized({})", "normalized({})", ""),)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizeTarget(AbstractTreatment):
    """Let the network learn (target - mean) / std, in a copy of the task; its model gives raw numbers all the same.

    What the network gives is multiplied by the standard deviation of the training targets and their mean is added, at
    the end of the model; the loss sees output and target with that undone. So the first errors and the gradient are as
    for a target of mean 0 and deviation 1, and validation, in raw numbers, stays as it is. The reported loss is in
    other units: that of a squared error is divided by the variance. The model keeps its attributes and the names of
    its parameters; its class is derived from the model's, and it has two more buffers.

    Mean and deviation are taken for each column of a target of two dimensions, otherwise of all its elements, from the
    first pass over the training data, 10,000 samples at most. So columns of unlike size weigh the same in the loss, as
    they did not before. A constant column is divided by the median deviation of the others.

    For floating-point targets of the output's shape and a loss of their difference: squared, absolute, Huber. What a
    cross entropy compares is refused, and so is a loss with a penalty of the output's size, and a target whose mean is
    within 0.5 and whose deviation is from 0.3 to 3.

    An activation at the end of the model gets a target that is closer to its range: a tanh then reaches one standard
    deviation to both sides of the mean. That helps in part only; removing it helps more.

    Example:
        >>> NormalizeTarget().label
        'NormalizeTarget()'

    Cost: One pass over the training data, or 10,000 samples of it, on the CPU in float64.

    Source:
        LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4.5.
    """

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "the scale of the target"

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: the loss has to change with the model."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: the loss has to change with the model."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Normalise the target in model and loss of a copy of the task: `AbstractTreatment.treat_task`."""
        if getattr(task, "backward", None) is not None:
            raise TreatmentError(NAME, came="a task with a loop of its own", wanted="a loss of output and target")
        scale, (data, target) = _measured(task)
        loss = NormalizedLoss(loss=task.loss, scale=scale)
        with random_state_kept():
            torch.manual_seed(seed)
            model = built(task)
            with torch.no_grad():
                treated = changed_copy(NAME, partial(_rescale_, scale), model, batch_input=data)
                _want_difference(task.loss, run(treated.subject.eval(), data), target, loss)
        changed = task_with_model(NAME, task, RescaledModel(factory=task.model, scale=scale), treated)
        said = f"the loss sees target and output {scale.done}; the model's output is turned back into raw numbers"
        return Treated(subject=replace(changed.subject, loss=loss), changes=(said,), code=treated.code)


def _measured(task: Task) -> tuple[Scale, tuple[Any, Tensor]]:
    """Measure the targets; return a batch too.

    Raises:
        TreatmentError: They are not what can be normalised, or are normalised.
    """
    seen: list[tuple[Any, Tensor]] = []
    columns: list[Columns] = []

    def use(data: Any, target: Any) -> None:
        if not isinstance(target, Tensor) or not target.is_floating_point():
            kind = str(target.dtype) if isinstance(target, Tensor) else type(target).__name__
            raise TreatmentError(NAME, came=f"a target of {kind}", wanted="a tensor of floating-point numbers")
        if not seen:
            seen.append((data, target))
            columns.append(Columns(1 if target.dim() == 2 else None))
        columns[0].add(target)

    over_training_batches(task, use)
    if not seen:
        raise TreatmentError(NAME, came="a task without batches of (input, target)", wanted="some")
    scale = columns[0].scale()
    if scale is None:
        came = "targets that are all the same" if columns[0].finite else "targets that are not finite"
        raise TreatmentError(NAME, came=came, wanted="finite targets that vary", advice="look at the data")
    if scale.near_one:
        raise TreatmentError(
            NAME, came="a target that is normalised already", wanted="a mean or a deviation far from 0 and 1"
        )
    return scale, seen[0]


def _want_difference(loss: Callable[[Any, Any], Tensor], output: Any, target: Tensor, treated: NormalizedLoss) -> None:
    """Try the loss on an output and a target that are moved together."""
    if not isinstance(output, Tensor) or output.shape != target.shape:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TreatmentError(
            NAME, came=f"an output of {came}", wanted=f"the shape of the target, {tuple(target.shape)}"
        )
    mean, std = (value.to(output.device) for value in treated.scale.tensors())
    one, other = ((value.double() - mean) / std for value in (output, target))
    try:
        first = float(loss(one, other))
        moved = [float(loss(one + shift, other + shift)) for shift in SHIFTS]
        alone = float(loss(one + SHIFTS[0], other))
        last = float(treated(output, target))
    except Exception as err:  # user code: a loss that takes probabilities only raises on other numbers
        raise TreatmentError(NAME, came=in_words(err, when="from Task.loss"), wanted="a loss of any numbers") from err
    if abs(alone - first) <= TOLERANCE * abs(first):
        raise TreatmentError(NAME, came="a loss that does not change with the output", wanted="one that does")
    if not all(abs(value - first) <= TOLERANCE * abs(first) for value in moved):
        raise TreatmentError(
            NAME,
            came="a loss that changes when output and target are moved together",
            wanted="one of their difference, as a squared error",
        )
    if not abs(last) < float("inf"):
        raise TreatmentError(NAME, came=f"a loss of {last} on the first batch", wanted="a finite one")


def _rescale_(scale: Scale, model: nn.Module) -> Change:
    """Derive the class of the model and give it the buffers."""
    if taken := [name for name in ("target_mean", "target_std") if hasattr(model, name)]:
        raise TreatmentError(NAME, came=f"a model that has an attribute {taken[0]!r}", wanted="none")
    device = next((value.device for value in (*model.parameters(), *model.buffers())), None)
    code = _code(scale)
    derive_(model, Rescaled, NAME)
    for name, value in zip(("target_mean", "target_std"), scale.tensors(), strict=True):
        model.register_buffer(name, value.to(device))
    return Change(changes=("the output is turned back into raw numbers",), code=code)


def _code(scale: Scale) -> str:
    mean, std = _written(scale)
    return (
        f"{_normalized(scale)}"
        "\n\n"
        "def in_raw_numbers(model, args, output):\n"
        "    return (output * model.target_std + model.target_mean).to(output.dtype)\n"
        "\n\n"
        f"model.register_buffer('target_mean', {mean})\n"
        f"model.register_buffer('target_std', {std})\n"
        "model.register_forward_hook(in_raw_numbers)"
    )


def _normalized(scale: Scale) -> str:
    """Write the function that the loss needs, for output and target."""
    head = "def normalized(values):  # in the loop: loss(normalized(output), normalized(target))\n"
    if len(scale.mean) == 1 and not scale.tail:
        away = f"{'+' if scale.mean[0] < 0 else '-'} {abs(scale.mean[0]):.7g}"
        return f"{head}    return (values {away}) / {scale.std[0]:.7g}\n"
    mean, std = _written(scale)
    return (
        f"{head}    mean = {mean}.to(values.device)\n    std = {std}.to(values.device)\n"
        "    return (values - mean) / std\n"
    )


def _written(scale: Scale) -> tuple[str, str]:
    if len(scale.mean) > 1 or scale.tail:
        return scale.written()
    mean, std = (f"torch.tensor({float(f'{numbers[0]:.7g}')!r})" for numbers in (scale.mean, scale.std))
    return mean, std
