"""The paper's own method (RINAS): an indexable Arrow file, a pool of threads, one fetch a sample, as completed.

Each sample of a batch is a task of its own: it finds the record batch in the memory-mapped file,
cuts its row out and copies it. The batch leaves when its last sample has come, in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import shufflestore as ss
from benchmarks.harness.workload import Workload
from benchmarks.loaders import Triples, rate_of

__all__ = ["rivals"]

THREADS = (2, 8, 32)
_TRIAL_SECONDS = 1.0


class Paper(Triples):
    """One fetch a sample from Arrow files (those of the converted store), as completed."""

    name = "the paper's method"
    is_slow = True

    def prepare(self, workload: Workload) -> None:
        """Open the files and find the best number of threads."""
        self._size = workload.batch_size
        self._count = workload.record_count
        root = workload.store(narrow=False)
        with ss.open(root) as data:
            names = [data.reading.indexes.shards.name("data", i) for i in range(len(data.reading.indexes.shards))]
        self._files = [pa.ipc.open_file(pa.memory_map(str(root / name))) for name in names]
        rows: list[int] = []
        self._chunks: list[tuple[int, int]] = []
        for number, file in enumerate(self._files):
            for chunk in range(file.num_record_batches):
                rows.append(file.get_batch(chunk).num_rows)
                self._chunks.append((number, chunk))
        self._first = np.concatenate([[0], np.cumsum(rows)])
        self._pool: ThreadPoolExecutor | None = None
        self.trials = {threads: self._trial(threads) for threads in THREADS}
        self._start(max(self.trials, key=lambda count: self.trials[count]))

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        order = np.random.default_rng(epoch).permutation(self._count)
        return (self._batch(order[a : a + self._size]) for a in range(0, self._count, self._size))

    def _batch(self, ids: Any) -> Any:
        assert self._pool is not None, "prepared"
        futures = [self._pool.submit(self._fetch, i) for i in ids.tolist()]
        records = [future.result() for future in as_completed(futures)]
        labels = torch.tensor([label for label, _ in records])
        ends = np.concatenate([[0], np.cumsum([len(tokens) for _, tokens in records])])
        return labels, torch.from_numpy(np.concatenate([tokens for _, tokens in records])), torch.from_numpy(ends)

    def _fetch(self, number: int) -> tuple[int, Any]:
        at = int(np.searchsorted(self._first, number, side="right")) - 1
        file, chunk = self._chunks[at]
        row = number - int(self._first[at])
        batch = self._files[file].get_batch(chunk)
        return batch.column("label")[row].as_py(), batch.column("tokens")[row].values.to_numpy()

    def _start(self, threads: int) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = ThreadPoolExecutor(threads)

    def _trial(self, threads: int) -> float:
        self._start(threads)
        return rate_of(self.batches(0), _TRIAL_SECONDS)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def rivals() -> list[Paper]:
    """Return the method."""
    return [Paper()]
