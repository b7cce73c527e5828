"""Arrow IPC streams: the only module that knows nanoarrow, so that another Arrow library can take its place."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import nanoarrow
import numpy as np
from nanoarrow.c_array_stream import CArrayStream
from nanoarrow.ipc import InputStream, StreamWriter

Kind = Literal["int32", "int64", "float32", "float64", "bool", "text"]

ANY_LENGTH = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column: a number or text per row, or a list of `width` numbers, or of any length; nullable are the numbers."""

    name: str
    kind: Kind
    width: int | None = None
    nullable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """The numbers of a column, row after row; `missing` marks nulls, `lengths` are those of lists of any length.

    Of a column of texts, the bytes in UTF-8 and the length of each text.
    """

    flat: np.ndarray[Any, Any]
    missing: np.ndarray[Any, Any] | None = None
    lengths: np.ndarray[Any, Any] | None = None


@final
class Encoder:
    """Turn batches of columns into the bytes of one stream."""

    def __init__(self, columns: tuple[Column, ...], facts: Mapping[str, str]) -> None:
        self._columns = columns
        fields = nanoarrow.struct({column.name: _type(column) for column in columns})
        metadata = {key.encode(): text.encode() for key, text in facts.items()}
        self._schema = nanoarrow.c_schema(fields).modify(metadata=metadata)
        self._bytes = io.BytesIO()
        self._writer = StreamWriter.from_writable(self._bytes)

    def header(self) -> bytes:
        """Encode the schema; comes first, once."""
        self._writer.write_stream(CArrayStream.from_c_arrays([], self._schema))
        return self._taken()

    def batch(self, columns: Mapping[str, Values], rows: int) -> bytes:
        """Encode one record batch."""
        children = [_array(column, columns[column.name], rows) for column in self._columns]
        self._writer.write_stream(nanoarrow.c_array_from_buffers(self._schema, rows, [None], children=children))
        return self._taken()

    def _taken(self) -> bytes:
        taken = self._bytes.getvalue()
        self._bytes.seek(0)
        self._bytes.truncate()
        return taken


def decoded(
    data: bytes, columns_of: Callable[[dict[str, str]], tuple[Column, ...]]
) -> Iterator[tuple[int, dict[str, Values]]]:
    """Read a stream whose bytes are known to be undamaged.

    Yields the number of rows and the columns of each batch.

    Raises:
        ValueError: It is no stream, or the columns are not those that `columns_of` wants.
    """
    try:
        stream = nanoarrow.c_array_stream(InputStream.from_readable(data))
        schema = stream.get_schema()
        columns = columns_of({key.decode(): text.decode() for key, text in dict(schema.metadata or {}).items()})
        if not schema.type_equals(nanoarrow.c_schema(nanoarrow.struct({c.name: _type(c) for c in columns}))):
            raise ValueError("other columns")
        if [child.name for child in schema.children] != [column.name for column in columns]:
            raise ValueError("columns of other names")
        for batch in stream:
            rows = len(batch)
            yield rows, {c.name: _values(c, batch.child(i), rows) for i, c in enumerate(columns)}
    except (RuntimeError, OSError, MemoryError, OverflowError, KeyError) as err:  # NanoarrowException is a RuntimeError
        raise ValueError(str(err)) from err


def _type(column: Column) -> Any:
    item = _item(column.kind)
    if column.width is None:
        return item
    return nanoarrow.list_(item) if column.width == ANY_LENGTH else nanoarrow.fixed_size_list(item, column.width)


def _item(kind: Kind) -> Any:
    return getattr(nanoarrow, {"bool": "bool_", "text": "string"}.get(kind, kind))()


def _array(column: Column, values: Values, rows: int) -> Any:
    if column.kind == "text":
        return nanoarrow.c_array_from_buffers(_type(column), rows, [None, _offsets(values.lengths), values.flat])
    flat = values.flat.astype(column.kind, copy=False)
    data = np.packbits(flat, bitorder="little") if column.kind == "bool" else np.ascontiguousarray(flat)
    valid = None if values.missing is None else np.packbits(~values.missing, bitorder="little")
    array = nanoarrow.c_array_from_buffers(_item(column.kind), len(flat), [valid, data])
    if column.width is None:
        return array
    buffers: list[Any] = [None]
    if values.lengths is not None:
        buffers.append(_offsets(values.lengths))
    return nanoarrow.c_array_from_buffers(_type(column), rows, buffers, children=[array])


def _offsets(lengths: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    assert lengths is not None, "lists of any length and texts have lengths"
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    if offsets[-1] >= 2**31:
        raise ValueError("a batch with too many numbers in its lists")
    return offsets.astype(np.int32)


def _values(column: Column, array: Any, rows: int) -> Values:
    if column.kind == "text":
        return _text_values(array, rows)
    lengths, count = None, rows
    if column.width is not None:
        if array.null_count:
            raise ValueError("a list is null")
        if column.width == ANY_LENGTH:
            lengths = _lengths(array, rows)
            count = int(lengths.sum())
        else:
            count = rows * column.width
        array = array.child(0)
    view = array.view()
    flat = np.array(view.buffer(1))
    flat = np.unpackbits(flat, bitorder="little").astype(bool)[:count] if column.kind == "bool" else flat[:count]
    valid = np.unpackbits(np.array(view.buffer(0)), bitorder="little")[:count].astype(bool) if view.null_count else None
    if valid is not None and not column.nullable:
        raise ValueError("a number is null")
    if len(flat) != count or view.offset or (valid is not None and len(valid) != count):
        raise ValueError("a column is too short")
    return Values(flat=flat, missing=None if valid is None else ~valid, lengths=lengths)


def _text_values(array: Any, rows: int) -> Values:
    view = array.view()
    if view.null_count or view.offset:
        raise ValueError("a text is null")
    lengths = _lengths(array, rows)
    flat = np.frombuffer(view.buffer(2), dtype=np.uint8)[: int(lengths.sum())]
    if len(flat) != lengths.sum():
        raise ValueError("a column is too short")
    return Values(flat=flat, lengths=lengths)


def _lengths(array: Any, rows: int) -> np.ndarray[Any, Any]:
    offsets = np.array(array.view().buffer(1))[: rows + 1]
    if rows and offsets[0] != 0:
        raise ValueError("a list does not begin at zero")
    lengths = np.diff(offsets)
    if len(lengths) != rows or (lengths < 0).any():
        raise ValueError("lists of impossible lengths")
    return lengths
