"""The arguments that a model is called with: which of them are data."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """An argument of a forward: by its place, by its name, or by either.

    Args:
        place: Its number; None where it can be given by name only.
        name: Its name; None where it can be given by place only.
        packed: Whether it is a `PackedSequence`.
    """

    place: int | None
    name: str | None
    packed: bool = False

    def __str__(self) -> str:
        return repr(self.name) if self.name is not None else str(self.place)


def parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Name what the forward takes by its place, as far as it says."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        return tuple(one.name for one in inspect.signature(model.forward).parameters.values() if one.kind in kinds)
    except (TypeError, ValueError):
        return ()


def is_alone(data: Any) -> bool:
    """Tell whether the input is one argument, as `output_of` takes it."""
    return isinstance(data, PackedSequence) or not isinstance(data, tuple | Mapping) or hasattr(data, "_fields")


def arguments(data: Any, names: tuple[str, ...]) -> Iterator[tuple[Argument, Any]]:
    """Give each argument of the forward and its value, as `output_of` calls it."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            place = names.index(name) if name in names else None
            yield Argument(place=place, name=str(name), packed=isinstance(value, PackedSequence)), value
        return
    for place, value in enumerate((data,) if is_alone(data) else data):
        name = names[place] if place < len(names) else None
        yield Argument(place=place, name=name, packed=isinstance(value, PackedSequence)), value


def is_data(argument: Argument, value: Any, *, alone: bool) -> bool:
    """Tell data from ids, masks, lengths and what else a model is called with."""
    if not isinstance(value, Tensor | PackedSequence) or not numbers_of(value).is_floating_point():
        return False
    if alone:
        return True
    numbers, name = numbers_of(value), (argument.name or "").lower()
    if numbers.dim() < 2 or any(word in name for word in ("mask", "length", "weight")):
        return False
    return not bool(((numbers == 0) | (numbers == 1) | numbers.isinf()).all())


def numbers_of(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def kinds_of(data: Any) -> str:
    kinds = [
        str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        for _, value in arguments(data, ())
    ]
    return ", ".join(dict.fromkeys(kinds)) or "nothing"
