"""The row indexes of a data set's shards, fetched when first needed and kept within a limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.dataset.fetch import Extent, fetch
from shufflestore.errors import CorruptData, OptionError
from shufflestore.format.layout import IndexHeader, Layout, parse_header
from shufflestore.format.manifest import Shards
from shufflestore.format.rebuild import Part
from shufflestore.format.resolve import Located, Wanted, locate, program_for
from shufflestore.format.schema import Tree
from shufflestore.storage.base import Store

__all__ = ["ChunkTable", "Places", "RowIndexes"]

_REQUEST_BYTES: Final = 64 << 20
"""Indexes fetched in one go; more shards than that are fetched in several."""
_USED: Final = 1
_PINNED: Final = 2
"""Needed by the request at hand: must not make room."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where records are, before anything of them is read."""

    shard: NDArray[np.int64]
    """(n,) row of the shard table."""
    chunk: NDArray[np.int64]
    row: NDArray[np.int64]
    """(n,) row within the chunk."""


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The chunk table of one shard."""

    first_row: NDArray[np.int64]
    """(chunks + 1,)"""
    first_page: NDArray[np.int64]
    """(chunks + 1,)"""
    whole: dict[str, Any]

    @classmethod
    def parse(cls, data: bytes, header: IndexHeader, name: str) -> ChunkTable:
        """Return the table from bytes whose CRC was right. Raises CorruptData."""
        chunks, buffers = header.chunk_count, len(header.layout.tree.buffers)
        fixed = 16 * (chunks + 1) + 16 * chunks * buffers
        try:
            rows = np.frombuffer(data, "<i8", chunks + 1)
            pages = np.frombuffer(data, "<i8", chunks + 1, 8 * (chunks + 1))
            whole = json.loads(data[fixed:])
        except ValueError as cause:
            raise CorruptData(f"{name}: the chunk table is damaged ({cause})") from cause
        steps = np.diff(rows)
        ok = rows[0] == 0 and rows[-1] == header.row_count and pages[0] == 0 and pages[-1] == header.page_count
        if not ok or (steps < 0).any() or not isinstance(whole, dict):
            raise CorruptData(f"{name}: the chunk table disagrees with the header's counts")
        return cls(rows, pages, whole)

    def part(self, column: int, chunk: int, shard_bytes: int) -> Part:
        """Return where a whole column of a chunk is."""
        return Part.parse(self.whole["columns"][str(column)][chunk], shard_bytes)


class RowIndexes:
    """Row indexes of some shards, in the order of their records.

    While all of them fit into `memory_bytes`, a shard's index is fetched whole when first
    touched; else page by page, and pages make room for others.
    """

    def __init__(self, store: Store, tree: Tree, shards: Shards, memory_bytes: int) -> None:
        self.store = store
        self.tree = tree
        self.shards = shards
        counts = shards.column("record_count").astype(np.int64)
        self.first_id: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)])
        self.index_bytes = shards.column("index_bytes").astype(np.int64)
        self.data_bytes = shards.column("data_bytes").astype(np.int64)
        self.header_bytes = shards.column("header_bytes").astype(np.int64)
        self.page_bytes = shards.column("page_bytes").astype(np.int64)
        self.first_page: NDArray[np.int64] = np.concatenate(
            [[0], np.cumsum(shards.column("page_count").astype(np.int64))]
        )
        self.headers: dict[int, IndexHeader] = {}
        self.tables: dict[int, ChunkTable] = {}
        self.layouts: list[Layout] = []
        self.whole_columns: set[int] = set(tree.whole)
        """Columns that some shard met so far holds whole."""
        self.has_checksums = True
        """Whether every shard met so far was indexed with checksums."""
        count = len(shards)
        self._layout_of = np.full(count, -1, np.int64)
        self._unmet = count
        """Shards whose header is not here yet."""
        # Zeros until a header is there: untouched, they cost no memory.
        self._chunk_rows = np.zeros(count, np.int64)
        self._is_regular = True
        """Whether chunks are of one size within every shard met so far."""
        self._chunk_pages = np.zeros(count, np.int64)
        self._page_rows = np.zeros(count, np.int64)
        self._files = np.zeros(count, np.uint32)
        total = int((np.diff(self.first_page) * self.page_bytes).sum())
        self.is_paged = total > memory_bytes
        self.pages: Resident | Paged = (
            Paged(self, max(memory_bytes, 64 << 20)) if self.is_paged else Resident(self)
        )

    def __len__(self) -> int:
        return int(self.first_id[-1])

    def find(self, ids: NDArray[np.int64]) -> Places:
        """Return the shard, chunk and row of records; fetches headers that are not here yet."""
        if len(self.shards) == 1:
            shard = np.zeros(len(ids), np.int64)
            row = ids
        else:
            shard = np.searchsorted(self.first_id, ids, side="right") - 1
            row = ids - self.first_id[shard]
        if self._unmet and (self._layout_of[shard] < 0).any():
            self.pages.load(np.unique(shard[self._layout_of[shard] < 0]))
        per = self._chunk_rows[shard]
        if self._is_regular:
            chunk = row // per
            return Places(shard, chunk, row - chunk * per)
        regular = per > 0
        chunk = np.zeros(len(ids), np.int64)
        within = np.zeros(len(ids), np.int64)
        chunk[regular] = row[regular] // per[regular]
        within[regular] = row[regular] % per[regular]
        for number in np.unique(shard[~regular]):
            mine = shard == number
            first = self.table(int(number)).first_row
            chunk[mine] = np.searchsorted(first, row[mine], side="right") - 1
            within[mine] = row[mine] - first[chunk[mine]]
        return Places(shard, chunk, within)

    def locate(self, places: Places, wanted: Wanted) -> tuple[Located, NDArray[np.uint32]]:
        """Return the ranges of records and the store's handle of each one's shard."""
        shard = places.shard
        per = self._page_rows[shard]
        in_chunk = places.row // per
        page = places.chunk * self._chunk_pages[shard] + in_chunk
        if not self._is_regular:
            for number in np.unique(shard[self._chunk_rows[shard] == 0]):
                mine = shard == number
                page[mine] = self.table(int(number)).first_page[places.chunk[mine]] + in_chunk[mine]
        slots = places.row - in_chunk * per
        arena, at = self.pages.addresses(shard, page)
        out = Located.empty(len(shard), wanted)
        if len(self.layouts) == 1:
            rows = np.arange(len(shard))
            locate(arena, at, slots, rows, program_for(self.layouts[0], wanted), out)
        else:
            layouts = self._layout_of[shard]
            for number in np.unique(layouts):
                rows = np.flatnonzero(layouts == number)
                locate(arena, at[rows], slots[rows], rows, program_for(self.layouts[number], wanted), out)
        return out, self._files[shard]

    def admit(self, shard: int, data: NDArray[np.uint8]) -> IndexHeader:
        """Check a header's bytes and take note of it."""
        name = self.shards.name("index", shard)
        header = parse_header(
            data.tobytes(), self.tree, self.shards.digests[shard].tobytes(), f"{self.store.uri}: {name}"
        )
        stated = int(self.first_id[shard + 1] - self.first_id[shard])
        pages = int(self.first_page[shard + 1] - self.first_page[shard])
        if (header.row_count, header.page_count, header.layout.page_bytes, header.shard_bytes) != (
            stated, pages, int(self.page_bytes[shard]), int(self.data_bytes[shard]),
        ) or header.index_bytes != int(self.index_bytes[shard]):  # fmt: skip
            raise CorruptData(f"{self.store.uri}: {name}: the row index and the manifest disagree on counts or lengths")
        if header.layout not in self.layouts:
            self.layouts.append(header.layout)
            self.whole_columns |= header.layout.tree.whole
            self.has_checksums &= header.layout.checksums
        self.headers[shard] = header
        self._chunk_rows[shard] = header.chunk_rows
        self._is_regular &= bool(header.chunk_rows)
        self._chunk_pages[shard] = header.pages_per_chunk if header.chunk_rows else 0
        self._page_rows[shard] = header.layout.rows_per_page
        self._files[shard] = self.store.handle(self.shards.name("data", shard), int(self.data_bytes[shard]))
        self._layout_of[shard] = self.layouts.index(header.layout)
        self._unmet -= 1
        return header

    def table(self, shard: int) -> ChunkTable:
        """Return a shard's chunk table, fetched and checked when first asked for."""
        found = self.tables.get(shard)
        if found is None:
            header = self.headers[shard]
            name = self.shards.name("index", shard)
            extent = Extent(
                name, int(self.index_bytes[shard]), header.header_bytes, header.table_bytes, "chunk table",
                header.table_crc,
            )  # fmt: skip
            (data,) = fetch(self.store, [extent])
            found = self.tables[shard] = ChunkTable.parse(data.tobytes(), header, f"{self.store.uri}: {name}")
        return found

    def check_pages(
        self, data: NDArray[np.uint8], shard: NDArray[np.int64], page: NDArray[np.int64]
    ) -> None:
        """Hold pages, one behind the other, against the CRCs in their headers; raise CorruptData for the first bad one."""
        sizes = self.page_bytes[shard].astype(np.uint64)
        offsets = (np.cumsum(sizes) - sizes).astype(np.uint64)
        found = np.empty(len(shard), np.uint32)
        _native.crc32c_spans(data, offsets, sizes, found)
        expected = np.array([self.headers[int(s)].page_crcs[p] for s, p in zip(shard, page, strict=True)], np.uint32)
        if (found != expected).any():
            bad = int(np.argmax(found != expected))
            name = self.shards.name("index", int(shard[bad]))
            raise CorruptData(
                f"{self.store.uri}: {name}: page {page[bad]} of the row index has CRC32C {found[bad]:#010x}, expected "
                f"{expected[bad]:#010x}: the file was damaged after it was written; restore it, or index or convert again"
            )


class Resident:
    """Every page of a touched shard stays in memory."""

    def __init__(self, indexes: RowIndexes) -> None:
        self._all = indexes
        sizes = np.diff(indexes.first_page) * indexes.page_bytes
        self._at: NDArray[np.int64] = np.concatenate([[0], np.cumsum(sizes)])
        # Not touched until a shard is: the system gives memory page by page.
        self._arena = np.empty(int(self._at[-1]), np.uint8)

    def load(self, shards: NDArray[np.int64]) -> None:
        """Fetch whole indexes of shards, a bounded number of bytes at a time."""
        of = self._all
        group: list[int] = []
        for shard in shards.tolist():
            group.append(shard)
            if of.index_bytes[group].sum() >= _REQUEST_BYTES or shard == int(shards[-1]):
                self._load(group)
                group = []

    def _load(self, shards: Sequence[int]) -> None:
        of = self._all
        extents = [
            Extent(of.shards.name("index", s), int(of.index_bytes[s]), 0, int(of.index_bytes[s]), "row index")
            for s in shards
        ]
        for shard, data in zip(shards, fetch(of.store, extents), strict=True):
            header = of.admit(shard, data[: of.header_bytes[shard]])
            if header.page_count:
                pages = data[header.pages_at :]
                numbers = np.arange(header.page_count)
                of.check_pages(pages, np.full(header.page_count, shard), numbers)
                self._arena[self._at[shard] : self._at[shard + 1]] = pages
            table = data[header.header_bytes : header.header_bytes + header.table_bytes]
            if not header.chunk_rows or header.layout.tree.whole:
                self._keep_table(shard, header, table)

    def _keep_table(self, shard: int, header: IndexHeader, data: NDArray[np.uint8]) -> None:
        of = self._all
        name = f"{of.store.uri}: {of.shards.name('index', shard)}"
        if _native.crc32c(data) != header.table_crc:
            raise CorruptData(f"{name}: the chunk table does not have the CRC32C that its header names")
        of.tables[shard] = ChunkTable.parse(data.tobytes(), header, name)

    def addresses(
        self, shard: NDArray[np.int64], page: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the arena and where in it each page begins."""
        return self._arena, self._at[shard] + page * self._all.page_bytes[shard]


class Paged:
    """Pages come one by one into slots; a slot that was not used lately makes room (second chance)."""

    def __init__(self, indexes: RowIndexes, memory_bytes: int) -> None:
        self._all = indexes
        self._slot_bytes = int(indexes.page_bytes.max(initial=4096))
        self._slots = max(memory_bytes // self._slot_bytes, 16)
        self._arena = np.empty(self._slots * self._slot_bytes, np.uint8)
        # slot + 1 of each page, 0 where it is not here; zeros that nobody touched cost no memory.
        self._slot_of = np.zeros(int(indexes.first_page[-1]), np.int32)
        self._page_in = np.full(self._slots, -1, np.int64)
        self._used = np.zeros(self._slots, np.int8)
        self._hand = 0
        self.fetched = 0
        """Pages read so far."""

    def load(self, shards: NDArray[np.int64]) -> None:
        """Fetch headers of shards."""
        of = self._all
        extents = [
            Extent(of.shards.name("index", s), int(of.index_bytes[s]), 0, int(of.header_bytes[s]), "index header")
            for s in shards.tolist()
        ]
        for shard, data in zip(shards.tolist(), fetch(of.store, extents), strict=True):
            of.admit(shard, data)

    def addresses(
        self, shard: NDArray[np.int64], page: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the arena and where in it each page begins; fetches pages that are not here."""
        numbers = self._all.first_page[shard] + page
        slots = self._slot_of[numbers]
        here = slots[slots > 0] - 1
        self._used[here] = _USED
        if len(here) < len(slots):
            self._used[here] = _PINNED
            missing, where = np.unique(numbers[slots == 0], return_index=True)
            self._fetch(missing, shard[slots == 0][where], page[slots == 0][where])
            slots = self._slot_of[numbers]
            self._used[slots - 1] = _USED
        return self._arena, (slots.astype(np.int64) - 1) * self._slot_bytes

    def _fetch(self, numbers: NDArray[np.int64], shard: NDArray[np.int64], page: NDArray[np.int64]) -> None:
        of = self._all
        pinned = int((self._used == _PINNED).sum())
        if len(numbers) + pinned > self._slots:
            raise OptionError(
                f"a batch needs {len(numbers) + pinned:,} pages of the row index at once, {self._slots:,} fit into "
                f"{self._arena.nbytes:,} bytes; take smaller batches or raise index_memory_bytes"
            )
        extents = []
        for s, p in zip(shard.tolist(), page.tolist(), strict=True):
            header = of.headers[s]
            size = header.layout.page_bytes
            extents.append(
                Extent(
                    of.shards.name("index", s), int(of.index_bytes[s]), header.pages_at + p * size, size,
                    f"page {p} of the row index", int(header.page_crcs[p]),
                )  # fmt: skip
            )
        for number, data in zip(numbers.tolist(), fetch(of.store, extents), strict=True):
            slot = self._room()
            start = slot * self._slot_bytes
            self._arena[start : start + len(data)] = data
            self._page_in[slot], self._used[slot], self._slot_of[number] = number, _PINNED, slot + 1
        self.fetched += len(numbers)

    def _room(self) -> int:
        """A free slot, or the first one not used since the hand last passed."""
        while True:
            slot = self._hand
            self._hand = (self._hand + 1) % self._slots
            if self._used[slot]:
                self._used[slot] -= self._used[slot] == _USED
                continue
            if self._page_in[slot] >= 0:
                self._slot_of[self._page_in[slot]] = 0
            return slot
