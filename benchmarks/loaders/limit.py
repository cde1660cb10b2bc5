"""The plain C loop: memcpy after memcpy into one buffer, one thread. What the machine allows a simple program.

It gets every advantage: where the records are is known beforehand (ours works that out within the
clock), the buffer is warm and the same each time, nothing is checked, no tensor is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import shufflestore as ss
from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import FIXED_TOKENS, Workload, fixed_lengths_of, ids_of, labels_of, lengths_of
from shufflestore import _native
from shufflestore.orders.epoch import make_order
from shufflestore.storage.base import READ

__all__ = ["CLoop", "WidenLoop", "rivals"]


class _Batch(NamedTuple):
    labels: NDArray[np.int64]
    buffer: NDArray[Any]


class CLoop:
    """`gather_limit` over the shards of a converted store, joined in one map."""

    name = "plain C gather loop"
    is_slow = False
    is_reused = True
    kind: Any = np.int32
    """Of the tokens in the buffer."""

    def __init__(self, store: Path | None = None) -> None:
        """Say where the store is; None for the workload's token set."""
        self._store = store

    def prepare(self, workload: Workload) -> None:
        """Find out where every record's tokens are."""
        self._size = workload.batch_size
        self._count = workload.record_count
        root = self._store or workload.store(narrow=False)
        with ss.open(root) as data:
            indexes = data.reading.indexes
            places = indexes.find(np.arange(self._count))
            wanted = data.projection(["tokens"]).wanted
            reads = (
                indexes.resolve(np.arange(self._count), np.array([self._count]), wanted, True)
                .reads.view(READ)
                .reshape(-1)
            )
            names = [indexes.shards.name("data", i) for i in range(len(indexes.shards))]
        assert np.array_equal(reads["reserved"], np.arange(self._count)), "one read a record: its tokens"
        self._maps = [np.asarray(np.memmap(root / name, np.uint8, "r")) for name in names]
        # The loop takes one range of memory: offsets are counted from the lowest map.
        starts = np.array([m.__array_interface__["data"][0] for m in self._maps], np.uint64)
        base = int(starts.min())
        end = max(int(start) + len(m) for start, m in zip(starts, self._maps, strict=True))
        self._data = _joined(base, end - base)
        self._offset = reads["offset"] + (starts - np.uint64(base))[places.shard]
        self._bytes = np.ascontiguousarray(reads["size"])
        self.out = self.buffer(workload)

    def buffer(self, workload: Workload) -> NDArray[Any]:
        """Return the one buffer, large enough for any batch."""
        return np.zeros(workload.batch_size * 4096, np.uint8)

    def spans(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return first byte and bytes of each record's tokens, for `gather`."""
        return self._offset[ids], self._bytes[ids]

    def gather(self, offset: NDArray[np.uint64], size: NDArray[np.uint64]) -> None:
        """Fill the buffer with a batch."""
        _native.gather_limit(self._data, offset, size, self.out)

    def batches(self, epoch: int) -> Iterator[_Batch]:
        """Return the epoch's batches; their ranges are looked up before the clock starts."""
        ids = make_order("global", self._count, 1, epoch).ids(np.arange(self._count))
        offset, size = self.spans(ids)
        cuts = [slice(a, min(a + self._size, self._count)) for a in range(0, self._count, self._size)]
        work = [(offset[cut], size[cut], labels_of(ids[cut])) for cut in cuts]
        return self._gathered(work)

    def _gathered(self, work: list[tuple[Any, Any, Any]]) -> Iterator[_Batch]:
        gather, out = self.gather, self.out
        for offset, size, labels in work:
            gather(offset, size)
            yield _Batch(labels, out)

    def labels(self, batch: _Batch) -> NDArray[np.int64]:
        """Return what the order said; the loop itself reads tokens only."""
        return batch.labels

    def lengths(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n,) tokens of each record."""
        return lengths_of(ids)

    def opened(self, batch: _Batch) -> Opened:
        """Return the tokens in the buffer."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths(ids_of(batch.labels)))])
        return Opened(batch.labels, batch.buffer.view(self.kind)[: offsets[-1]], offsets)

    def close(self) -> None:
        """Let go of the maps."""
        del self._data, self.out, self._maps


class WidenLoop(CLoop):
    """`widen_limit` over the fixed set: each uint16 becomes an int64 in the buffer."""

    name = "plain C copy-and-widen loop"
    kind = np.int64

    def buffer(self, workload: Workload) -> NDArray[np.int64]:
        """Return the one buffer, (batch, 2048) end to end."""
        return np.zeros(workload.batch_size * FIXED_TOKENS, np.int64)

    def gather(self, offset: NDArray[np.uint64], size: NDArray[np.uint64]) -> None:
        """Fill the buffer with a batch."""
        _native.widen_limit(self._data, offset, size, self.out)

    def lengths(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return 2,048 for each record."""
        return fixed_lengths_of(ids)


def _joined(address: int, size: int) -> NDArray[np.uint8]:
    """Return the address range that spans several maps as one array; only mapped parts may be touched."""

    class Range:
        __array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, True), "version": 3}  # noqa: RUF012

    return np.asarray(Range())


def rivals() -> list[CLoop]:
    """Return the loop."""
    return [CLoop()]
