"""Normalise the input inside the model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._arguments import Argument, arguments, is_alone, is_data, kinds_of, numbers_of, parameter_names
from evengrad.treat._columns import Columns, Scale, over_training_batches
from evengrad.treat._forward_order import places
from evengrad.treat._on_a_copy import changed_copy, treated_copy
from evengrad.treat._on_a_task import built, task_with_model
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._subclassed import derive_

# More numbers than these are not written out as code.
MOST_WRITTEN = 256


Scales = tuple[tuple[Argument, Scale], ...]


class Standardized(nn.Module):
    """Subtract a mean from arguments of the forward and divide by a standard deviation, before it runs."""

    standardized: tuple[Argument, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own forward with normalised arguments."""
        given = list(args)
        for number, argument in enumerate(self.standardized):
            mean, std = (self.get_buffer(name) for name in _buffers(number))
            if argument.place is not None and argument.place < len(given):
                given[argument.place] = _standard(given[argument.place], mean, std)
            elif argument.name in kwargs:
                kwargs[argument.name] = _standard(kwargs[argument.name], mean, std)
        return super().forward(*given, **kwargs)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StandardizedModel:
    """Build a model that normalises its input by known numbers; can be pickled if the factory can."""

    factory: Callable[[], nn.Module]
    label: str
    scales: Scales

    def __call__(self) -> nn.Module:
        return changed_copy(self.label, partial(_standardize_, self.scales), self.factory(), batch_input=None).subject


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizeInput(AbstractTreatment):
    """Subtract the mean of each feature of the input and divide by its standard deviation, inside the model.

    The treated model takes the raw input, in validation too. It keeps its attributes, the names of its parameters
    and modules, and `isinstance`: its class is derived from the model's, and it has two more buffers.

    Mean and standard deviation are those of the training data, never of what is held back: in a task of the first pass
    over it, 10,000 samples at most, otherwise of the batch. A feature is an entry of the last dimension, or a channel
    (dimension 1) of pictures and of what a convolution takes; where batches differ in their number of features, all
    elements are taken together. A constant feature is divided by the median deviation of the others.

    Of several arguments those are normalised that are floating-point numbers and no mask. What is refused: integers,
    data that is not finite (bad data is not cured by a scale), and an input whose features all have a mean within 0.5
    and a deviation from 0.3 to 3. A feature whose values span many decades stays heavy-tailed: only a logarithm, say,
    would help.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1))
        >>> treated = NormalizeInput().treat(model, batch_input=torch.tensor([[100.0], [300.0]]))
        >>> treated.changes
        ('the input minus its mean (200), over its standard deviation (100), inside the model',)
        >>> treated.subject.input_mean
        tensor(200.)

    Cost: One pass over the training data, or 10,000 samples of it, on the CPU in float64.

    Source:
        LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4.3.
    """

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "the scale of the input"

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Normalise by the numbers of the batch: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Normalise by the numbers of the batch, in place."""
        if batch_input is None:
            raise TreatmentError(
                self.label, came="a model without a batch", wanted="batch_input, to measure the input's scale"
            )
        gathered = _Gathered(model, batch_input, self.label)
        gathered.add(batch_input)
        return _standardize_(gathered.scales(), model)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build a model that normalises: `AbstractTreatment.treat_task`."""
        if getattr(task, "backward", None) is not None:
            raise TreatmentError(
                self.label, came="a task with a loop of its own", wanted="batches that are (input, target)"
            )
        gathered: list[_Gathered] = []

        def use(data: Any, _target: Any) -> None:
            if not gathered:
                torch.manual_seed(seed)
                gathered.append(_Gathered(built(task), data, self.label))
            gathered[0].add(data)

        over_training_batches(task, use)
        if not gathered:
            raise TreatmentError(self.label, came="a task without batches of (input, target)", wanted="some")
        factory = StandardizedModel(factory=task.model, label=self.label, scales=gathered[0].scales())
        with random_state_kept():
            torch.manual_seed(seed)
            treated = changed_copy(
                self.label, partial(_standardize_, factory.scales), built(task), batch_input=gathered[0].first
            )
        return task_with_model(self.label, task, factory, treated)


class _Gathered:
    """The numbers of each argument that is data, gathered batch by batch."""

    def __init__(self, model: nn.Module, data: Any, label: str) -> None:
        self.first, self._label = data, label
        self._columns: dict[Argument, Columns] = {}
        names = parameter_names(model)
        weighted = next((place.module for place in places(model, data) if place.weighted), None)
        for argument, value in arguments(data, names):
            if is_data(argument, value, alone=is_alone(data)):
                self._columns[argument] = Columns(_column_dim(numbers_of(value), weighted))
        self._names = names
        if not self._columns:
            raise TreatmentError(
                label, came=f"an input of {kinds_of(data)}", wanted="floating-point numbers that are no mask"
            )

    def add(self, data: Any) -> None:
        for argument, value in arguments(data, self._names):
            if argument in self._columns and isinstance(value, Tensor | PackedSequence):
                self._columns[argument].add(numbers_of(value))

    def scales(self) -> Scales:
        if not all(columns.finite for columns in self._columns.values()):
            raise TreatmentError(
                self._label, came="an input that is not finite", wanted="finite numbers", advice="look at the data"
            )
        found = [(argument, columns.scale()) for argument, columns in self._columns.items()]
        scales = tuple((argument, scale) for argument, scale in found if scale is not None and not scale.near_one)
        if not scales:
            came = "an input that is normalised already" if any(scale for _, scale in found) else "a constant input"
            raise TreatmentError(self._label, came=came, wanted="a mean or a standard deviation far from 0 and 1")
        return scales


def _standardize_(scales: Scales, model: nn.Module) -> Change:
    """Derive the class of the model and give it the buffers."""
    names = [name for number in range(len(scales)) for name in _buffers(number)]
    if taken := [name for name in (*names, "standardized") if hasattr(model, name)]:
        raise TreatmentError("NormalizeInput()", came=f"a model that has an attribute {taken[0]!r}", wanted="none")
    device = next((value.device for value in (*model.parameters(), *model.buffers())), None)
    code = _code(type(model).__name__, scales)
    derive_(model, Standardized, "NormalizeInput()")
    model.standardized = tuple(argument for argument, _ in scales)  # type: ignore[assignment]
    for number, (_, scale) in enumerate(scales):
        for name, value in zip(_buffers(number), scale.tensors(), strict=True):
            model.register_buffer(name, value.to(device))
    named = [("the input" if len(scales) == 1 else f"the argument {argument}", scale) for argument, scale in scales]
    return Change(changes=tuple(f"{what} {scale.done}, inside the model" for what, scale in named), code=code)


def _standard(value: Any, mean: Tensor, std: Tensor) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=_standard(value.data, mean, std))
    return ((value - mean) / std).to(value.dtype) if isinstance(value, Tensor) else value


def _buffers(number: int) -> tuple[str, str]:
    end = "" if number == 0 else f"_{number}"
    return f"input_mean{end}", f"input_std{end}"


def _column_dim(value: Tensor, weighted: nn.Module | None) -> int | None:
    """Choose the dimension of the features: by the first layer with weights where that tells, otherwise by custom."""
    dims = value.dim()
    if dims < 2 or (dims == 2 and isinstance(weighted, nn.RNNBase | _ConvNd)):
        return None if dims < 2 or value.shape[-1] != getattr(weighted, "input_size", None) else 1
    if isinstance(weighted, _ConvNd):
        return 1
    fits = isinstance(weighted, nn.Linear) and weighted.in_features == value.shape[-1]
    return dims - 1 if dims <= 3 or fits else 1


def _code(kind: str, scales: Scales) -> str:
    """Write a class that does the same; a long list of numbers is replaced by how they are computed."""
    lines = [
        f"class Standardized{kind}(type(model)):",
        "    def forward(self, *args, **kwargs):",
        "        args = list(args)",
    ]
    for number, (argument, _) in enumerate(scales):
        mean, std = _buffers(number)
        change = f"(%s - self.{mean}) / self.{std}"
        if argument.packed:
            change = f"%s._replace(data=(%s.data - self.{mean}) / self.{std})"
        if argument.place is not None:
            held = f"args[{argument.place}]"
            lines += [f"        if len(args) > {argument.place}:", f"            {held} = {change.replace('%s', held)}"]
        if argument.name is not None:
            held = f"kwargs[{argument.name!r}]"
            lines += [f"        if {argument.name!r} in kwargs:", f"            {held} = {change.replace('%s', held)}"]
    lines += ["        return super().forward(*args, **kwargs)", "", ""]
    for number, (argument, scale) in enumerate(scales):
        lines += _number_lines(_buffers(number), argument, scale)
    return "\n".join([*lines, f"model.__class__ = Standardized{kind}"])


def _number_lines(buffers: tuple[str, str], argument: Argument, scale: Scale) -> list[str]:
    if len(scale.mean) > MOST_WRITTEN:
        dims = scale.tail + 1
        what = f"`inputs`: the training inputs in one tensor ({argument!s}), its features in dimension -{dims}"
        over = f"tuple(d for d in range(inputs.dim()) if d != inputs.dim() - {dims})"
        unit = f"[{', '.join(['...', *['None'] * scale.tail])}]" if scale.tail else ""
        return [
            f"# {what}",
            f"mean, std = inputs.mean({over}), inputs.std({over})",
            "std = torch.where(std > 0, std, std[std > 0].median())",
            f"model.register_buffer({buffers[0]!r}, mean{unit})",
            f"model.register_buffer({buffers[1]!r}, std{unit})",
        ]
    return [f"model.register_buffer({name!r}, {value})" for name, value in zip(buffers, scale.written(), strict=True)]
