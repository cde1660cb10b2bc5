"""The plain C loop: memcpy after memcpy into one buffer, one thread. What the machine allows a simple program.

It gets every advantage: where the records are is known beforehand (ours works that out within the
clock), the buffer is warm and the same each time, nothing is checked, no tensor is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import shufflestore as ss
from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload, labels_of, lengths_of
from shufflestore import _native
from shufflestore.orders.epoch import make_order

__all__ = ["rivals"]


class _Batch(NamedTuple):
    labels: NDArray[np.int64]
    buffer: NDArray[np.uint8]


class CLoop:
    """`gather_limit` over the shards of the converted store, joined in one map."""

    name = "plain C gather loop"
    is_slow = False
    is_reused = True

    def prepare(self, workload: Workload) -> None:
        """Find out where every record's tokens are."""
        self._size = workload.batch_size
        self._count = workload.record_count
        with ss.open(workload.store()) as data:
            reading = data.reading
            projection = data.projection(["tokens"])
            ids = np.arange(self._count)
            places = reading.indexes.find(ids)
            located, _ = reading.indexes.locate(places, projection.wanted)
            tokens = int(np.argmax(located.size.sum(axis=0)))
            names = [reading.indexes.shards.name("data", i) for i in range(len(reading.indexes.shards))]
            root = workload.store()
        maps = [np.asarray(np.memmap(root / name, np.uint8, "r")) for name in names]
        # gather_limit takes one range of memory: offsets are counted from the lowest map.
        starts = np.array([m.__array_interface__["data"][0] for m in maps], np.uint64)
        base, end = int(starts.min()), max(int(s) + len(m) for s, m in zip(starts, maps, strict=True))
        self._maps = maps
        self._data = _joined(base, end - base)
        self._offset = located.offset[:, tokens] + (starts - np.uint64(base))[places.shard]
        self._bytes = np.ascontiguousarray(located.size[:, tokens])
        self._out = np.zeros(workload.batch_size * 4096 + 4096, np.uint8)

    def batches(self, epoch: int) -> Iterator[_Batch]:
        """Return the epoch's batches; their ranges are looked up before the clock starts."""
        ids = make_order("global", self._count, 1, epoch).ids(np.arange(self._count))
        offset, size = self._offset[ids], self._bytes[ids]
        cuts = [slice(a, min(a + self._size, self._count)) for a in range(0, self._count, self._size)]
        work = [(offset[cut], size[cut], labels_of(ids[cut])) for cut in cuts]
        return self._gathered(work)

    def _gathered(self, work: list[tuple[Any, Any, Any]]) -> Iterator[_Batch]:
        gather, data, out = _native.gather_limit, self._data, self._out
        for offset, size, labels in work:
            gather(data, offset, size, out)
            yield _Batch(labels, out)

    def labels(self, batch: _Batch) -> NDArray[np.int64]:
        """Return what the order said; the loop itself reads tokens only."""
        return batch.labels

    def opened(self, batch: _Batch) -> Opened:
        """Return the tokens in the buffer."""
        lengths = lengths_of(np.asarray(batch.labels) ^ labels_of(np.zeros(1, np.int64))[0])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Opened(batch.labels, batch.buffer.view(np.int32)[: offsets[-1]], offsets)

    def close(self) -> None:
        """Let go of the maps."""
        self._data = self._out = None
        self._maps = []


def _joined(address: int, size: int) -> NDArray[np.uint8]:
    """Return the address range that spans several maps as one array; only mapped parts may be touched."""

    class Range:
        __array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, True), "version": 3}  # noqa: RUF012

    return np.asarray(Range())


def rivals() -> list[CLoop]:
    """Return the loop."""
    return [CLoop()]
