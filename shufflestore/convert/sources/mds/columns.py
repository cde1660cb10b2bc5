"""The values of MDS columns: encodings to Arrow types, bytes of a shard to Arrow arrays.

A sample is one uint32 a column of variable size, then the columns' bytes in order. Nothing is unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from shufflestore.errors import SchemaError, SourceError

__all__ = ["Column", "Slices", "array_of", "divide", "peek", "type_of"]

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_NUMBERS: Final = {
    "int": "int64",
    **{name: name for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")},
    **{name: name for name in ("float16", "float32", "float64")},
}
_TEXTS: Final = ("str", "json", "str_int", "str_float", "str_decimal")
"""All are UTF-8; what is a number in decimal digits stays text, of any precision."""
_BYTES: Final = ("bytes", "jpeg", "png")
_CODES: Final = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
"""What an ndarray of no fixed dtype begins with."""
_SHAPED: Final = re.compile(r"ndarray:(\w+):([1-9]\d*(?:,[1-9]\d*)*)", re.ASCII)
_SMALL_BYTES: Final = 16
"""Values up to that are gathered by an index of all their bytes, larger ones one by one."""
_INT32_MAX: Final = 2**31 - 1


@dataclass(frozen=True)
class Column:
    """One column of a shard."""

    name: str
    encoding: str
    size: int | None
    """Bytes of each value; None where each tells its own."""
    dtype: str | None = None
    """Of an ndarray whose encoding does not say it; see `peek`."""
    ndim: int | None = None
    """Likewise."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of an ndarray, if its encoding says it."""
        told = _SHAPED.fullmatch(self.encoding)
        return tuple(map(int, told[2].split(","))) if told and told[1] in _CODES.values() else None

    @property
    def is_open(self) -> bool:
        """Whether it is an ndarray of which dtype or shape are to be seen in the data only."""
        name, _, dtype = self.encoding.partition(":")
        return name == "ndarray" and dtype in ("", *_CODES.values()) and self.ndim is None


@dataclass(frozen=True)
class Slices:
    """Where the values of one column lie in a shard: one start and size a record."""

    data: Bytes
    starts: Counts
    sizes: Counts
    place: str
    """The shard, for errors."""
    row: int
    """The first record's."""

    def gather(self) -> Bytes:
        """Return the values end to end."""
        size = int(self.sizes[0]) if self.sizes.size else 0
        if size <= _SMALL_BYTES and bool((self.sizes == size).all()):
            index = (self.starts[:, None] + np.arange(size)).reshape(-1)
            return np.take(self.data, index)
        view = memoryview(self.data)  # type: ignore[arg-type]  # an array has the buffer protocol
        parts = [view[a : a + n] for a, n in zip(self.starts.tolist(), self.sizes.tolist(), strict=True)]
        return np.frombuffer(b"".join(parts), np.uint8)


def type_of(column: Column, where: str) -> pa.DataType:
    """Return the Arrow type of a column. Raises SourceError for an encoding that is not read, with its name."""
    name, *told = column.encoding.split(":")
    known = _size_of(column)
    if known != column.size or (known or 0) > _INT32_MAX:
        raise SourceError(
            f"{where}: column {column.name!r} of encoding {column.encoding!r} has {column.size} bytes by its index.json, "
            f"not {known}; that is damaged"
        )
    if not told and name in _NUMBERS:
        return pa.from_numpy_dtype(np.dtype(_NUMBERS[name]))
    if not told and name in _TEXTS:
        return pa.string()
    if not told and name in _BYTES:
        return pa.binary()
    if column.shape is not None or column.is_open or column.ndim is not None:
        return _type_of_ndarray(column)
    reason = "is a pickle, which can run any program when read" if name == "pkl" else "is not read here"
    raise SourceError(
        f"{where}: column {column.name!r} has the encoding {column.encoding!r}, which {reason}; leave it out with "
        "columns=[...], or write the data set again with another encoding, such as bytes, json, png or ndarray"
    )


def _size_of(column: Column) -> int | None:
    """Return the bytes of each value by the encoding; that given, where it is not one that is known."""
    name, *told = column.encoding.split(":")
    if name in _NUMBERS:
        return np.dtype(_NUMBERS[name]).itemsize
    if column.shape is not None:
        return math.prod(column.shape) * np.dtype(told[0]).itemsize
    return None if name in (*_TEXTS, *_BYTES, "ndarray") else column.size


def _type_of_ndarray(column: Column) -> pa.DataType:
    parts = column.encoding.split(":")
    shape = column.shape
    if column.is_open:  # no shard has a record
        return pa.null()
    type_ = pa.from_numpy_dtype(np.dtype(parts[1] if len(parts) > 1 else column.dtype))
    if shape is None:
        for _ in range(column.ndim or 1):
            type_ = pa.list_(type_)
        return type_
    return pa.list_(type_, shape[0]) if len(shape) == 1 else pa.fixed_shape_tensor(type_, shape)


def divide(data: Bytes, offsets: Counts, columns: Sequence[Column], place: str, row: int) -> dict[str, Slices]:
    """Return where each column's values lie.

    Args:
        data: A shard, or a part of one.
        offsets: (n + 1,), in `data`, of n samples and the end of the last.
        columns: All of them, in order.
        place: The shard, for errors.
        row: The first sample's.

    Raises:
        SourceError: Sizes do not add up to a sample's.
    """
    starts, stops = offsets[:-1], offsets[1:]
    head = 4 * sum(column.size is None for column in columns)
    short = np.flatnonzero(stops - starts < head)
    told = np.zeros((starts.size, head // 4), np.int64)
    if head and not short.size:
        told = data[starts[:, None] + np.arange(head)].view("<u4").astype(np.int64)
    found: dict[str, Slices] = {}
    at, variable = starts + head, 0
    for column in columns:
        if column.size is None:
            sizes = told[:, variable]
            variable += 1
        else:
            sizes = np.full(starts.size, column.size, np.int64)
        found[column.name] = Slices(data, at, sizes, place, row)
        at = at + sizes
    wrong = short if short.size else np.flatnonzero(at != stops)
    if wrong.size:
        i = int(wrong[0])
        raise SourceError(
            f"{place} record {row + i:,}: its columns take {int(at[i] - starts[i]):,} bytes, but it has "
            f"{int(stops[i] - starts[i]):,}; the shard is damaged or not described by its index.json"
        )
    return found


def peek(column: Column, slices: Slices) -> Column:
    """Return a column with the dtype and number of dimensions that its first value has."""
    dtype, shape, _ = _ndarray(column, slices, 0)
    return replace(column, dtype=dtype, ndim=len(shape))


def array_of(column: Column, slices: Slices) -> pa.Array:
    """Return a column's values; binary and text with 64-bit offsets, to be cast. Raises SourceError, SchemaError."""
    name = column.encoding.split(":")[0]
    if name == "ndarray" and column.shape is None:
        return _nested(column, slices)
    values = slices.gather()
    if name in _NUMBERS:
        return pa.array(values.view(np.dtype(_NUMBERS[name]).newbyteorder("<")))
    if column.shape is not None:
        flat = pa.array(values.view(np.dtype(column.encoding.split(":")[1])))
        rows = pa.FixedSizeListArray.from_arrays(flat, math.prod(column.shape))
        is_flat = len(column.shape) == 1
        return rows if is_flat else pa.ExtensionArray.from_storage(type_of(column, slices.place), rows)
    offsets = np.concatenate([[0], np.cumsum(slices.sizes)]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    array = pa.Array.from_buffers(pa.large_binary(), slices.sizes.size, buffers)
    return _text(array, column, slices) if name in _TEXTS else array


def _text(array: pa.Array, column: Column, slices: Slices) -> pa.Array:
    try:
        return array.cast(pa.large_string())
    except pa.ArrowInvalid:
        for i, value in enumerate(array):
            try:
                value.as_py().decode()
            except UnicodeDecodeError as e:
                raise SchemaError(
                    f"{slices.place} record {slices.row + i:,}: column {column.name!r} is not UTF-8 at its byte {e.start:,}"
                ) from None
        raise


def _ndarray(column: Column, slices: Slices, i: int) -> tuple[str, tuple[int, ...], memoryview]:
    """Return (dtype, shape, bytes) of one ndarray that tells them."""
    start, size = int(slices.starts[i]), int(slices.sizes[i])
    text = memoryview(slices.data[start : start + size])  # type: ignore[arg-type]  # an array has the buffer protocol
    told = column.encoding.split(":")[1:]
    try:
        dtype = told[0] if told else _CODES[text[0]]
        at = 0 if told else 1
        ndim, width = text[at] >> 2, 1 << (text[at] & 3)
        shape = tuple(np.frombuffer(text, f"<u{width}", ndim, at + 1).tolist())
    except (KeyError, IndexError, ValueError) as e:
        raise _damaged(column, slices, i, f"begins with {bytes(text[:8])!r}, which no ndarray does ({e!r})") from None
    values = text[at + 1 + ndim * width :]
    if not ndim or math.prod(shape) * np.dtype(dtype).itemsize != len(values):
        raise _damaged(column, slices, i, f"has {len(values):,} bytes of {dtype}, not those of shape {shape}")
    return dtype, shape, values


def _damaged(column: Column, slices: Slices, i: int, reason: str) -> SourceError:
    return SourceError(
        f"{slices.place} record {slices.row + i:,}: column {column.name!r} {reason}; the shard is damaged"
    )


def _nested(column: Column, slices: Slices) -> pa.Array:
    """Return ndarrays of any shape as lists, of lists for each further dimension."""
    parts, shapes = [], []
    known = (column.encoding.split(":")[1:] or [str(column.dtype)])[0]
    for i in range(slices.sizes.size):
        dtype, shape, values = _ndarray(column, slices, i)
        if dtype != known or len(shape) != column.ndim:
            raise SchemaError(
                f"{slices.place} record {slices.row + i:,}: column {column.name!r} is {dtype} of {len(shape)} dimensions, but "
                f"the first record's is {known} of {column.ndim}; a column has one type: leave it out with columns=[...], "
                "or write the data set again"
            )
        parts.append(values)
        shapes.append(shape)
    flat = np.frombuffer(b"".join(parts), np.dtype(known).newbyteorder("<"))
    sizes = np.array(shapes, np.int64).reshape(len(shapes), column.ndim or 1)
    array = pa.array(flat)
    for level in reversed(range(sizes.shape[1])):
        lengths = np.repeat(sizes[:, level], sizes[:, :level].prod(axis=1))
        ends = np.concatenate([[0], np.cumsum(lengths)])
        if ends[-1] > _INT32_MAX:
            raise _damaged(column, slices, 0, f"and those behind have {int(ends[-1]):,} items, too many for a list")
        array = pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), array)
    return array
