"""Where everything lies in an Arrow IPC file or stream: message headers in, spans out.

Pure but for the `fetch` it is given, and total: whatever the bytes, the answer is a scan whose
spans all lie inside the file, or FormatError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.errors import CorruptData, FormatError, UnsupportedFeature
from shufflestore.format import flatbuffer
from shufflestore.format.schema import children_of, is_text_or_bytes, storage_type

__all__ = ["ArrowScan", "Batch", "ColumnPart", "Dictionary", "column_shape", "is_stream", "scan"]

Fetch = Callable[[int, int], bytes]
"""fetch(offset, size) -> exactly the bytes [offset, offset + size)."""

MAGIC: Final = b"ARROW1"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_NODE: Final = np.dtype([("length", "<i8"), ("nulls", "<i8")])
_BUFFER: Final = np.dtype([("offset", "<i8"), ("length", "<i8")])
_BLOCK: Final = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("pad", "<i4"), ("body", "<i8")])
_I64: Final = np.dtype("<i8")
_FREE_ROWS: Final = 1 << 24
"""Records that need no bytes (nulls, run ends, no columns) are believed up to here, and 64 a byte beyond."""


@dataclass(frozen=True)
class Batch:
    """One record batch message."""

    row_count: int
    nodes: NDArray[np.int64]
    """(n, 2) length and null count of each field node."""
    buffers: NDArray[np.int64]
    """(b, 2) first byte in the file and length of each buffer."""
    variadic: tuple[int, ...]
    """Data buffers of each view column, in order."""
    codec: str | None
    """None, "lz4" or "zstd"."""
    body: tuple[int, int]
    """First byte and length of the message body."""


@dataclass(frozen=True)
class Dictionary:
    """One dictionary batch message."""

    id: int
    is_delta: bool
    before: int
    """It is in force from this record batch on."""
    data: Batch


@dataclass(frozen=True)
class ArrowScan:
    """What a file holds and where."""

    schema: pa.Schema
    batches: tuple[Batch, ...]
    dictionaries: tuple[Dictionary, ...]
    dictionary_ids: tuple[int, ...]
    """Ids of the schema's dictionary fields, in preorder."""
    is_stream: bool

    @property
    def row_count(self) -> int:
        """Records in the file."""
        return sum(batch.row_count for batch in self.batches)


def is_stream(fetch: Fetch, size: int) -> bool:
    """Whether the bytes look like an IPC stream and not a file. Raises FormatError if like neither."""
    if size >= 8 and fetch(0, 6) == MAGIC:
        return False
    if size >= 8 and fetch(0, 4) == b"\xff\xff\xff\xff":
        return True
    raise FormatError(
        f"neither an Arrow IPC file nor a stream: {size:,} bytes that begin with {fetch(0, min(size, 8))!r}"
    )


def scan(fetch: Fetch, size: int) -> ArrowScan:
    """Return where the messages of an Arrow file or stream are.

    Args:
        fetch: Gives exact ranges of the file.
        size: Length of the file in bytes.

    Raises:
        FormatError: Not Arrow, cut short, or inconsistent; the message names the byte.
        UnsupportedFeature: Big-endian, or metadata of a version before 1.0.
    """
    stream = is_stream(fetch, size)
    found = _scan_stream(fetch, size) if stream else _scan_file(fetch, size)
    if found.row_count > _FREE_ROWS + 64 * size:
        raise UnsupportedFeature(
            f"{size:,} bytes claim to hold {found.row_count:,} records; such a file is refused rather than unpacked"
        )
    return found


def _scan_stream(fetch: Fetch, size: int) -> ArrowScan:
    position = 0
    schema: pa.Schema | None = None
    ids: tuple[int, ...] = ()
    batches: list[Batch] = []
    dictionaries: list[Dictionary] = []
    while position < size:
        metadata, body = _metadata(fetch, position, size)
        if not metadata:
            break  # the end-of-stream mark
        message = flatbuffer.root(metadata)
        length = message.number(3, "<q")
        if length < 0 or body + length > size:
            raise CorruptData(
                f"the message at byte {position:,} has a body [{body:,}, {body + length:,}), "
                f"but the file ends at {size:,}: it was cut short"
            )
        kind = message.number(1, "<B")
        if kind == _SCHEMA:
            schema, ids = _schema(metadata, message)
        elif schema is None:
            raise FormatError(f"the stream's first message is of kind {kind}, not a schema")
        elif kind == _BATCH:
            batches.append(_batch(_header(message, position), (body, length), position))
        elif kind == _DICTIONARY:
            dictionaries.append(_dictionary(_header(message, position), (body, length), position, len(batches)))
        position = body + length
    if schema is None:
        raise FormatError("the stream holds no schema")
    return _checked(ArrowScan(schema, tuple(batches), tuple(dictionaries), ids, is_stream=True))


def _scan_file(fetch: Fetch, size: int) -> ArrowScan:
    tail = fetch(size - 10, 10) if size >= 18 else b""
    if tail[4:] != MAGIC:
        raise CorruptData(
            f"an Arrow IPC file of {size:,} bytes must end with {MAGIC!r}, this one ends with {tail[4:]!r}: "
            "it was cut short or its writer never closed it"
        )
    length = struct.unpack_from("<i", tail)[0]
    if length <= 0 or length > size - 18:
        raise CorruptData(f"the footer claims {length:,} bytes in a file of {size:,}")
    footer = fetch(size - 10 - length, length)
    top = flatbuffer.root(footer)
    metadata, _ = _metadata(fetch, 8, size)
    if not metadata:
        raise FormatError("the file's first message is empty, not a schema")
    schema, ids = _schema(metadata, flatbuffer.root(metadata))
    batches = []
    for block in top.structs(3, _BLOCK):
        message, body, position = _block(fetch, block, size, _BATCH)
        batches.append(_batch(message, body, position))
    dictionaries = []
    for block in top.structs(2, _BLOCK):
        message, body, position = _block(fetch, block, size, _DICTIONARY)
        dictionaries.append(_dictionary(message, body, position, 0))
    _check_apart(top)
    return _checked(ArrowScan(schema, tuple(batches), tuple(dictionaries), ids, is_stream=False))


def _check_apart(footer: flatbuffer.Table) -> None:
    """Refuse a footer that names a message twice: a few bytes would stand for any number of records."""
    blocks = np.concatenate([footer.structs(3, _BLOCK), footer.structs(2, _BLOCK)])
    blocks = blocks[np.argsort(blocks["offset"], kind="stable")]
    ends = blocks["offset"] + blocks["body"]
    if (blocks["offset"][1:] < ends[:-1]).any() or (np.diff(blocks["offset"]) == 0).any():
        raise CorruptData("the footer names messages that overlap")


def _block(fetch: Fetch, block: np.void, size: int, kind: int) -> tuple[flatbuffer.Table, tuple[int, int], int]:
    """Follow one entry of a file's footer."""
    position, length = int(block["offset"]), int(block["body"])
    if position < 8 or position >= size:
        raise CorruptData(f"the footer names a message at byte {position:,} of a file of {size:,}")
    metadata, body = _metadata(fetch, position, size)
    if not metadata:
        raise CorruptData(f"the footer names an empty message at byte {position:,}")
    message = flatbuffer.root(metadata)
    if message.number(1, "<B") != kind:
        raise CorruptData(f"the message at byte {position:,} is of kind {message.number(1, '<B')}, not {kind}")
    if length != message.number(3, "<q") or length < 0 or body + length > size:
        raise CorruptData(f"footer and message disagree on the body of the message at byte {position:,}")
    return _header(message, position), (body, length), position


def _metadata(fetch: Fetch, position: int, size: int) -> tuple[bytes, int]:
    """Return a message's metadata and where its body begins; empty at the end of a stream."""
    if position + 8 > size:
        if position + 4 <= size and fetch(position, 4) == bytes(4):
            return b"", position + 4
        raise CorruptData(f"a message begins at byte {position:,} but the file ends at {size:,}: it was cut short")
    mark, length = struct.unpack("<Ii", fetch(position, 8))
    start = position + 8
    if mark != 0xFFFFFFFF:  # written before Arrow 0.15: the length stands where the mark is now
        length, start = struct.unpack("<i", struct.pack("<I", mark))[0], position + 4
    if length == 0:
        return b"", start
    if length < 0 or start + length > size:
        raise CorruptData(
            f"the message at byte {position:,} claims {length:,} bytes of metadata, but the file ends at {size:,}"
        )
    return fetch(start, length), start + length


def _header(message: flatbuffer.Table, position: int) -> flatbuffer.Table:
    if message.number(0, "<h") < 3:
        raise UnsupportedFeature(
            f"the message at byte {position:,} has metadata version {message.number(0, '<h') + 1}; "
            "version 4 (Arrow 0.8) is the oldest that can be read"
        )
    header = message.table(2)
    if header is None:
        raise CorruptData(f"the message at byte {position:,} has no header")
    return header


def _schema(metadata: bytes, message: flatbuffer.Table) -> tuple[pa.Schema, tuple[int, ...]]:
    header = message.table(2)
    if message.number(1, "<B") != _SCHEMA or header is None:
        raise FormatError("the first message is not a schema")
    if header.number(0, "<h") != 0:
        raise UnsupportedFeature("the file is big-endian; rewrite it on a little-endian machine")
    framed = struct.pack("<Ii", 0xFFFFFFFF, len(metadata)) + metadata
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(framed))
        for field in schema:
            _decode_names(field)
    except (pa.ArrowException, OSError, ValueError) as cause:
        raise FormatError(f"the schema message is damaged: {cause}") from cause
    ids: list[int] = []
    for field in header.tables(1):
        _dictionary_ids(field, ids)
    return schema, tuple(ids)


def _decode_names(field: pa.Field) -> None:
    """Look at every name: pyarrow decodes them only then, and one that is no UTF-8 is a ValueError."""
    len(field.name)
    for child in children_of(storage_type(field.type)):
        _decode_names(child)


def _dictionary_ids(field: flatbuffer.Table, ids: list[int]) -> None:
    encoding = field.table(4)
    if encoding is not None:
        ids.append(encoding.number(0, "<q"))
    for child in field.tables(5):
        _dictionary_ids(child, ids)


def _batch(header: flatbuffer.Table, body: tuple[int, int], position: int) -> Batch:
    buffers = header.structs(2, _BUFFER).view(_I64).reshape(-1, 2)
    nodes = header.structs(1, _NODE).view(_I64).reshape(-1, 2)
    variadic = tuple(int(count) for count in header.structs(4, _I64))
    rows = header.number(0, "<q")
    start, length = body
    ends = buffers[:, 0] + buffers[:, 1]
    bad = (buffers < 0).any(axis=1) | (buffers > length).any(axis=1) | (ends > length)
    if bad.any() or (nodes < 0).any() or (nodes[:, 1] > nodes[:, 0]).any() or rows < 0:
        raise CorruptData(f"the record batch at byte {position:,} describes buffers outside its own body")
    if any(count < 0 or count > len(buffers) for count in variadic):
        raise CorruptData(f"the record batch at byte {position:,} counts data buffers it does not have")
    compression = header.table(3)
    codec = None
    if compression is not None:
        codec = {0: "lz4", 1: "zstd"}.get(compression.number(0, "<b"))
        if codec is None:
            raise UnsupportedFeature(f"the record batch at byte {position:,} has an unknown compression")
    return Batch(rows, nodes, buffers + np.array([start, 0]), variadic, codec, body)


def _dictionary(header: flatbuffer.Table, body: tuple[int, int], position: int, before: int) -> Dictionary:
    data = header.table(1)
    if data is None:
        raise CorruptData(f"the dictionary batch at byte {position:,} has no data")
    return Dictionary(header.number(0, "<q"), bool(header.number(2, "<b")), before, _batch(data, body, position))


@dataclass(frozen=True)
class ColumnPart:
    """A column's share of each record batch message."""

    first_node: int
    node_count: int
    first_buffer: int
    buffer_count: int
    first_view: int
    view_count: int


def column_shape(type_: pa.DataType) -> tuple[int, int, int]:
    """Return how many field nodes, fixed buffers and view fields a type has in a message."""
    type_ = storage_type(type_)
    if pt.is_dictionary(type_):
        return 1, 2, 0
    nodes, views = 1, 0
    if pt.is_null(type_) or pt.is_run_end_encoded(type_):
        buffers = 0
    elif pt.is_union(type_):
        buffers = 2 if type_.mode == "dense" else 1
    elif pt.is_string_view(type_) or pt.is_binary_view(type_):
        buffers, views = 2, 1
    elif pt.is_struct(type_) or pt.is_fixed_size_list(type_):
        buffers = 1
    elif is_text_or_bytes(type_) or pt.is_list_view(type_) or pt.is_large_list_view(type_):
        buffers = 3
    else:
        buffers = 2
    for child in children_of(type_):
        n, b, v = column_shape(child.type)
        nodes, buffers, views = nodes + n, buffers + b, views + v
    return nodes, buffers, views


def column_parts(schema: pa.Schema, batch: Batch) -> list[ColumnPart]:
    """Return which nodes and buffers of a message belong to which column.

    Raises:
        CorruptData: The message has more or fewer than the schema asks for.
    """
    parts = []
    node = buffer = view = 0
    for field in schema:
        nodes, buffers, views = column_shape(field.type)
        extra = sum(batch.variadic[view : view + views])
        parts.append(ColumnPart(node, nodes, buffer, buffers + extra, view, views))
        node, buffer, view = node + nodes, buffer + buffers + extra, view + views
    if (node, buffer, view) != (len(batch.nodes), len(batch.buffers), len(batch.variadic)):
        raise CorruptData(
            f"a record batch has {len(batch.nodes)} field nodes and {len(batch.buffers)} buffers, "
            f"its schema asks for {node} and {buffer}"
        )
    return parts


def _checked(found: ArrowScan) -> ArrowScan:
    for batch in found.batches:
        for part in column_parts(found.schema, batch):
            if batch.nodes[part.first_node, 0] != batch.row_count:
                raise CorruptData(
                    f"a record batch of {batch.row_count} rows has a column of {batch.nodes[part.first_node, 0]}"
                )
    return found
