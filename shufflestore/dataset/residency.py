"""The row indexes of a data set's shards, fetched when first needed and kept within a limit."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.dataset.chunks import ChunkTable
from shufflestore.dataset.fetch import Extent, explain, fetch, wait
from shufflestore.errors import CorruptData, OptionError, UnsupportedFeature
from shufflestore.format.layout import IndexHeader, Layout, parse_header
from shufflestore.format.manifest import Shards
from shufflestore.format.resolve import (
    PAGE_MISSING,
    RESOLVED,
    SHARD_MISSING,
    Resolved,
    Wanted,
    program_for,
    resolve,
)
from shufflestore.format.schema import Tree
from shufflestore.storage.base import HAS_CRC, READ, Store
from shufflestore.storage.process import ProcessLock

__all__ = ["Places", "RowIndexes"]

_REQUEST_BYTES: Final = 64 << 20
"""Headers fetched in one go."""
LEAST_SLOTS: Final = 4096
"""Pages that are kept whatever the limit: as many as one window of look-ahead has ids."""
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
    page: NDArray[np.int64]
    """(n,) page of the row index, counted through all shards."""


class RowIndexes:
    """Row indexes of some shards, in the order of their records.

    A shard's header is fetched when one of its records is first asked for, and so is each page:
    nothing grows with the number of records until they are read. Pages take at most `memory_bytes`.
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
        self.lock = ProcessLock()
        """Held while headers and pages come and go."""
        # Zeros until a header is there: untouched, they cost no memory.
        self._chunk_rows = np.zeros(count, np.int64)
        self._chunk_pages = np.zeros(count, np.int64)
        self._page_rows = np.zeros(count, np.int64)
        self._files = np.zeros(count, np.uint32)
        self._chunks = np.zeros(count, np.int64)
        self._shards = self._with_chunks(np.empty(0, np.int64), np.empty(0, np.int64))
        self.pages_at = np.zeros(count, np.int64)
        """First byte of page 0 in each index met so far."""
        self._index_files = np.zeros(count, np.uint32)
        self.pages = Pages(self, memory_bytes)

    def __len__(self) -> int:
        return int(self.first_id[-1])

    def find(self, ids: NDArray[np.int64]) -> Places:
        """Return where records are; fetches headers that are not here yet."""
        places = np.empty((5, len(ids)), np.int64)
        if self._shards.find(ids, places):
            with self.lock.here:
                self._meet_all(places[0])
            self._shards.find(ids, places)
        return Places(*places[:4])

    def resolve(self, ids: NDArray[np.int64], batch_ends: NDArray[np.int64], wanted: Wanted, verify: bool) -> Resolved:
        """Return the reads of records, batch by batch; fetches headers and pages that are not here.

        Args:
            ids: (n,) record numbers within the split, each in [0, len).
            batch_ends: (b,) batch i has ids [batch_ends[i - 1], batch_ends[i]).
            wanted: The projection.
            verify: Whether what is read is checked, where the indexes have checksums.

        Raises:
            CorruptData: A row index contradicts itself, or is not what the manifest vouches for.
        """
        with self.lock.here:  # another thread's pages must not take the slots before they are read
            while True:
                # One index run makes all shards of a snapshot, with checksums or without.
                checked = verify and self.has_checksums
                programs = [program_for(layout, wanted) for layout in self.layouts]
                found, made = resolve(self.pages.arena, self._shards, programs, ids, batch_ends, wanted, checked)
                if found == RESOLVED and not self.pages.is_bounded:
                    return made
                places = np.empty((5, len(ids)), np.int64)
                self._shards.find(ids, places)
                shard, _, row, page, _ = places
                if found == SHARD_MISSING:
                    self._meet_all(shard)
                elif found == PAGE_MISSING:
                    self.pages.fetch(page, shard)
                elif found == RESOLVED:
                    self.pages.note(page)
                    return made
                else:
                    name = self.shards.name("index", int(shard[found]))
                    raise CorruptData(
                        f"{self.store.uri}: {name}: the row index contradicts itself at row {row[found]:,} of a chunk: an "
                        "entry outside its page, or starts that decrease; index or convert again"
                    )

    def _meet_all(self, shard: NDArray[np.int64]) -> None:
        self._meet(np.unique(shard[self._layout_of[shard] < 0]).tolist())

    def index_files(self, shard: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the store's handle of each shard's row index."""
        return self._index_files[shard]

    def header(self, shard: int) -> IndexHeader:
        """Return a shard's header, fetched and checked when first asked for."""
        with self.lock.here:
            if self._layout_of[shard] < 0:
                self._meet([shard])
        return self.headers[shard]

    def _meet(self, shards: list[int]) -> None:
        """Fetch and check the headers of shards, a bounded number of bytes at a time."""
        while shards:
            sizes = np.cumsum(self.header_bytes[shards])
            count = max(int(np.searchsorted(sizes, _REQUEST_BYTES)), 1)
            now, shards = shards[:count], shards[count:]
            extents = [
                Extent(
                    self.shards.name("index", s), int(self.index_bytes[s]), 0, int(self.header_bytes[s]), "index header"
                )
                for s in now
            ]
            for shard, data in zip(now, fetch(self.store, extents), strict=True):
                self.admit(shard, self.checked_header(shard, data))

    def checked_header(self, shard: int, data: NDArray[np.uint8]) -> IndexHeader:
        """Return a header after checking its bytes against the manifest. Raises CorruptData."""
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
        return header

    def admit(self, shard: int, header: IndexHeader) -> None:
        """Take note of a shard of which all that is kept was checked: from now on it is read without asking again."""
        if self._layout_of[shard] >= 0:
            return
        if header.layout not in self.layouts:
            self.layouts.append(header.layout)
            self.whole_columns |= header.layout.tree.whole
            self.has_checksums &= header.layout.checksums
        self.headers[shard] = header
        self.pages.admit(shard, header)
        self.pages_at[shard] = header.pages_at
        name = self.shards.name("index", shard)
        self._index_files[shard] = self.store.handle(name, int(self.index_bytes[shard]))
        self._chunk_rows[shard] = header.chunk_rows
        self._chunk_pages[shard] = header.pages_per_chunk if header.chunk_rows else header.chunk_count
        self._files[shard] = self.store.handle(self.shards.name("data", shard), int(self.data_bytes[shard]))
        self._layout_of[shard] = self.layouts.index(header.layout)
        if not header.chunk_rows:
            table = self.table(shard)
            self._chunks[shard] = len(self._chunk_first_row)
            self._shards = self._with_chunks(
                np.concatenate([self._chunk_first_row, table.first_row[:-1]]),
                np.concatenate([self._chunk_first_page, table.first_page[:-1]]),
            )
        self._page_rows[shard] = header.layout.rows_per_page  # last: from now on the shard is known

    def _with_chunks(self, first_row: NDArray[np.int64], first_page: NDArray[np.int64]) -> _native.Shards:
        """Return the shards as the core sees them, with these chunks of shards whose chunks differ in size."""
        self._chunk_first_row, self._chunk_first_page = first_row, first_page
        return _native.Shards(
            self.first_id, self._page_rows, self._chunk_rows, self._chunk_pages, self.first_page, self._layout_of,
            self._files, self._chunks, first_row, first_page,
        )  # fmt: skip

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


class Pages:
    """Index pages in slots of one arena; when it is full, those not used lately make room (second chance)."""

    def __init__(self, indexes: RowIndexes, memory_bytes: int) -> None:
        of = indexes
        # Not a cycle: a data set that was dropped ends its threads and closes its files at once.
        self._all: RowIndexes = weakref.proxy(indexes)
        self._slot_bytes = int(of.page_bytes.max(initial=4096))
        total = int(of.first_page[-1])
        self._slots = max(min(max(memory_bytes // self._slot_bytes, LEAST_SLOTS), total), 1)
        try:
            # What nobody has touched costs no memory: the system gives it page by page.
            self._data = np.empty(self._slots * self._slot_bytes, np.uint8)
            self._slot_of = np.zeros(total, np.int32)
            self._crcs = np.empty(total, np.uint32)
        except (MemoryError, ValueError) as cause:
            raise UnsupportedFeature(
                f"{of.store.uri}: the row indexes have {total:,} pages, more than this machine can keep account of; open "
                "it split by split, or convert to larger records"
            ) from cause
        self.arena = _native.Arena(self._data, self._slot_of, self._slot_bytes)
        self._page_in = np.full(self._slots, -1, np.int64) if self.is_bounded else None
        self._used = np.zeros(self._slots if self.is_bounded else 0, np.int8)
        self._hand = 0
        self._free = 0
        """Slots from here on were never used."""
        self.fetched = 0
        """Pages read so far."""

    @property
    def is_bounded(self) -> bool:
        """Whether there are more pages than slots."""
        return len(self._slot_of) > self._slots

    def admit(self, shard: int, header: IndexHeader) -> None:
        """Take note of the checksums that a shard's header vouches for."""
        first = int(self._all.first_page[shard])
        self._crcs[first : first + header.page_count] = header.page_crcs

    def fetch(self, page: NDArray[np.int64], shard: NDArray[np.int64]) -> None:
        """Have the pages of some records here, all at once."""
        slots = self._slot_of[page]
        missing = slots == 0
        if self.is_bounded:
            self._used[slots[~missing] - 1] = _PINNED
        wanted, where = np.unique(page[missing], return_index=True)
        of = shard[missing][where]
        self._fetch(wanted, of, wanted - self._all.first_page[of])

    def note(self, page: NDArray[np.int64]) -> None:
        """Remember that these pages were of use."""
        if self.is_bounded:
            self._used[self._slot_of[page] - 1] = _USED

    def _fetch(self, numbers: NDArray[np.int64], shard: NDArray[np.int64], page: NDArray[np.int64]) -> None:
        """Read pages together, check them, and give each a slot."""
        free, slots = self._free, np.empty(0, np.int64)
        try:
            slots = self._rooms(len(numbers))
            self._fill(numbers, shard, page, slots)
        except BaseException:  # or else slots that hold nothing would never make room again
            self._free = free
            if self._page_in is not None:
                self._page_in[slots] = -1
                self._used[self._used == _PINNED] = _USED
                self._used[slots] = 0
            raise
        self._slot_of[numbers] = slots + 1
        if self._page_in is not None:
            self._page_in[slots] = numbers
        self.fetched += len(numbers)

    def _fill(
        self, numbers: NDArray[np.int64], shard: NDArray[np.int64], page: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> None:
        of = self._all
        sizes = of.page_bytes[shard].astype(np.uint64)
        reads = np.zeros(len(numbers), READ)
        reads["file"] = of.index_files(shard)
        reads["offset"] = of.pages_at[shard] + page * of.page_bytes[shard]
        reads["size"] = sizes
        reads["slot"] = starts = np.cumsum(sizes) - sizes
        reads["crc"] = self._crcs[numbers]
        reads["flags"] = HAS_CRC
        (pending,) = of.store.submit(reads, np.array([len(reads)], np.uint64), sizes.sum().reshape(1, 1))
        wait(pending)
        failure = pending.failure()
        if failure is not None:
            bad = reads[failure.index]
            name = of.shards.name("index", int(shard[failure.index]))
            what = f"page {page[failure.index]} of the row index"
            raise explain(failure, of.store.uri, name, what, int(bad["offset"]), int(bad["size"]))
        (data,) = pending.take()
        kept = self._data.reshape(-1, self._slot_bytes)
        if (sizes == self._slot_bytes).all():
            kept[slots] = data.reshape(-1, self._slot_bytes)
        else:
            for slot, start, size in zip(slots.tolist(), starts.tolist(), sizes.tolist(), strict=True):
                kept[slot, :size] = data[start : start + size]

    def _rooms(self, count: int) -> NDArray[np.int64]:
        """Slots for so many pages, emptied if need be."""
        fresh = min(count, self._slots - self._free)
        slots = np.arange(self._free, self._free + fresh)
        self._free += fresh
        if fresh == count or self._page_in is None:
            return slots
        pinned = int((self._used == _PINNED).sum())
        if count + pinned > self._slots:
            raise OptionError(
                f"a batch needs {count + pinned:,} pages of the row index at once, {self._slots:,} fit into "
                f"{self._data.nbytes:,} bytes; take smaller batches or raise memory_limit"
            )
        found: list[int] = []
        self._used[slots] = _PINNED
        while len(found) < count - fresh:
            slot, self._hand = self._hand, (self._hand + 1) % self._slots
            if self._used[slot]:
                self._used[slot] -= self._used[slot] == _USED
                continue
            self._used[slot] = _PINNED
            if self._page_in[slot] >= 0:
                self._slot_of[self._page_in[slot]] = 0
            found.append(slot)
        return np.concatenate([slots, np.array(found, np.int64)])
