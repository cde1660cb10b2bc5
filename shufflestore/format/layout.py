"""The row index of a shard: its header, its pages, and where in an entry each thing stands.

The index answers "row -> spans and checksums" from itself alone. `docs/format.md` is the
specification; this module is its arithmetic, without I/O.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import CorruptData, FormatError, UnsupportedFeature
from shufflestore.format.narrow import FEATURE, check_narrow, shard_tree
from shufflestore.format.schema import Buffer, Role, Tree, schema_digest

__all__ = ["ABSENT", "COPIED_LIMIT", "IndexHeader", "Layout", "layout_of", "parse_header"]

MAGIC: Final = b"SSROWS1\n"
FIXED: Final = struct.Struct("<8sIIQQQIIIIIIIIII")
"""Magic, header bytes, flags, rows, shard bytes, index bytes, chunks, pages, page bytes, rows a page,
rows a chunk (0: they differ), chunk table bytes, its CRC, CRC of the bytes outside record spans,
description bytes, 0."""
CHECKSUMS: Final = 1
"""Flag: entries carry a CRC for each buffer read."""
COPIED_LIMIT: Final = 32
"""Bytes of fixed-width values copied into an entry: label, flags, ids; more would cost pages."""
PAGE_HEAD: Final = struct.Struct("<IIQII")
"""Page number, chunk, its first row counted from the chunk's own first, rows, 0."""
ABSENT: Final = 2**64 - 1
"""Buffer offset, in a page, of a buffer that this chunk does not have."""
MIN_PAGE: Final = 4096
MIN_ROWS: Final = 32
MAX_PAGE: Final = 1 << 24
FEATURES: Final[frozenset[str]] = frozenset({FEATURE})
"""Features of the row index that this reader knows."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in an entry and a page each thing stands, for one set of buffers. Compared by identity."""

    tree: Tree
    present: tuple[bool, ...]
    """Which of the tree's buffers some chunk of the shard has."""
    checksums: bool
    bits: dict[int, int]
    """Buffer -> bit number, counted from the entry's first byte, lowest bit first."""
    copied: dict[int, int]
    """Buffer -> byte in the entry where its value is copied."""
    head_bytes: int
    """Bits and copied values stand in [0, head_bytes)."""
    starts: int
    """Byte in the entry of the first level's start; four bytes a level."""
    reads: tuple[Buffer, ...]
    """Buffers that a record reads, in preorder."""
    crcs: int
    """Byte in the entry of the first read's CRC; four bytes a read."""
    entry_bytes: int
    page_head_bytes: int
    page_bytes: int
    rows_per_page: int

    @property
    def features(self) -> list[str]:
        """What a reader must know to read shards of this layout."""
        return [FEATURE] if self.tree.narrow else []

    def pages_for(self, rows: int) -> int:
        """Return how many pages a chunk of so many rows takes; an empty chunk takes none."""
        return -(-rows // self.rows_per_page)


@lru_cache(maxsize=256)
def layout_of(tree: Tree, present: tuple[bool, ...], checksums: bool) -> Layout:
    """Return the layout that a tree and the buffers at hand determine."""
    bits: dict[int, int] = {}
    copied: dict[int, int] = {}
    reads: list[Buffer] = []
    used = 0
    for buffer in tree.buffers:
        small = buffer.is_at_row_depth and buffer.role == Role.VALUES and buffer.width <= 8
        if small and used + buffer.width <= COPIED_LIMIT:
            # Whether present or not: which values are copied is a matter of the schema alone.
            copied[buffer.number] = used
            used += buffer.width
        elif buffer.is_at_row_depth and buffer.role in (Role.VALIDITY, Role.BITS):
            if present[buffer.number]:
                bits[buffer.number] = len(bits)
        elif present[buffer.number] and not (buffer.is_at_row_depth and buffer.role == Role.OFFSETS):
            reads.append(buffer)
    bit_bytes = -(-len(bits) // 8)
    copied = {number: place + bit_bytes for number, place in copied.items()}
    starts = bit_bytes + used
    crcs = starts + 4 * tree.level_count
    entry = max(crcs + (4 * len(reads) if checksums else 0), 1)
    head = PAGE_HEAD.size + 8 * tree.level_count + 8 * len(reads)
    page = MIN_PAGE
    while page < head + (MIN_ROWS + 1) * entry:
        page *= 2
    if page > MAX_PAGE:
        raise UnsupportedFeature(
            f"{len(tree.schema):,} columns with {len(tree.buffers):,} buffers need index pages of {page:,} bytes, allowed "
            f"are {MAX_PAGE:,}; pack columns into lists"
        )
    return Layout(
        tree, present, checksums, bits, copied, bit_bytes + used, starts, tuple(reads), crcs, entry, head,
        page, (page - head) // entry - 1,
    )  # fmt: skip


@dataclass(frozen=True)
class IndexHeader:
    """The header of a shard's row index."""

    layout: Layout
    row_count: int
    shard_bytes: int
    index_bytes: int
    chunk_count: int
    page_count: int
    chunk_rows: int
    """Rows of every chunk but the last; 0 where they differ."""
    table_bytes: int
    table_crc: int
    outside_crc: int
    """CRC32C of the shard's bytes outside record spans, in file order; 0 without checksums."""
    page_crcs: NDArray[np.uint32]
    header_bytes: int

    @property
    def pages_at(self) -> int:
        """First byte of page 0: a multiple of the page size."""
        size = self.layout.page_bytes
        return -(-(self.header_bytes + self.table_bytes) // size) * size

    @property
    def pages_per_chunk(self) -> int:
        """Pages of every chunk but the last, where all have as many rows."""
        return self.layout.pages_for(self.chunk_rows)

    def encode(self) -> bytes:
        """Return the header's bytes."""
        layout = self.layout
        description = describe(layout)
        size = FIXED.size + len(description) + 4 * self.page_count
        return (
            FIXED.pack(
                MAGIC, size, CHECKSUMS if layout.checksums else 0, self.row_count, self.shard_bytes,
                self.index_bytes, self.chunk_count, self.page_count, layout.page_bytes, layout.rows_per_page,
                self.chunk_rows, self.table_bytes, self.table_crc, self.outside_crc, len(description), 0,
            )
            + description
            + self.page_crcs.astype("<u4").tobytes()
        )  # fmt: skip


def describe(layout: Layout) -> bytes:
    """Return the part of the header that determines the layout, as canonical JSON."""
    present = np.packbits(np.array(layout.present, bool), bitorder="little").tobytes().hex()
    value: dict[str, Any] = {
        "features": layout.features,
        "present": present,
        "schema": schema_digest(layout.tree.schema).hex(),
        "whole": sorted(layout.tree.whole),
    }
    if layout.tree.narrow:
        value["narrow"] = {str(node): code for node, code in layout.tree.narrow}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def parse_header(data: bytes, tree: Tree, digest: bytes | None, name: str) -> IndexHeader:
    """Return a header after checking all of it.

    Args:
        data: The header's bytes, neither more nor fewer.
        tree: Of the data set's schema.
        digest: The SHA-256 that the manifest vouches for; None to trust the bytes (while indexing).
        name: Of the index, for errors.

    Raises:
        CorruptData: The digest or any field disagrees.
        UnsupportedFeature: Written by a newer version.
    """
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise CorruptData(
            f"{name}: the header of the row index does not have the SHA-256 that the manifest names; "
            "the file is damaged or belongs to another data set: restore it, or index or convert again"
        )
    if len(data) < FIXED.size or data[:8] != MAGIC:
        raise FormatError(f"{name}: not a row index: it begins with {data[:8]!r}, expected {MAGIC!r}")
    values = FIXED.unpack_from(data)
    (_, size, flags, rows, shard, total, chunks, pages, page, per_page, chunk_rows, table, table_crc, outside,
     described, zero) = values  # fmt: skip
    if size != len(data) or size != FIXED.size + described + 4 * pages or zero or flags & ~CHECKSUMS:
        raise CorruptData(f"{name}: the header's own lengths disagree with its {len(data):,} bytes")
    try:
        layout = _layout(data[FIXED.size : FIXED.size + described], bool(flags & CHECKSUMS), tree)
    except FormatError as cause:
        raise type(cause)(f"{name}: {cause}") from cause
    crcs = np.frombuffer(data, "<u4", pages, FIXED.size + described)
    header = IndexHeader(layout, rows, shard, total, chunks, pages, chunk_rows, table, table_crc, outside, crcs, size)
    ok = (page, per_page) == (layout.page_bytes, layout.rows_per_page)
    ok = ok and total == (header.pages_at + pages * page if pages else size + table)
    ok = ok and rows <= pages * per_page and (not chunk_rows or _regular(header))
    if not ok:
        raise CorruptData(f"{name}: the header's counts of rows, chunks and pages disagree")
    return header


def _regular(header: IndexHeader) -> bool:
    """Whether chunks of `chunk_rows` rows add up to the header's counts."""
    full, rest = divmod(header.row_count, header.chunk_rows)
    pages = full * header.pages_per_chunk + header.layout.pages_for(rest)
    return header.page_count == pages and header.chunk_count == full + (rest > 0)


@lru_cache(maxsize=256)  # shards of a data set share a handful of layouts
def _layout(described: bytes, checksums: bool, tree: Tree) -> Layout:
    try:
        value: dict[str, Any] = dict(json.loads(described))
        features = {str(feature) for feature in value.get("features", ())}
        whole = frozenset(int(column) for column in value["whole"])
        digest = bytes.fromhex(value["schema"])
        bits = np.frombuffer(bytes.fromhex(value["present"]), np.uint8)
        narrow = dict(value.get("narrow", {}))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as cause:
        raise CorruptData(f"the header's description is damaged ({cause!r})") from cause
    if features - FEATURES:
        raise UnsupportedFeature(
            f"needs {sorted(features - FEATURES)}, unknown to this version; install a newer shufflestore"
        )
    if digest != schema_digest(tree.schema):
        raise CorruptData("the row index was made for another schema than the data set's")
    if bool(narrow) != (FEATURE in features):
        raise CorruptData(f"the header's features {sorted(features)} do not fit integers stored as {narrow}")
    if not whole <= set(range(len(tree.schema))):
        raise CorruptData(f"the header names columns {sorted(whole)} that the schema does not have")
    tree = shard_tree(tree, whole, check_narrow(tree, narrow))
    if tree.whole != whole or len(bits) != -(-len(tree.buffers) // 8):
        raise CorruptData("the header's list of buffers does not fit the schema")
    present = np.unpackbits(bits, count=len(tree.buffers), bitorder="little").astype(bool)
    return layout_of(tree, tuple(present.tolist()), checksums)
