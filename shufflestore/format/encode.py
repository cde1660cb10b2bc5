"""Build the row index of a shard from the shard's own bytes.

One builder serves converted and foreign files alike: the shard is scanned as it lies on disk,
so what the index vouches for is what a reader will find.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.errors import CorruptData
from shufflestore.format.arrowfile import ArrowScan, Batch, ColumnPart, column_parts
from shufflestore.format.coverage import gaps, merged
from shufflestore.format.layout import ABSENT, PAGE_HEAD, IndexHeader, layout_of
from shufflestore.format.narrow import narrow_of, shard_tree
from shufflestore.format.schema import ROW, Buffer, Node, Role, Tree

__all__ = ["BuiltIndex", "build_index"]

_LEVEL_LIMIT = 2**32 - 1
_ENTRY_LIMIT = 2**57
"""Entries that no file has, and 32 bytes each still count in 63 bits."""


class _LevelTooLong(Exception):
    """A page's rows span more elements than 32 bits count; the column must be read whole."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


@dataclass(frozen=True)
class BuiltIndex:
    """A finished row index: `header` bytes, then the chunk table, then pages."""

    header: IndexHeader
    parts: tuple[bytes | NDArray[np.uint8], ...]
    """The file's bytes, in order."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the header: with it, a manifest vouches for the shard and its index."""
        return hashlib.sha256(self.header.encode()).digest()


def build_index(data: NDArray[np.uint8], found: ArrowScan, tree: Tree, checksums: bool = True) -> BuiltIndex:
    """Return the row index of one Arrow file.

    Args:
        data: (shard bytes,) uint8, the file, usually mapped. Read once, or not beyond starts and
            small columns without checksums.
        found: Its scan.
        tree: Of the data set's schema, which must be the file's own but for metadata and narrower integers.
        checksums: Whether entries carry a CRC32C for each buffer read.

    Raises:
        CorruptData: Offsets that decrease or leave their child.

    O(records); about 100 ns a record and the speed of CRC32C over the file.
    """
    whole = set(tree.whole)
    whole |= {c for c in range(len(tree.schema)) if any(batch.codec for batch in found.batches)}
    narrow = narrow_of(tree, found.schema)
    while True:
        try:
            return _Index(data, found, shard_tree(tree, frozenset(whole), narrow), checksums).build()
        except _LevelTooLong as long:
            whole.add(long.column)


@dataclass
class _Chunk:
    """One record batch while its pages are made."""

    number: int
    first_row: int
    """In the file, for errors; pages count rows from the chunk's own first."""
    batch: Batch
    parts: list[ColumnPart]
    buffers: NDArray[np.int64]
    """(tree buffers, 2) offset and length."""
    bounds: list[NDArray[np.int64]] = field(default_factory=list)
    """For each level, (rows + 1,) element boundaries of its rows."""
    null: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    """Node -> which rows are null there or above; nodes without nulls left out."""


class _Index:
    def __init__(self, data: NDArray[np.uint8], found: ArrowScan, tree: Tree, checksums: bool) -> None:
        self.data = data
        self.found = found
        self.tree = tree
        self.checksums = checksums
        self.covered: list[NDArray[np.int64]] = []
        self.chunks = list(self._chunks())
        present = np.zeros(len(tree.buffers), bool)
        for chunk in self.chunks:
            present |= chunk.buffers[:, 1] > 0
        self.layout = layout_of(tree, tuple(present.tolist()), checksums)

    def _chunks(self) -> Iterator[_Chunk]:
        first = 0
        for number, batch in enumerate(self.found.batches):
            parts = column_parts(self.found.schema, batch)
            kept = [
                batch.buffers[part.first_buffer : part.first_buffer + part.buffer_count]
                for column, part in enumerate(parts)
                if column not in self.tree.whole
            ]
            buffers = np.concatenate(kept) if kept else np.empty((0, 2), np.int64)
            yield _Chunk(number, first, batch, parts, buffers)
            first += batch.row_count

    def build(self) -> BuiltIndex:
        pages: list[NDArray[np.uint8]] = []
        page = 0
        for chunk in self.chunks:
            pages.append(self._pages(chunk, page))
            page += len(pages[-1])
        crcs = np.concatenate([self._page_crcs(made) for made in pages] or [np.empty(0, np.uint32)])
        table = self._chunk_table(pages)
        rows = [chunk.batch.row_count for chunk in self.chunks]
        # A chunk of no rows would break the division that finds a row's page.
        regular = len(set(rows[:-1])) <= 1 and all(rows) and (len(rows) < 2 or rows[-1] <= rows[0])
        header = IndexHeader(
            self.layout, sum(rows), len(self.data), 0, len(rows), len(crcs),
            rows[0] if rows and regular else 0, len(table), _native.crc32c(table),
            self._outside_crc() if self.checksums else 0, crcs, len(self._encoded_length(len(crcs))),
        )  # fmt: skip
        end = header.header_bytes + len(table)
        padding = header.pages_at - end if len(crcs) else 0
        header = replace(header, index_bytes=end + padding + len(crcs) * self.layout.page_bytes)
        return BuiltIndex(header, (header.encode(), table, bytes(padding), *(made.reshape(-1) for made in pages)))

    def _encoded_length(self, pages: int) -> bytes:
        return IndexHeader(self.layout, 0, 0, 0, 0, pages, 0, 0, 0, 0, np.zeros(pages, np.uint32), 0).encode()

    def _page_crcs(self, made: NDArray[np.uint8]) -> NDArray[np.uint32]:
        count, size = made.shape
        out = np.empty(count, np.uint32)
        places = np.arange(count, dtype=np.uint64) * np.uint64(size)
        _native.crc32c_spans(made.reshape(-1), places, np.full(count, size, np.uint64), out)
        return out

    # -- one chunk ---------------------------------------------------------------------------------

    def _pages(self, chunk: _Chunk, first_page: int) -> NDArray[np.uint8]:
        layout, rows = self.layout, chunk.batch.row_count
        count = layout.pages_for(rows)
        pages = np.zeros((count, layout.page_bytes), np.uint8)
        if not rows:
            chunk.bounds = [np.zeros(1, np.int64) for _ in range(self.tree.level_count)]
            return pages
        self._resolve_nulls(chunk)
        self._resolve_levels(chunk)
        first = np.arange(count, dtype=np.int64) * layout.rows_per_page
        self._page_heads(chunk, pages, first, first_page)
        stop = layout.page_head_bytes + (layout.rows_per_page + 1) * layout.entry_bytes
        entries = pages[:, layout.page_head_bytes : stop].reshape(count, layout.rows_per_page + 1, -1)
        self._fill_head(chunk, entries)
        self._fill_starts(chunk, entries, first)
        for place, buffer in enumerate(layout.reads):
            lo, hi = self._ranges(chunk, buffer)
            if self.checksums:
                self._fill_crcs(chunk, entries, place, lo, hi)
        return pages

    def _page_heads(self, chunk: _Chunk, pages: NDArray[np.uint8], first: NDArray[np.int64], number: int) -> None:
        layout, rows = self.layout, chunk.batch.row_count
        fields: list[tuple[int, Any]] = [
            (0, np.arange(number, number + len(pages), dtype="<u4")),
            (4, np.full(len(pages), chunk.number, "<u4")),
            (8, first.astype("<u8")),
            (16, np.minimum(rows - first, layout.rows_per_page).astype("<u4")),
        ]
        at = PAGE_HEAD.size
        for bounds in chunk.bounds:
            fields.append((at, bounds[first].astype("<u8")))
            at += 8
        for buffer in layout.reads:
            offset, length = chunk.buffers[buffer.number]
            fields.append((at, np.full(len(pages), offset if length else ABSENT, "<u8")))
            at += 8
        for place, values in fields:
            pages[:, place : place + values.itemsize] = values.view(np.uint8).reshape(len(pages), -1)

    def _bytes(self, chunk: _Chunk, buffer: int, wanted: int) -> NDArray[np.uint8]:
        """A buffer's first bytes, checked to be there."""
        offset, length = chunk.buffers[buffer]
        if length < wanted:
            raise CorruptData(
                f"chunk {chunk.number}: buffer {buffer} of column {self._column(buffer)!r} has {length:,} bytes, "
                f"its rows need {wanted:,}"
            )
        return self.data[offset : offset + wanted]

    def _column(self, buffer: int) -> str:
        return self.tree.nodes[self.tree.buffers[buffer].node].name

    def _resolve_nulls(self, chunk: _Chunk) -> None:
        """Find the rows that are null at row depth, at the node itself or above it."""
        rows = chunk.batch.row_count
        for node in self.tree.nodes:
            if node.level != ROW or node.factor != 1 or node.validity < 0:
                continue
            null = chunk.null.get(node.parent)
            if chunk.buffers[node.validity, 1]:
                packed = self._bytes(chunk, node.validity, -(-rows // 8))
                own = np.unpackbits(packed, count=rows, bitorder="little") == 0
                null = own if null is None else own | null
            if null is not None and null.any():
                chunk.null[node.number] = null
        # Below a fixed-size list there are many entries a row, but a null row is null in all of them.
        for node in self.tree.nodes:
            if node.number not in chunk.null and node.parent in chunk.null:
                chunk.null[node.number] = chunk.null[node.parent]

    def _resolve_levels(self, chunk: _Chunk) -> None:
        rows = chunk.batch.row_count
        for node in self.tree.nodes:
            if node.opens == ROW:
                continue
            outer = self._bounds(chunk, node.level, node.factor, node.name)
            index = outer * node.factor
            last = int(index[-1])
            if last == 0:  # Arrow allows an empty offsets buffer where there are no elements
                chunk.bounds.append(np.zeros(rows + 1, np.int64))
                continue
            width = self.tree.buffers[node.data].width
            offsets = self._bytes(chunk, node.data, (last + 1) * width).view(f"<i{width}")
            bounds = offsets[index].astype(np.int64)
            if bounds[0] < 0 or (np.diff(bounds) < 0).any():
                row = chunk.first_row + int(np.argmax(np.diff(bounds) < 0))
                raise CorruptData(f"column {node.name!r}: offsets decrease at record {row:,} of the file")
            there = self._element_count(chunk, node)
            if int(bounds[-1]) > there:
                what = f"column {node.name!r}: offsets of chunk {chunk.number}"
                raise CorruptData(f"{what} reach {int(bounds[-1]):,}, but it has {there:,} elements")
            step = self.layout.rows_per_page
            if int((bounds[np.minimum(np.arange(rows) + step, rows)] - bounds[:-1]).max()) > _LEVEL_LIMIT:
                raise _LevelTooLong(node.column)
            chunk.bounds.append(bounds)

    def _element_count(self, chunk: _Chunk, node: Node) -> int:
        """Bytes or elements that a string or list has in a chunk, by what the message says."""
        if not node.children:
            return int(chunk.buffers[node.data + 1, 1])
        first = chunk.parts[node.column].first_node - self.tree.top(node.column).number
        return int(chunk.batch.nodes[first + node.children[0], 0])

    def _bounds(self, chunk: _Chunk, level: int, factor: int, name: str) -> NDArray[np.int64]:
        """Boundaries of rows in a level, not so far out that `factor` entries of 32 bytes each would overflow."""
        if level == ROW:
            return np.arange(chunk.batch.row_count + 1, dtype=np.int64)
        bounds = chunk.bounds[level]
        if int(bounds[-1]) * factor >= _ENTRY_LIMIT:
            raise CorruptData(f"column {name!r}: offsets of chunk {chunk.number} reach beyond any file")
        return bounds

    def _counts(self, chunk: _Chunk, buffer: Buffer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First entry and number of entries of each row in a buffer, none where the row is null."""
        bounds = self._bounds(chunk, buffer.level, buffer.factor, self._column(buffer.number))
        first, count = bounds[:-1] * buffer.factor, np.diff(bounds) * buffer.factor
        null = chunk.null.get(self._row_node(buffer))
        if null is not None:
            count = np.where(null, 0, count)
        return first, count

    def _row_node(self, buffer: Buffer) -> int:
        """The innermost node around a buffer for which a row is one entry."""
        for node in self.tree.ancestors(buffer.node):
            if node.level == ROW and node.factor == 1:
                return node.number
        raise AssertionError("every top node stands at row depth")

    def _ranges(self, chunk: _Chunk, buffer: Buffer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The bytes [lo, hi) of the file that each row reads of a buffer; checked to be in the buffer."""
        first, count = self._counts(chunk, buffer)
        offset, length = (int(v) for v in chunk.buffers[buffer.number])
        if buffer.role in (Role.OFFSETS, Role.VALUES):
            extra = buffer.role == Role.OFFSETS
            lo, hi = first * buffer.width, (first + count + extra) * buffer.width
        else:
            lo, hi = first // 8, (first + count + 7) // 8
        hi = np.where(count > 0, hi, lo)
        if length == 0:
            if buffer.role == Role.VALIDITY:
                hi = lo
            elif (hi > lo).any():
                self._bytes(chunk, buffer.number, 1)
        elif int(hi.max()) > length:
            self._bytes(chunk, buffer.number, int(hi.max()))
        return lo + offset, hi + offset

    def _fill_head(self, chunk: _Chunk, entries: NDArray[np.uint8]) -> None:
        layout, rows = self.layout, chunk.batch.row_count
        for number, bit in layout.bits.items():
            if chunk.buffers[number, 1]:
                packed = self._bytes(chunk, number, -(-rows // 8))
                values = np.unpackbits(packed, count=rows, bitorder="little")
            else:
                values = np.full(rows, self.tree.buffers[number].role == Role.VALIDITY, np.uint8)
            self._rows(entries, values[:, None] << np.uint8(bit % 8), bit // 8, combine=True)
        for number, place in layout.copied.items():
            width = self.tree.buffers[number].width
            if chunk.buffers[number, 1] == 0:
                null = chunk.null.get(self.tree.buffers[number].node)
                if null is None or not null.all():
                    self._bytes(chunk, number, rows * width)
                continue
            self._rows(entries, self._bytes(chunk, number, rows * width).reshape(rows, width), place)

    def _rows(self, entries: NDArray[np.uint8], values: NDArray[np.uint8], place: int, combine: bool = False) -> None:
        """Write (rows, width) bytes at a place of each row's entry."""
        pages, slots, _ = entries.shape
        per, (rows, width) = slots - 1, values.shape
        full = np.zeros((pages * per, width), np.uint8)
        full[:rows] = values
        target = entries[:, :per, place : place + width]
        shaped = full.reshape(pages, per, width)
        target[...] = target | shaped if combine else shaped

    def _fill_starts(self, chunk: _Chunk, entries: NDArray[np.uint8], first: NDArray[np.int64]) -> None:
        pages, slots, _ = entries.shape
        index = np.minimum(first[:, None] + np.arange(slots), chunk.batch.row_count)
        for level, bounds in enumerate(chunk.bounds):
            starts = (bounds[index] - bounds[first][:, None]).astype("<u4")
            place = self.layout.starts + 4 * level
            entries[:, :, place : place + 4] = starts.view(np.uint8).reshape(pages, slots, 4)

    def _fill_crcs(
        self, chunk: _Chunk, entries: NDArray[np.uint8], place: int, lo: NDArray[np.int64], hi: NDArray[np.int64]
    ) -> None:
        out = np.empty(len(lo), "<u4")
        _native.crc32c_spans(self.data, lo.astype(np.uint64), (hi - lo).astype(np.uint64), out)
        self._rows(entries, out.view(np.uint8).reshape(-1, 4), self.layout.crcs + 4 * place)
        self.covered.append(merged(lo, hi))

    # -- the whole file ----------------------------------------------------------------------------

    def _outside_crc(self) -> int:
        """CRC32C of the bytes that no record reads, in file order."""
        spans = np.concatenate([np.empty((0, 2), np.int64), *self.covered])
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
        offsets, sizes = gaps(spans, len(self.data))
        return int(_native.crc32c_chain(self.data, offsets, sizes))

    def _chunk_table(self, pages: list[NDArray[np.uint8]]) -> bytes:
        rows = np.array([0] + [chunk.batch.row_count for chunk in self.chunks]).cumsum()
        firsts = np.array([0] + [len(made) for made in pages]).cumsum()
        buffers = [chunk.buffers.astype("<u8").tobytes() for chunk in self.chunks]
        rest = json.dumps(self._whole(), sort_keys=True, separators=(",", ":")).encode()
        return rows.astype("<u8").tobytes() + firsts.astype("<u8").tobytes() + b"".join(buffers) + rest

    def _whole(self) -> dict[str, Any]:
        """What the whole-chunk path needs: columns by chunk, and the dictionaries."""
        if not self.tree.whole:
            return {}
        columns: dict[str, list[Any]] = {}
        for column in sorted(self.tree.whole):
            listing = []
            for chunk in self.chunks:
                part = chunk.parts[column]
                batch = chunk.batch
                nodes = batch.nodes[part.first_node : part.first_node + part.node_count]
                buffers = batch.buffers[part.first_buffer : part.first_buffer + part.buffer_count]
                views = batch.variadic[part.first_view : part.first_view + part.view_count]
                listing.append(self._extent(nodes, buffers, views, batch.codec))
            columns[str(column)] = listing
        dictionaries = [
            {"before": d.before, "delta": d.is_delta, "id": d.id}
            | self._extent(d.data.nodes, d.data.buffers, d.data.variadic, d.data.codec)
            for d in self.found.dictionaries
        ]
        return {"columns": columns, "dictionaries": dictionaries, "ids": list(self.found.dictionary_ids)}

    def _extent(
        self, nodes: NDArray[np.int64], buffers: NDArray[np.int64], views: tuple[int, ...], codec: str | None
    ) -> dict[str, Any]:
        """One column of one message: its own contiguous bytes and what lies where in them."""
        used = buffers[buffers[:, 1] > 0]
        start = int(used[:, 0].min()) if len(used) else 0
        stop = int((used[:, 0] + used[:, 1]).max()) if len(used) else 0
        placed = np.where(buffers[:, 1:] > 0, buffers - np.array([start, 0]), 0)
        return {
            "buffers": placed.tolist(),
            "codec": codec,
            "crc": _native.crc32c(self.data[start:stop].data) if self.checksums else None,
            "nodes": nodes.tolist(),
            "span": [start, stop - start],
            "views": list(views),
        }
