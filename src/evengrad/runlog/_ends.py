"""The table of the model's ends: a text per sampled step, as they are few and have no fixed shape."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from evengrad.nouns import Ends, to_json
from evengrad.runlog._arrow import Column, Kind, Values
from evengrad.runlog._columns import plain_texts, texts
from evengrad.runlog._tables import AbstractTable, Key, Row, check_format, steps_of
from evengrad.runlog._untrusted import noun_of

_KEY = ("ends",)  # any two can share a file


@final
class TableOfEnds(AbstractTable):
    """Keep `Reading.ends` as JSON: exact, and a field that is added to the noun needs no new version."""

    @property
    def name(self) -> str:
        """The field of `Reading`."""
        return "ends"

    def key(self, content: Any) -> Key:
        """All ends share a file."""
        return _KEY

    def facts(self, key: Key) -> dict[str, str]:
        """Name the format."""
        return {"format": "evengrad-ends", "version": "1"}

    def key_of(self, facts: Mapping[str, str]) -> Key:
        """Check the format."""
        check_format(self.name, 1, facts)
        return _KEY

    def columns(self, key: Key, real: Kind) -> tuple[Column, ...]:
        """Lay out the columns."""
        return (Column(name="step", kind="int64"), Column(name="ends", kind="text"))

    def batch(self, rows: Sequence[Row], real: Kind) -> dict[str, Values]:
        """Turn ends into texts."""
        return {"step": steps_of(rows), "ends": texts([to_json(ends) for _, ends in rows])}

    def rows(self, batch: Mapping[str, Values], key: Key) -> Iterator[Row]:
        """Turn texts into ends; None where a text is none of ours."""
        for step, text in zip(batch["step"].flat.tolist(), plain_texts(batch["ends"]), strict=True):
            yield step, noun_of(Ends, text)


ENDS = TableOfEnds()
