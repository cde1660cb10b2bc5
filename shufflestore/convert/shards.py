"""Record batches to published shards: Arrow IPC files with their row indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from shufflestore.convert.narrower import Measured, Narrower
from shufflestore.dataset.inplace import fetcher, mapped, shard_entry
from shufflestore.errors import ShuffleStoreError, SourceError
from shufflestore.format.arrowfile import scan
from shufflestore.format.encode import build_index
from shufflestore.format.schema import Tree, build_tree
from shufflestore.storage.commit import TemporaryFile
from shufflestore.storage.target import Target
from shufflestore.storage.targets import target_at

__all__ = ["ShardOptions", "ShardWriter"]

_INT32_BYTES: Final = 2**31 - 1
_CHUNK_ROWS: Final = 16_384
"""Records a record batch at most, however small they are."""
_SETTLING_SHARE: Final = 16
"""Widths are settled once this part of a shard has been seen: it waits in memory, and no shard is smaller for them."""


@dataclass(frozen=True)
class ShardOptions:
    """How shards are cut. All of it decides bytes, so a resumed conversion must use the same."""

    shard_bytes: int = 256 << 20
    """Large enough that a million records need few files, small enough to redo after a crash."""
    chunk_bytes: int = 2 << 20
    """Record batches of about this size: some 1,000 records of 2 KB, which other readers like."""
    chunk_rows: int | None = None
    """Records a record batch; None for chunk_bytes over the mean record, at most 16,384, and anew where records grow or
    shrink eightfold."""
    shard_records: int = 4_000_000
    """At most; keeps the row index of tiny records within tens of MB."""
    narrow: bool = True
    """Store the integers of lists in the smallest width that holds those of a shard, e.g. token ids as uint16. Readers of
    the data set see no difference but half the bytes; other readers of a shard's file see the smaller type."""


class ShardWriter:
    """Writes one run of records of one split as a row of shards.

    Where shards and chunks end depends on the records alone. A finished shard is synced, indexed
    and published by two threads while the next one is written.
    """

    def __init__(
        self,
        place: Path | Target,
        prefix: str,
        schema: pa.Schema,
        options: ShardOptions,
        advance: Callable[[int, int], None],
    ) -> None:
        """Begin.

        Args:
            place: Of the store; shards go to its `shards/`.
            prefix: Begins the shards' names, e.g. "train-00012".
            schema: Of every batch.
            options: Sizes.
            advance: Called with (records, bytes) as they are written.
        """
        self._target = target_at(place)
        self._target.make("shards")
        self._prefix = prefix
        self._schema = schema
        self._tree = build_tree(schema)
        self._options = options
        self._advance = advance
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._chunk_rows = options.chunk_rows
        self._narrower = Narrower(self._tree)
        self._is_narrow = options.narrow and not self._narrower.is_idle
        self._waiting: list[Measured] = []
        """The first chunks of a shard, until its widths are settled."""
        self._waiting_bytes = self._waiting_rows = 0
        self._codes: dict[int, str] = {}
        self._stored = schema
        """Schema of the shard at hand."""
        self._file: TemporaryFile | None = None
        self._ipc: Any = None
        self._written = 0
        self._written_rows = 0
        self._sealing: list[Future[dict[str, Any]]] = []
        self._sealer = ThreadPoolExecutor(2, "shufflestore-seal")

    def add(self, batch: pa.RecordBatch) -> None:
        """Take some records; they are written chunk by chunk. Raises OutOfSpace, StorageError, SourceError."""
        if not batch.num_rows:
            return
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._chunk_rows is None or (self._options.chunk_rows is None and self._is_off()):
            self._chunk_rows = max(1, min(_CHUNK_ROWS, round(self._options.chunk_bytes / self._mean_bytes())))
        if self._held_rows >= self._chunk_rows:
            self._drain(self._held_rows // self._chunk_rows)

    def end(self) -> None:
        """Write what is left; the last shard may then still be on its way. Raises as `add`."""
        if self._held_rows:
            self._drain(-1)
        while self._waiting:
            self._settle()
        self._seal()

    def finish(self) -> list[dict[str, Any]]:
        """Write what is left and return the shards' rows of the shard table, all of them published."""
        self.end()
        # no deadline: writing takes as long as the disk takes
        entries = [future.result() for future in self._sealing]
        self._sealer.shutdown()
        return entries

    def abandon(self) -> None:
        """Drop the shard that is being written; published ones stay for a resume or `gc`. Idempotent."""
        self._held, self._held_rows, self._held_bytes, self._waiting = [], 0, 0, []
        if self._file is not None:
            self._file.abandon()
            self._file = None
        self._sealer.shutdown()  # not cancelled: a shard handed over is its thread's to publish or remove

    # -- chunks ------------------------------------------------------------------------------------

    def _mean_bytes(self) -> float:
        return max(self._held_bytes / self._held_rows, 1.0)

    def _is_off(self) -> bool:
        """Whether records have grown or shrunk so much that the chunks at hand would not do.

        Held on to, a size taken from the first records would let later, larger ones fill the memory,
        and give smaller ones a page of the row index for a few of them.
        """
        assert self._chunk_rows is not None, "known from the first batch on"
        expected = self._options.chunk_bytes
        is_full = self._held_rows >= self._chunk_rows
        has_grown = self._held_bytes > 8 * expected and self._mean_bytes() * self._chunk_rows > 8 * expected
        return has_grown or (
            is_full and self._chunk_rows < _CHUNK_ROWS and self._mean_bytes() * self._chunk_rows < expected / 8
        )

    def _drain(self, chunks: int) -> None:
        """Write so many whole chunks of what is held; -1 for all, the last one shorter."""
        assert self._chunk_rows is not None, "known from the first batch on"
        table = pa.Table.from_batches(self._held, self._schema)
        rows = len(table) if chunks < 0 else chunks * self._chunk_rows
        for start in range(0, rows, self._chunk_rows):
            for chunk in self._cut(table.slice(start, min(self._chunk_rows, rows - start))):
                self._write(chunk)
        rest = table.slice(rows)
        self._held = rest.to_batches()
        self._held_rows, self._held_bytes = len(rest), rest.nbytes

    def _cut(self, table: pa.Table) -> Iterator[pa.RecordBatch]:
        """One record batch, or several where 32-bit offsets demand it."""
        if table.nbytes >= _INT32_BYTES and len(table) > 1:
            half = len(table) // 2
            yield from self._cut(table.slice(0, half))
            yield from self._cut(table.slice(half))
        else:
            yield table.combine_chunks().to_batches()[0]

    def _write(self, chunk: pa.RecordBatch) -> None:
        if self._is_narrow:
            self._place(self._narrower.measured(chunk))
        else:
            self._append(chunk)

    def _append(self, chunk: pa.RecordBatch) -> None:
        if self._file is None:
            self._file = self._target.stage("shards", self._options.shard_bytes)
            self._ipc = pa.ipc.new_file(pa.PythonFile(self._file, "w"), self._stored)
        self._ipc.write_batch(chunk)
        size = self._file.tell()
        self._advance(chunk.num_rows, size - self._written)
        self._written = size
        self._written_rows += chunk.num_rows
        if size >= self._options.shard_bytes or self._written_rows >= self._options.shard_records:
            self._seal()

    # -- widths ------------------------------------------------------------------------------------

    def _place(self, chunk: Measured) -> None:
        """Write a chunk to the shard at hand if its widths hold it; else begin another."""
        if self._file is not None and not self._narrower.fits(chunk, self._codes):
            self._seal()
        if self._file is not None:
            self._append(self._narrower.stored(chunk, self._stored, self._codes))
            return
        self._waiting.append(chunk)
        self._waiting_bytes += pa.ipc.get_record_batch_size(chunk.batch)
        self._waiting_rows += chunk.batch.num_rows
        is_enough = self._waiting_bytes >= self._options.shard_bytes // _SETTLING_SHARE
        if is_enough or self._waiting_rows >= self._options.shard_records:
            self._settle()

    def _settle(self) -> None:
        """Begin a shard in the smallest widths that hold the chunks that wait, and write them."""
        waiting, self._waiting, self._waiting_bytes, self._waiting_rows = self._waiting, [], 0, 0
        self._codes = self._narrower.codes(waiting)
        self._stored = self._narrower.schema(self._codes)
        first, *rest = waiting
        self._append(self._narrower.stored(first, self._stored, self._codes))
        for chunk in rest:  # where the shard is full before the last of them, the others wait for the next
            self._place(chunk)

    # -- shards ------------------------------------------------------------------------------------

    def _seal(self) -> None:
        """Hand the shard at hand to the thread that publishes it."""
        if self._file is None:
            return
        self._ipc.close()
        if self._sealing:
            # One at a time: bounds memory, and its error comes while this file is still `abandon`'s to remove.
            self._sealing[-1].result()  # no deadline: as long as the disk takes to sync one shard
        file, self._file, self._ipc, self._written, self._written_rows = self._file, None, None, 0, 0
        stem = f"{self._prefix}-{len(self._sealing):03d}"
        synced = self._sealer.submit(file.sync)
        self._sealing.append(self._sealer.submit(_publish_shard, file, synced, self._target, stem, self._tree))


def _publish_shard(file: TemporaryFile, synced: Future[None], target: Target, stem: str, tree: Tree) -> dict[str, Any]:
    """Index one shard while it is being synced, and publish it then; return its row of the shard table."""
    try:
        data = mapped(file.path)
        try:
            built = build_index(data, scan(fetcher(data), len(data)), tree)
        except ShuffleStoreError as cause:
            synced.result()  # no deadline: as below; a disk that failed explains bytes that are not what was written
            raise SourceError(f"shard {stem}: Arrow data that cannot be indexed: {cause}") from cause
        finally:
            del data
        synced.result()  # no deadline: as long as the disk takes
        digest = built.digest
        name = f"shards/{stem}-{digest.hex()[:16]}"
        target.publish(f"{name}.rows", built.parts, renews=True)
        # A file of this name has this digest, hence these bytes: losing the race is as good as winning it.
        target.publish_file(file, f"{name}.arrow", renews=True)
    except BaseException:
        wait([synced], timeout=None)  # no deadline: the descriptor is in use until then
        file.abandon()
        raise
    return shard_entry(f"{name}.arrow", f"{name}.rows", 0, built, digest)
