"""What a protection has seen: counts on the device, read as events only when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from evengrad.guard._protect_tensors import counted
from evengrad.nouns import shortened

Direction = Literal["forward", "backward"]
LOSS = "the loss"
_NUMBERS = 5  # NaN, infinite, too large; calls with such; of these, calls with inputs that were bad already


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleEvent:
    """What was wrong at the outputs of one module.

    Args:
        module: Its name in the model; empty for the model itself.
        kind: The name of its class.
        direction: Forward: its activations. Backward: the gradients that came back to them.
        shape: Of the output that was stopped; of the last one seen where outputs are clamped.
        dtype: As torch names it: `float32`.
        nan: Elements that were NaN, all calls together.
        infinite: Elements that were infinite.
        too_large: Finite elements above the limit.
        calls: Calls in which there were any.
        inputs_bad: Of these, the calls in which an input of the module was not finite already.
        batch_bad: Whether the inputs of the model itself were not finite; known only where the run was stopped.
        taken_by: Backward: the modules that take the output; the fault arose in these or in operations between.
    """

    module: str
    kind: str
    direction: Direction
    shape: tuple[int, ...]
    dtype: str
    nan: int
    infinite: int
    too_large: int
    calls: int
    inputs_bad: int = 0
    batch_bad: bool = False
    taken_by: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The place: `activation of fc1 (Linear)`."""
        noun = "activation" if self.direction == "forward" else "gradient at the output"
        return f"{noun} of {self.module or 'the model'} ({self.kind})"

    @property
    def counts(self) -> str:
        """The numbers: `2 NaN, 1 infinite of 8 elements, shape (2, 4), float32`."""
        kinds = ((self.nan, "NaN"), (self.infinite, "infinite"), (self.too_large, "too large"))
        found = ", ".join(f"{count} {word}" for count, word in kinds if count)
        calls = "" if self.calls == 1 else f" in {self.calls} calls, the last"
        return f"{found}{calls} of {torch.Size(self.shape).numel()} elements, shape {self.shape}, {self.dtype}"

    @property
    def origin(self) -> str:
        """Where it comes from, as far as can be told."""
        if self.direction == "backward":
            takers = shortened(self.taken_by) if self.taken_by else f"operations in {_around(self.module)}"
            return f"it comes back from {takers}"
        if self.batch_bad:
            return "the inputs of the model are not finite already"
        if not self.inputs_bad:
            return "its inputs are good: this is where it begins"
        often = "its inputs are" if self.inputs_bad == self.calls else f"in {self.inputs_bad} calls its inputs are"
        return (
            f"{often} bad already, by operations before it (in {_around(self.module)} or further out) or by the batch"
        )

    def __str__(self) -> str:
        return f"{self.what}: {self.counts}; {self.origin}"


@final
class Place:
    """The outputs of one module in one direction: what is counted there."""

    def __init__(self, module: str, kind: str, direction: Direction) -> None:
        self.module, self.kind, self.direction = module, kind, direction
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.takers: list[str] = []
        self.batch_bad = False
        self._tally: Tensor | None = None

    def count(self, tensor: Tensor, good: Tensor, limit: float | None, inputs_good: Tensor | None = None) -> None:
        """Add one tensor's faults, on its device and without waiting for it."""
        self.shape, self.dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        with torch.no_grad():
            kinds = counted(tensor, good, limit)
            bad = kinds.sum().gt(0)
            inputs_bad = torch.zeros_like(bad) if inputs_good is None else bad & ~inputs_good.to(bad.device)
            self._to(tensor.device).add_(torch.cat([kinds, torch.stack([bad, inputs_bad])]))

    def taken_by(self, name: str) -> None:
        """Remember a module that takes the output; one around another that takes it as well adds nothing."""
        if not any(one == name or one.startswith(f"{name}.") or not name for one in self.takers):
            self.takers.append(name)

    def event(self, numbers: list[int]) -> ModuleEvent | None:
        """Turn what was counted into an event; None where nothing was wrong."""
        nan, infinite, too_large, calls, inputs_bad = numbers
        if not calls:
            return None
        return ModuleEvent(
            module=self.module,
            kind=self.kind,
            direction=self.direction,
            shape=self.shape,
            dtype=self.dtype,
            nan=nan,
            infinite=infinite,
            too_large=too_large,
            calls=calls,
            inputs_bad=inputs_bad,
            batch_bad=self.batch_bad,
            taken_by=tuple(self.takers) if self.direction == "backward" else (),
        )

    @property
    def tally(self) -> Tensor | None:
        """The counts, on their device."""
        return self._tally

    def _to(self, device: torch.device) -> Tensor:
        if self._tally is None or self._tally.device != device:
            with torch.inference_mode(mode=False):  # made in inference mode it could not be added to outside
                fresh = torch.zeros(_NUMBERS, dtype=torch.int64, device=device)
                self._tally = fresh if self._tally is None else fresh + self._tally.to(device)
        return self._tally


def read(places: Iterable[Place]) -> tuple[ModuleEvent, ...]:
    """Read what was counted, in one transfer per device; waits for the devices."""
    counting = [place for place in places if place.tally is not None]
    devices: dict[torch.device, list[Place]] = {}
    for place in counting:
        assert place.tally is not None
        devices.setdefault(place.tally.device, []).append(place)
    numbers: dict[Place, list[int]] = {}
    for together in devices.values():
        rows = torch.stack([place.tally for place in together if place.tally is not None]).cpu().numpy()
        numbers.update({place: [int(one) for one in row] for place, row in zip(together, rows, strict=True)})
    events = (place.event(numbers[place]) for place in counting)
    return tuple(event for event in events if event is not None)


def _around(module: str) -> str:
    return module.rpartition(".")[0] or "the model"
