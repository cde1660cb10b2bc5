"""LanceDB's `StreamingDataset`: exact shuffle by row takes, its best queue depth found by trial."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness.workload import Workload
from benchmarks.loaders import Triples, rate_of

__all__ = ["rivals"]

TRIALS = ((64, 4), (256, 8), (256, 16))
"""Rows a take, takes in flight, for records of 2 KB; fewer rows where records are larger, for all lie in memory."""
_TRIAL_SECONDS = 1.5


def _rows(batch: Any) -> list[tuple[int, Any]]:
    """The cheapest transform there is: views of the table that came."""
    tokens, labels = batch.column("tokens"), batch.column("label").to_numpy()
    if isinstance(tokens, pa.ChunkedArray):
        tokens = tokens.combine_chunks()
    values, ends = tokens.values.to_numpy(), tokens.offsets.to_numpy()
    return [(labels[i], values[ends[i] : ends[i + 1]]) for i in range(len(labels))]


class Lance(Triples):
    """Rows that the data set yields one by one, put together into batches."""

    name = "LanceDB StreamingDataset"
    is_slow = True

    def prepare(self, workload: Workload) -> None:
        """Open the table, and find the best settings."""
        import lancedb

        path = workload.once("lance", lambda place: _build(place, workload))
        self._table = lancedb.connect(str(path)).open_table("tokens")
        self._size = workload.batch_size
        trials = [(max(rows // workload.scale, 4), depth) for rows, depth in TRIALS]
        self.trials = {trial: rate_of(self._batches(0, *trial), _TRIAL_SECONDS) for trial in trials}
        self._best = max(self.trials, key=lambda trial: self.trials[trial])

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        return self._batches(epoch, *self._best)

    def _batches(self, epoch: int, rows: int, depth: int) -> Iterator[Any]:
        from lancedb.streaming import StreamingDataset

        stream = iter(
            StreamingDataset(
                self._table, shuffle_seed=1, epoch=epoch, read_batch_size=rows, io_queue_depth=depth, transform=_rows
            )
        )
        while held := [record for _, record in zip(range(self._size), stream, strict=False)]:
            ends = np.concatenate([[0], np.cumsum([len(tokens) for _, tokens in held])])
            labels = torch.from_numpy(np.array([label for label, _ in held]))
            yield labels, torch.from_numpy(np.concatenate([tokens for _, tokens in held])), torch.from_numpy(ends)

    def close(self) -> None:
        """Let go of the table."""
        self._table = None


def _build(path: Any, workload: Workload) -> None:
    import lancedb

    shutil.rmtree(path, ignore_errors=True)
    chunks = workload.chunks()
    first = next(chunks)

    def every() -> Iterator[Any]:
        yield first
        yield from chunks

    lancedb.connect(str(path)).create_table("tokens", pa.RecordBatchReader.from_batches(first.schema, every()))


def rivals() -> list[Lance]:
    """Return it where it is installed (benchmarks/rivals.txt)."""
    return [Lance()] if importlib.util.find_spec("lancedb") else []
