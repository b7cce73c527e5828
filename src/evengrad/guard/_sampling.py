"""What is seen at a sampled step: layers, weights, the model's ends, and a gradient that was left over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from evengrad.guard._ends import EndsOfModel
from evengrad.guard._leftover import Leftover
from evengrad.guard._models_in_memory import models_of
from evengrad.guard._program import Program
from evengrad.guard._schedule import Schedule
from evengrad.guard._sent import Sent
from evengrad.guard._skips import LOGGER
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, printable
from evengrad.probe import EndsSample, Layout, Sampler, WeightSampler, is_compiled

Result = TypeVar("Result")


@final
class Samplers:
    """What reads the numbers of a sampled step.

    Args:
        model: The model.
        program: The guarded parameters.
        layers: Reads the layers.
    """

    def __init__(self, model: nn.Module, program: Program, layers: Sampler) -> None:
        self.program, self.layers = program, layers
        named = dict(zip(program.names, program.parameters, strict=True))
        self.weights = WeightSampler(named, model)  # type: ignore[arg-type]
        models = models_of(model)
        self.ends = EndsOfModel(models[0] if len(models) == 1 else model)
        self.layers.on_backward = self.ends.backward_begins


@final
class Sample:
    """The numbers of one sampled step, on their way to the host, and what they mean.

    Args:
        samplers: Read them.
        layout: What those of the layers stand for.
        ends: What those of the ends stand for; None where there are none.
        parts: Numbers of the layers; what the loss was multiplied with; whether a gradient was left over; numbers of
            the weights, and of the ends.
    """

    __slots__ = ("_ends", "_layout", "_made", "_samplers", "_sent", "_sizes")

    def __init__(self, samplers: Samplers, layout: Layout, ends: EndsSample | None, parts: Sequence[Tensor]) -> None:
        self._samplers: Samplers | None = samplers  # until the numbers are read: they hold parameters
        self._layout, self._ends = layout, ends
        self._sizes = [part.numel() for part in parts]
        device = next((part.device for part in parts if part.device.type != "cpu"), parts[0].device)
        self._sent: Sent | None = Sent(torch.cat([part.to(device, non_blocking=True) for part in parts]))
        self._made: _Made | None = None

    def __len__(self) -> int:
        return sum(self._sizes)

    def ready(self) -> bool:
        """Whether they can be read without a wait."""
        return self._sent is None or self._sent.ready()

    def added_to(self, reading: Reading, count: int | None) -> Reading:
        """Return a reading with what was seen, of the first `count` parameters."""
        if self._made is None and self._sent is not None:
            self._made, self._sent = self._make(self._sent.read()), None
            self._samplers = self._ends = None
        if self._made is None:
            return reading
        weights = self._made.weights[:count]
        if reading.skipped:  # where the device decides the weights are looked at once more all the same
            weights = tuple(replace(one, update_ratio=None, still_frac=None) for one in weights)
        made = self._made
        return replace(reading, layers=made.layers, weights=weights, ends=made.ends, leftover=made.leftover)

    def forget(self) -> None:
        """Let the numbers go."""
        self._sent = self._made = self._ends = self._samplers = None

    def _make(self, numbers: Sequence[float]) -> _Made:
        parts, start = [], 0
        for size in self._sizes:
            parts.append(numbers[start : start + size])
            start += size
        assert self._samplers is not None
        layers, (scale,), leftover, weights, *rest = parts
        return _Made(
            layers=self._samplers.layers.readings(layers, self._layout, loss_scale=scale) if layers else (),
            weights=self._samplers.weights.readings(weights),
            ends=self._ends.readings(rest[0]) if self._ends is not None else None,
            leftover=leftover[0] != 0 if leftover else None,
        )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    layers: tuple[LayerReading, ...]
    weights: tuple[ParameterReading, ...]
    ends: Ends | None
    leftover: bool | None


Taken = tuple[Samplers, Layout, list[Tensor], EndsSample | None]


@final
class Sampling:
    """Look inside at the steps that a schedule chooses; on the others nothing is attached.

    To `auto` a compiled model shows no layers and no ends: they would have to run eagerly for a step, with other
    roundings and more memory, and watching must not change a run. To a number it shows them, in just that way.

    What fails here ends the looking, with a message, and not the run.

    Args:
        model: The model.
        schedule: Chooses the steps.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.schedule = schedule
        self._model = model
        self._samplers: Samplers | None = None
        self._leftover = Leftover()
        self._taken: Taken | None = None  # of the step that goes on
        self._begun = False
        self._sees_layers = schedule.every != "auto" or not any(map(is_compiled, models_of(model)))
        self._failed = False
        self.next_step = 0  # the first of which it is not settled whether it is sampled

    def begin(self, step: int, program: Program) -> None:
        """Attach for a coming step where it is to be sampled.

        Args:
            step: Its number.
            program: The guarded parameters.
        """
        self._taken, self.next_step = None, step + 1
        if not self._failed and self.schedule.wants(step):
            self._try(lambda: self._begin(program))

    def look(self, loss: Tensor) -> None:
        """Look at the graph of the loss, while it is there."""
        if self._begun and self._samplers is not None:
            self._try(partial(self._samplers.ends.look, loss))

    def take(self, by: Tensor | None, scale: Tensor | None) -> None:
        """Take what was seen before the gradients are changed, and let the model go; of several in a step the first.

        Args:
            by: What the gradients are multiplied with at this moment; None for nothing.
            scale: What the loss was multiplied with; None for nothing, or where it is not known.
        """
        if self._begun:
            self._begun = False
            self._try(lambda: self._take(by, scale))

    def finish(self, *, stepped: bool) -> Sample | None:
        """Send what was seen off once the step has gone by; None where nothing was looked at.

        Args:
            stepped: Whether the step has been made, or may have been.
        """
        taken, self._taken = self._taken, None
        return None if taken is None else self._try(lambda: self._finish(taken, stepped=stepped))

    def end(self) -> None:
        """Let the model go."""
        self._begun = False
        self._leftover.end()
        if self._samplers is not None:
            self._samplers.ends.end()
            if self._samplers.layers.armed:
                self._samplers.layers.disarm()

    def _begin(self, program: Program) -> None:
        if self._samplers is None or self._samplers.program is not program:
            self.end()
            eagerly = self.schedule.every != "auto"
            layers = Sampler(self._model, eagerly=eagerly) if self._samplers is None else self._samplers.layers
            self._samplers = Samplers(self._model, program, layers)
        self._begun = True
        self._leftover.begin(program.parameters)
        if self._sees_layers:
            self._samplers.ends.begin()
            self._samplers.layers.arm()

    def _take(self, by: Tensor | None, scale: Tensor | None) -> None:
        samplers = self._samplers
        assert samplers is not None
        numbers, layout = torch.empty(0), Layout()
        if samplers.layers.armed:
            numbers, layout = samplers.layers.packed(), samplers.layers.layout
            samplers.layers.disarm()
        left, ends = self._leftover.take(), samplers.ends.take()
        samplers.weights.before(by)
        if self.schedule.every == "auto" and left is not None and not layout.calls:
            self._sees_layers = False  # a backward came and no hook was called: compiled since
        scale_1 = numbers.new_ones(1) if scale is None else scale.detach().reshape(1).to(numbers.dtype)
        self._taken = samplers, layout, [numbers, scale_1, _vector(left, numbers)], ends

    def _finish(self, taken: Taken, *, stepped: bool) -> Sample:
        samplers, layout, parts, ends = taken
        if stepped:
            samplers.weights.after()
        more = [samplers.weights.packed()] + ([] if ends is None else [ends.packed()])
        return Sample(samplers, layout, ends, [*parts, *more])

    def _try(self, look: Callable[[], Result]) -> Result | None:
        """Do a part of the looking; a failure is told, and is the end of it."""
        try:
            return look()
        except Exception as err:
            LOGGER.warning("nothing more is sampled: %s: %s", type(err).__name__, printable(" ".join(str(err).split())))
            self._failed = True
            self.end()
            return None


def _vector(value: Tensor | float | None, like: Tensor) -> Tensor:
    """Return a value as a vector; an empty one for None."""
    if value is None:
        return like.new_empty(0)
    return value.reshape(1).to(like.dtype) if isinstance(value, Tensor) else like.new_full((1,), value)
