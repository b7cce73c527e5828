"""Statistics of layers from a sample of their elements, on some steps."""

from typing import final

import torch
from torch import Tensor, nn

from evengrad.nouns import LayerReading, SettingError
from evengrad.probe import Layout, Sampler


@final
class Sample:
    """The numbers of one sampled step, on their way to the host; the step's own numbers arrive after them.

    Args:
        numbers: What the sampler has packed.
        layout: What they mean.
        by: What a GradScaler has multiplied the loss with; None for nothing, or where it is not known.
    """

    __slots__ = ("_layout", "_numbers", "_readings")

    def __init__(self, numbers: Tensor, layout: Layout, by: Tensor | None) -> None:
        scale = numbers.new_ones(1) if by is None else by.detach().reshape(1).to(numbers)
        numbers = torch.cat([numbers, scale])
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
        else:
            self._numbers = numbers
        self._layout = layout
        self._readings: tuple[LayerReading, ...] | None = None

    def readings(self, sampler: Sampler) -> tuple[LayerReading, ...]:
        """Return what was seen; only to be asked when the step's numbers are there."""
        if self._readings is None:
            *numbers, scale = self._numbers.cpu().numpy().tolist()
            self._readings = sampler.readings(numbers, self._layout, loss_scale=scale)
        return self._readings


@final
class Layers:
    """Sample the layers of a model at every so many steps; on the others nothing is attached.

    Args:
        model: The model.
        every_steps: How many; None for never.

    Raises:
        SettingError: It is no whole number from 1.
    """

    def __init__(self, model: nn.Module, every_steps: int | None) -> None:
        whole = isinstance(every_steps, int) and not isinstance(every_steps, bool)
        if every_steps is not None and (not whole or every_steps < 1):
            raise SettingError("sample_every_steps", came=repr(every_steps), wanted="a whole number from 1, or None")
        self._every = every_steps
        self.sampler = Sampler(model) if every_steps is not None else None
        self.begin(0)

    def begin(self, step: int) -> None:
        """Attach to the model for a coming step that is to be sampled."""
        if self.sampler is not None and self._every is not None and step % self._every == 0:
            self.sampler.arm()

    def take(self, by: Tensor | None) -> Sample | None:
        """Take what was seen, and let the model go; None when it was not watched, or nothing was seen."""
        sampler = self.sampler
        if sampler is None or not sampler.armed:
            return None
        numbers, layout = sampler.packed(), sampler.layout
        sampler.disarm()
        return Sample(numbers, layout, by) if numbers.numel() else None

    def end(self) -> None:
        """Let the model go."""
        if self.sampler is not None:
            self.sampler.disarm()
