"""Check every byte of a data set, through the same door that training reads it by."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.fetch import Extent, fetch
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.opening import splits_of
from shufflestore.dataset.reading import Projection, Reading
from shufflestore.dataset.residency import RowIndexes
from shufflestore.errors import CorruptData, ShuffleStoreError, StorageError
from shufflestore.format.coverage import gaps, merged
from shufflestore.format.layout import IndexHeader
from shufflestore.format.manifest import Shards
from shufflestore.storage.base import READ, ZERO

__all__ = ["Report", "check_split", "verify"]

_ROWS = 8192
_PIECE = 8 << 20
_MOST = 100
"""Problems listed; more are counted."""


@dataclass
class Report:
    """What `verify` found."""

    path: str
    record_count: int = 0
    shard_count: int = 0
    byte_count: int = 0
    """Bytes of shards and row indexes that were read and held against a checksum."""
    unchecked_shard_count: int = 0
    """Shards indexed without checksums: only their row index could be checked."""
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """The first hundred, one sentence each."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing was wrong."""
        return self.problem_count == 0

    def complain(self, error: ShuffleStoreError) -> None:
        """Take note of a problem."""
        self.problem_count += 1
        if len(self.problems) < _MOST:
            self.problems.append(str(error))


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every byte of a data set's newest snapshot and hold it against its checksums.

    Args:
        path: A store, or data with a row index.
        progress: Called with (records, records in all).

    Returns:
        A report; problems are listed there, not raised.

    Raises:
        NotFound, CorruptData, UnsupportedFeature: The manifest itself cannot be read.
    """
    report = Report(os.fspath(path))
    first = open_dataset(path, splits_of(path)[0])
    for split in first.manifest.splits:
        data = first if split.name == first.split_name else first.split(split.name)
        check_split(data, report, progress)
        data.close()
    return report


def check_split(data: Dataset, report: Report, progress: Callable[[int, int], None] | None = None) -> None:
    """Check every byte of one split of an open data set, its shards without records included."""
    manifest, store = data.manifest, data.reading.store
    table = manifest.check_table(store.read(manifest.table_name), f"{store.uri}: {manifest.table_name}")
    mine = table.column("split") == manifest.split(data.split_name)
    all_of_it = Shards(table.table.filter(pa.array(mine)))
    budget = data.reading.budget
    reading = Reading(RowIndexes(store, data.reading.tree, all_of_it, budget.index), True, budget)
    for shard in range(len(all_of_it)):
        try:
            _shard(reading, shard, report)
        except ShuffleStoreError as error:
            report.complain(error)
        if progress is not None:
            progress(report.record_count, manifest.record_count)


def _shard(reading: Reading, shard: int, report: Report) -> None:
    indexes = reading.indexes
    start, stop = int(indexes.first_id[shard]), int(indexes.first_id[shard + 1])
    report.shard_count += 1
    report.record_count += stop - start
    _lengths(reading, shard)
    header = indexes.header(shard)
    _index_bytes(reading, shard, header)
    report.byte_count += header.index_bytes
    if not header.layout.checksums:
        report.unchecked_shard_count += 1
        return
    report.byte_count += header.shard_bytes
    projection = Projection.of(indexes.tree, tuple(range(len(indexes.tree.schema))), {})
    before = report.problem_count
    pieces = (np.arange(first, min(first + _ROWS, stop)) for first in range(start, stop, _ROWS))
    covered = [_records(reading, ids, projection, report) for ids in pieces]
    if report.problem_count == before:
        _outside(reading, shard, header, covered)


def _lengths(reading: Reading, shard: int) -> None:
    """Files must be as long as the manifest says, not only long enough."""
    indexes, store = reading.indexes, reading.store
    for kind, sizes in (("data", indexes.data_bytes), ("index", indexes.index_bytes)):
        name = indexes.shards.name(kind, shard)
        found, expected = store.size(name), int(sizes[shard])
        if found != expected:
            raise CorruptData(
                f"{store.uri}: {name} has {found:,} bytes, the manifest says {expected:,}; restore the file"
            )


def _index_bytes(reading: Reading, shard: int, header: IndexHeader) -> None:
    """Check the chunk table, the padding and every page of a row index from the disk."""
    indexes, store = reading.indexes, reading.store
    name, size = indexes.shards.name("index", shard), header.index_bytes
    end = header.header_bytes + header.table_bytes
    page = header.layout.page_bytes
    extents = [Extent(name, size, header.header_bytes, header.table_bytes, "chunk table", header.table_crc)]
    extents += [Extent(name, size, end, header.pages_at - end, "padding")] * bool(header.page_count)
    _, *padding = fetch(store, extents)
    if padding and padding[0].any():
        raise CorruptData(f"{store.uri}: {name}: bytes [{end:,}, {header.pages_at:,}) must be zero; restore the file")
    per = max(_PIECE // page, 1)
    for first in range(0, header.page_count, per):
        numbers = range(first, min(first + per, header.page_count))
        crcs, start = header.page_crcs, header.pages_at
        pages = [(i, start + i * page, int(crcs[i])) for i in numbers]
        fetch(store, [Extent(name, size, at, page, f"page {i} of the row index", crc) for i, at, crc in pages])


def _records(reading: Reading, ids: NDArray[np.int64], projection: Projection, report: Report) -> NDArray[np.int64]:
    """Read records with their checksums; return the byte ranges that they cover."""
    ends = np.array([len(ids)])
    reads = reading.indexes.resolve(ids, ends, projection.wanted, True).reads.view(READ).reshape(-1)
    try:
        (ready,) = reading.submit(ids, ends, projection)
        reading.deliver(ready)
    except (CorruptData, StorageError):
        # Something in here is damaged: find out which records are.
        for i in ids:
            try:
                (one,) = reading.submit(np.array([i]), np.array([1]), projection)
                reading.deliver(one)
            except ShuffleStoreError as error:
                report.complain(error)
    reads = reads[reads["op"] != ZERO]
    reads = reads[np.argsort(reads["offset"], kind="stable")]
    first = reads["offset"].astype(np.int64)
    return merged(first, first + reads["size"].astype(np.int64))


def _outside(reading: Reading, shard: int, header: IndexHeader, covered: list[NDArray[np.int64]]) -> None:
    """Check the bytes that no record reads: messages, footer, padding, row-depth offsets."""
    indexes, store = reading.indexes, reading.store
    name, size = indexes.shards.name("data", shard), int(indexes.data_bytes[shard])
    spans = np.concatenate([np.empty((0, 2), np.int64), *covered])
    offsets, sizes = gaps(spans[np.argsort(spans[:, 0], kind="stable")], size)
    crc = 0
    batch: list[Extent] = []
    for offset, length in zip(offsets.tolist(), sizes.tolist(), strict=True):
        for start in range(offset, offset + length, _PIECE):
            batch.append(Extent(name, size, start, min(_PIECE, offset + length - start), "bytes outside records"))
            if sum(e.size for e in batch) >= _PIECE:
                crc, batch = _chained(store, batch, crc), []
    crc = _chained(store, batch, crc)
    if crc != header.outside_crc:
        raise CorruptData(
            f"{store.uri}: {name}: the bytes between records (Arrow metadata, offsets, padding) have CRC32C {crc:#010x}, "
            f"expected {header.outside_crc:#010x}: records are sound, but other Arrow readers may fail; restore the file"
        )


def _chained(store: object, extents: list[Extent], crc: int) -> int:
    for part in fetch(store, extents):  # type: ignore[arg-type]
        crc = _native.crc32c(part.data, crc)
    return crc
