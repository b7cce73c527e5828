"""Tables of sampled steps: one row per step, one column per statistic, one number for each layer or parameter."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, final

import numpy as np

from evengrad.runlog._arrow import ANY_LENGTH, Column, Kind, Values
from evengrad.runlog._columns import lists, nullable, plain, plain_lists, real_array

Key = tuple[Any, ...]  # what all rows of a file have in common
Row = tuple[int, Any]  # a step and what `Reading` has of it

_LARGEST = 2**63


class AbstractTable(ABC):
    """How one field of a sampled `Reading` is kept: in files of its own, one for each set of things it tells of."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The field, as in the names of the files."""

    @abstractmethod
    def key(self, content: Any) -> Key:
        """Name what the content tells of, so that two steps of the same share a file."""

    @abstractmethod
    def facts(self, key: Key) -> dict[str, str]:
        """Say what the columns cannot: format, version, which number belongs to what."""

    @abstractmethod
    def key_of(self, facts: Mapping[str, str]) -> Key:
        """Read the key back; ValueError when the header is of something else."""

    @abstractmethod
    def columns(self, key: Key, real: Kind) -> tuple[Column, ...]:
        """Lay out the columns; `real` is the kind of the statistics."""

    @abstractmethod
    def batch(self, rows: Sequence[Row], real: Kind) -> dict[str, Values]:
        """Turn rows of one key into columns."""

    @abstractmethod
    def rows(self, batch: Mapping[str, Values], key: Key) -> Iterator[Row]:
        """Turn columns into rows; the content is empty where it is none of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A column with one number for each thing; `real` is the kind of the run's statistics."""

    name: str
    kind: Kind | Literal["real"] = "real"
    nullable: bool = False


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TableOfMany(AbstractTable):
    """A table whose content is a tuple of nouns, one for each layer or parameter.

    Args:
        name: The field of `Reading`.
        version: Of the columns; each version that was ever written can be read.
        noun: The class of what is in the tuple.
        fixed: Fields that say which layer or parameter it is, and their types (a tuple is one of texts). They stand in
            the header; a step where they differ goes to another file.
        numbers: Fields with one number.
        lists: Fields with a list of numbers, and the column with the length of each.
    """

    name: str
    version: int
    noun: type[Any]
    fixed: tuple[tuple[str, Any], ...]
    numbers: tuple[Number, ...]
    lists: tuple[tuple[str, str], ...] = ()

    def key(self, content: Any) -> Key:
        """Name the set of layers or parameters."""
        return tuple(map(attrgetter(*(name for name, _ in self.fixed)), content))

    def facts(self, key: Key) -> dict[str, str]:
        """Say which layer or parameter is which, in the order of every list."""
        names = [name for name, _ in self.fixed]
        things = json.dumps([dict(zip(names, thing, strict=True)) for thing in key])
        return {"format": f"evengrad-{self.name}", "version": str(self.version), self.name: things}

    def key_of(self, facts: Mapping[str, str]) -> Key:
        """Read the set back."""
        check_format(self.name, self.version, facts)
        try:
            things = json.loads(facts.get(self.name, ""))
            key = tuple(tuple(_hashable(thing[name]) for name, _ in self.fixed) for thing in things)
        except (TypeError, KeyError, RecursionError) as err:
            raise ValueError(f"no set of {self.name}") from err
        if not key or not all(map(self._fits, key)):
            raise ValueError(f"no set of {self.name}")
        return key

    def columns(self, key: Key, real: Kind) -> tuple[Column, ...]:
        """Lay out the columns for so many layers or parameters."""
        width = len(key)
        columns = [Column(name="step", kind="int64")]
        for number in self.numbers:
            kind = _kind(number, real)
            columns.append(Column(name=number.name, kind=kind, width=width, nullable=number.nullable))
        for name, lengths in self.lists:
            columns.append(Column(name=name, kind=real, width=ANY_LENGTH))
            columns.append(Column(name=lengths, kind="int32", width=width))
        return tuple(columns)

    def batch(self, rows: Sequence[Row], real: Kind) -> dict[str, Values]:
        """Turn the nouns of some steps into columns."""
        nouns = [noun for _, content in rows for noun in content]
        columns = {"step": steps_of(rows)}
        for number in self.numbers:
            values = list(map(attrgetter(number.name), nouns))
            columns[number.name] = _values(values, _kind(number, real), number.nullable)
        for name, lengths in self.lists:
            get = attrgetter(name)
            columns[name] = lists([[value for noun in content for value in get(noun)] for _, content in rows], real)
            columns[lengths] = Values(flat=np.array([len(get(noun)) for noun in nouns], dtype=np.int32))
        return columns

    def rows(self, batch: Mapping[str, Values], key: Key) -> Iterator[Row]:
        """Turn columns into steps and their nouns."""
        names = [*(name for name, _ in self.fixed), *(number.name for number in self.numbers)]
        numbers = list(zip(*(plain(batch[number.name]) for number in self.numbers), strict=True))
        width = len(key)
        shares = {name: _shares(batch[name], batch[lengths], width) for name, lengths in self.lists}
        for row, step in enumerate(plain(batch["step"])):
            own = numbers[row * width : (row + 1) * width]
            whole = [dict(zip(names, (*fixed, *some), strict=True)) for fixed, some in zip(key, own, strict=True)]
            for name, rows in shares.items():
                for values, share in zip(whole, rows[row], strict=False):
                    values[name] = share
            fits = all(len(rows[row]) == width for rows in shares.values())
            yield step, tuple(self.noun(**values) for values in whole) if fits else ()

    def _fits(self, thing: Key) -> bool:
        return all(
            isinstance(value, kind)
            and (kind is not int or (not isinstance(value, bool) and -_LARGEST <= value < _LARGEST))
            and (not isinstance(value, tuple) or all(isinstance(one, str) for one in value))
            for value, (_, kind) in zip(thing, self.fixed, strict=True)
        )


def steps_of(rows: Sequence[Row]) -> Values:
    """Make the column of the steps, by which rows are found again."""
    return Values(flat=np.array([step for step, _ in rows], dtype=np.int64))


def check_format(name: str, version: int, facts: Mapping[str, str]) -> None:
    """Raise ValueError when a header is of something else."""
    if (facts.get("format"), facts.get("version")) != (f"evengrad-{name}", str(version)):
        raise ValueError(f"no {name} of version {version}")


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kind(number: Number, real: Kind) -> Kind:
    return real if number.kind == "real" else number.kind


def _values(values: list[Any], kind: Kind, may_be_null: bool) -> Values:
    if may_be_null:
        return nullable(values, kind)
    return Values(flat=real_array(values, kind) if kind.startswith("float") else np.array(values, dtype=kind))


def _shares(flat: Values, lengths: Values, width: int) -> list[list[tuple[float, ...]]]:
    """Give each thing of each row its part of the row's list; nothing where the lengths cannot be right."""
    rows = []
    for numbers, counts in zip(plain_lists(flat), lengths.flat.reshape(-1, width).tolist(), strict=True):
        parts, begin = [], 0
        for length in counts if min(counts) >= 0 and sum(counts) == len(numbers) else ():
            parts.append(numbers[begin : begin + length])
            begin += length
        rows.append(parts)
    return rows
