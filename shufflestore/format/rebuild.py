"""Columns that are read whole: from the bytes of one chunk's column to an Arrow array.

The message around the bytes is made anew from the checked chunk table, so that pyarrow never
parses metadata that nobody vouched for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shufflestore.errors import CorruptData
from shufflestore.format import flatbuffer
from shufflestore.format.arrowfile import column_shape
from shufflestore.format.schema import children_of, storage_type

__all__ = ["Part", "dictionary_fields", "rebuild_column"]

_BATCH, _DICTIONARY = 3, 2
_V5 = 4
_DECOMPRESSED_LIMIT = 2**40
"""No buffer of a chunk claims more; a larger claim is damage, not data."""


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
    def parse(cls, value: dict[str, Any], shard_bytes: int) -> Part:
        """Return a part from the chunk table's JSON. Raises CorruptData if it leaves the shard."""
        try:
            offset, size = (int(v) for v in value["span"])
            part = cls(
                offset, size, value["crc"], value["codec"],
                tuple((int(a), int(b)) for a, b in value["nodes"]),
                tuple((int(a), int(b)) for a, b in value["buffers"]),
                tuple(int(v) for v in value["views"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as cause:
            raise CorruptData(f"the chunk table describes a whole column badly ({cause})") from cause
        inside = all(a >= 0 and b >= 0 and a + b <= size for a, b in part.buffers)
        if offset < 0 or size < 0 or offset + size > shard_bytes or not inside:
            raise CorruptData(f"the chunk table places a whole column at [{offset}, {offset + size}), outside the shard")
        return part


def dictionary_fields(type_: pa.DataType) -> list[pa.DataType]:
    """Return the dictionary types inside a type, in the order in which Arrow numbers them."""
    type_ = storage_type(type_)
    inner = [type_] if pt.is_dictionary(type_) else []
    children = [pa.field("", type_.value_type)] if pt.is_dictionary(type_) else children_of(type_)
    return inner + [found for child in children for found in dictionary_fields(child.type)]


def rebuild_column(
    field: pa.Field, part: Part, body: bytes, dictionaries: Sequence[tuple[int, bool, Part, bytes]]
) -> pa.Array:
    """Return the array of one column of one chunk, dictionaries decoded to their values.

    Args:
        field: The column's field.
        part: How its bytes are laid out.
        body: Exactly those bytes, already checked.
        dictionaries: (place among the column's dictionaries, whether a delta, layout, bytes), in order.

    Raises:
        CorruptData: Arrow refuses the result, even if only in full validation.
    """
    plain = pa.schema([pa.field("column", _unextended(field.type), field.nullable)])
    pieces = [plain.serialize().to_pybytes()]
    for place, is_delta, layout, data in dictionaries:
        batch = _record_batch(layout)
        pieces.append(_message(_DICTIONARY, flatbuffer.table([("<q", place), batch, ("<b", is_delta)]), data))
    pieces.append(_message(_BATCH, _record_batch(part), body))
    try:
        with pa.ipc.open_stream(pa.py_buffer(b"".join(pieces))) as reader:
            array = reader.read_next_batch().column(0)
        array.validate(full=True)
        return decoded(array)
    except (pa.ArrowException, OSError, ValueError) as cause:
        raise CorruptData(f"column {field.name!r} of a chunk cannot be read back: {cause}") from cause


def _unextended(type_: pa.DataType) -> pa.DataType:
    return storage_type(type_)


def decoded(array: pa.Array) -> pa.Array:
    """Return an array with its dictionaries and runs replaced by the values they stand for, views by plain types."""
    target = delivered_type(array.type)
    return array if target == array.type else _cast(array, target)


def _cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    if pt.is_dictionary(array.type):
        return decoded(array.dictionary_decode())
    if pt.is_run_end_encoded(array.type):
        return decoded(pa.compute.run_end_decode(array))
    if pt.is_struct(array.type):
        children = [decoded(child) for child in array.flatten()]
        names = [array.type.field(i).name for i in range(array.type.num_fields)]
        fields = [pa.field(n, c.type) for n, c in zip(names, children, strict=True)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())
    if pt.is_list(array.type) or pt.is_large_list(array.type):
        kind = pa.LargeListArray if pt.is_large_list(array.type) else pa.ListArray
        return kind.from_arrays(array.offsets, decoded(array.values), mask=array.is_null() if array.null_count else None)
    return array.cast(target)


def delivered_type(type_: pa.DataType) -> pa.DataType:
    """Return the type in which a column read whole is delivered."""
    type_ = storage_type(type_)
    if pt.is_dictionary(type_) or pt.is_run_end_encoded(type_):
        return delivered_type(type_.value_type)
    if pt.is_string_view(type_) or pt.is_binary_view(type_):
        return pa.large_string() if pt.is_string_view(type_) else pa.large_binary()
    if pt.is_list_view(type_) or pt.is_large_list_view(type_):
        return pa.large_list(type_.value_field.with_type(delivered_type(type_.value_type)))
    if pt.is_struct(type_):
        return pa.struct([f.with_type(delivered_type(f.type)) for f in children_of(type_)])
    if pt.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(delivered_type(type_.value_type)))
    if pt.is_list(type_):
        return pa.list_(type_.value_field.with_type(delivered_type(type_.value_type)))
    return type_


def _record_batch(part: Part) -> bytes:
    """A RecordBatch table whose buffers lie where the part says."""
    codec = None if part.codec is None else flatbuffer.table([("<b", {"lz4": 0, "zstd": 1}[part.codec]), ("<b", 0)])
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


def node_count(type_: pa.DataType) -> int:
    """Return how many field nodes a column of this type has."""
    return column_shape(type_)[0]
