"""Columns that are read whole: from the bytes of one chunk's column to an Arrow array.

The message around the bytes is made anew from the checked chunk table, so that pyarrow never
parses metadata that nobody vouched for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.errors import CorruptData
from shufflestore.format import flatbuffer
from shufflestore.format.arrowfile import column_shape
from shufflestore.format.schema import children_of, plain_type, rebuilt, storage_type

__all__ = ["Part", "delivered_type", "dictionary_fields", "integer_array", "rebuild_column"]

_BATCH, _DICTIONARY = 3, 2
_V5 = 4
UNPACKED_LIMIT = 4 << 30
"""Bytes that one compressed column of one chunk may unpack to; a larger claim is a bomb, or needs smaller chunks."""
_CODECS: Final = {"lz4": 0, "zstd": 1}
_WORD: Final = 2**63


@dataclass(frozen=True)
class Part:
    """One column of one message, as the chunk table describes it."""

    offset: int
    size: int
    """Its own contiguous bytes in the shard."""
    crc: int | None
    codec: str | None
    nodes: tuple[tuple[int, int], ...]
    buffers: tuple[tuple[int, int], ...]
    """Relative to `offset`."""
    views: tuple[int, ...]

    @classmethod
    def parse(cls, value: Any, shard_bytes: int) -> Part:
        """Return a part from the chunk table's JSON, every number of it checked. Raises CorruptData."""
        try:
            offset, size = (_count(v) for v in value["span"])
            crc = None if value["crc"] is None else _count(value["crc"])
            part = cls(
                offset, size, crc, value["codec"],
                tuple((_count(a), _count(b)) for a, b in value["nodes"]),
                tuple((_count(a), _count(b)) for a, b in value["buffers"]),
                tuple(_count(v) for v in value["views"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as cause:
            raise CorruptData(f"the chunk table describes a whole column badly ({cause!r})") from cause
        inside = all(a + b <= size for a, b in part.buffers) and all(nulls <= length for length, nulls in part.nodes)
        known = part.codec is None or (isinstance(part.codec, str) and part.codec in _CODECS)
        if offset + size > shard_bytes or not inside or not known or not part.nodes or (crc or 0) >= 2**32:
            raise CorruptData(
                f"the chunk table places a whole column at [{offset}, {offset + size}) of {shard_bytes} bytes"
            )
        return part


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _WORD:
        raise ValueError(f"{value!r} is no count")
    return value


def dictionary_fields(type_: pa.DataType) -> list[pa.DataType]:
    """Return the dictionary types inside a type, in the order in which Arrow numbers them."""
    type_ = storage_type(type_)
    inner = [type_] if pt.is_dictionary(type_) else []
    children = [pa.field("", type_.value_type)] if pt.is_dictionary(type_) else children_of(type_)
    return inner + [found for child in children for found in dictionary_fields(child.type)]


def rebuild_column(
    field: pa.Field, rows: int, part: Part, body: bytes, dictionaries: Sequence[tuple[int, bool, Part, bytes]]
) -> pa.Array:
    """Return the array of one column of one chunk, dictionaries decoded to their values.

    Args:
        field: The column's field.
        rows: Of the chunk.
        part: How its bytes are laid out.
        body: Exactly those bytes, already checked.
        dictionaries: (place among the column's dictionaries, whether a delta, layout, bytes), in order.

    Raises:
        CorruptData: The layout does not fit the type, a compressed buffer claims too much, or Arrow
            refuses the result, even if only in full validation.
    """
    type_ = plain_type(field.type)
    what = f"column {field.name!r} of a chunk"
    _check_shape(type_, part, rows, what)
    _check_unpacked(part, body, what)
    values = [dictionary.value_type for dictionary in dictionary_fields(type_)]
    plain = pa.schema([pa.field("column", type_, field.nullable)])
    pieces = [plain.serialize().to_pybytes()]
    for place, is_delta, layout, data in dictionaries:
        _check_shape(values[place], layout, None, f"a dictionary of column {field.name!r}")
        _check_unpacked(layout, data, f"a dictionary of column {field.name!r}")
        batch = _record_batch(layout)
        pieces.append(_message(_DICTIONARY, flatbuffer.table([("<q", place), batch, ("<b", is_delta)]), data))
    pieces.append(_message(_BATCH, _record_batch(part), body))
    try:
        with pa.ipc.open_stream(pa.py_buffer(b"".join(pieces))) as reader:
            array = reader.read_next_batch().column(0)
        array.validate(full=True)
        return decoded(array)
    except (pa.ArrowException, OSError, ValueError) as cause:
        raise CorruptData(f"{what} cannot be read back: {cause}") from cause


def _check_shape(type_: pa.DataType, part: Part, rows: int | None, what: str) -> None:
    """Hold a layout against the type it must have: pyarrow believes what it is told."""
    nodes, buffers, views = column_shape(type_)
    if (len(part.nodes), len(part.buffers), len(part.views)) != (nodes, buffers + sum(part.views), views):
        raise CorruptData(
            f"{what}: the chunk table gives it {len(part.nodes)} nodes and {len(part.buffers)} buffers, its type "
            f"{type_} has {nodes} and {buffers}; index or convert again"
        )
    if rows is not None and part.nodes[0][0] != rows:
        raise CorruptData(f"{what}: the chunk table gives it {part.nodes[0][0]:,} rows, the chunk has {rows:,}")


def _check_unpacked(part: Part, body: bytes, what: str) -> None:
    """Add up what compressed buffers claim to unpack to, before anything is allocated for them."""
    total = 0
    for offset, size in part.buffers if part.codec else ():
        if not size:
            continue
        claimed = struct.unpack_from("<q", body, offset)[0] if size >= 8 else -2
        if claimed < -1:
            raise CorruptData(f"{what}: a compressed buffer of {size:,} bytes claims to unpack to {claimed:,}")
        total += size if claimed == -1 else claimed  # -1: stored as it is
    if total > UNPACKED_LIMIT:
        raise CorruptData(
            f"{what} claims to unpack to {total:,} bytes, allowed are {UNPACKED_LIMIT:,}; convert the data with "
            "smaller chunks"
        )


def decoded(array: pa.Array) -> pa.Array:
    """Return an array with its dictionaries and runs replaced by the values they stand for, views by plain types."""
    target = delivered_type(array.type)
    return array if target == array.type else _decode(array, target)


def _decode(array: pa.Array, target: pa.DataType) -> pa.Array:
    kind = array.type
    if pt.is_dictionary(kind):
        return decoded(array.dictionary_decode())
    if pt.is_run_end_encoded(kind):
        return decoded(pc.run_end_decode(array))
    mask = array.is_null() if array.null_count else None
    if pt.is_struct(kind):
        children = [decoded(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)
    if pt.is_fixed_size_list(kind):
        size = kind.list_size
        values = decoded(array.values.slice(array.offset * size, len(array) * size))
        return pa.FixedSizeListArray.from_arrays(values, type=target, mask=mask)
    if pt.is_union(kind):
        children = [decoded(array.field(i)) for i in range(kind.num_fields)]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if kind.mode == "sparse":
            return pa.UnionArray.from_sparse(array.type_codes, children, names, kind.type_codes)
        return pa.UnionArray.from_dense(array.type_codes, array.offsets, children, names, kind.type_codes)
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        return array.cast(target)
    if pt.is_map(kind):
        offsets = integer_array(np.asarray(array.offsets)).cast(
            pa.int32()
        )  # a copy: a mask wants offsets that are no slice
        return pa.MapArray.from_arrays(offsets, decoded(array.keys), decoded(array.items), target, mask=mask)
    # Lists of all kinds. Not by cast: pyarrow 26 leaves the last offset of a list view unset.
    flat = decoded(array.flatten())
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if pt.is_list(target):
        return pa.ListArray.from_arrays(integer_array(ends).cast(pa.int32()), flat, target, mask=mask)
    return pa.LargeListArray.from_arrays(integer_array(ends), flat, target, mask=mask)


def integer_array(values: NDArray[np.int64]) -> pa.Array:
    """Return an Arrow array that shares the memory of an int64 array.

    `pa.array` would import pandas to ask whether it is a Series: most of a second, at the first batch.
    """
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.int64))])


def delivered_type(type_: pa.DataType) -> pa.DataType:
    """Return the type in which a column read whole is delivered."""
    type_ = storage_type(type_)
    if pt.is_dictionary(type_) or pt.is_run_end_encoded(type_):
        return delivered_type(type_.value_type)
    if pt.is_string_view(type_) or pt.is_binary_view(type_):
        return pa.large_string() if pt.is_string_view(type_) else pa.large_binary()
    if pt.is_list_view(type_) or pt.is_large_list_view(type_):
        return pa.large_list(type_.value_field.with_type(delivered_type(type_.value_type)))
    return rebuilt(type_, lambda field: field.with_type(delivered_type(field.type)))


def _record_batch(part: Part) -> bytes:
    """A RecordBatch table whose buffers lie where the part says."""
    codec = None if part.codec is None else flatbuffer.table([("<b", _CODECS[part.codec]), ("<b", 0)])
    variadic = np.array(part.views, "<i8") if part.views else None
    return flatbuffer.table(
        [
            ("<q", part.nodes[0][0]),
            np.array(part.nodes, "<i8").reshape(-1, 2).view("<i8,<i8").reshape(-1),
            np.array(part.buffers, "<i8").reshape(-1, 2).view("<i8,<i8").reshape(-1),
            codec,
            variadic,
        ]
    )


def _message(kind: int, header: bytes, body: bytes) -> bytes:
    metadata = flatbuffer.table([("<h", _V5), ("<B", kind), header, ("<q", len(body) + -len(body) % 8)])
    return struct.pack("<Ii", 0xFFFFFFFF, len(metadata)) + metadata + body + bytes(-len(body) % 8)
