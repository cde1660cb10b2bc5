"""Hugging Face's own gather: `dataset.with_format("arrow")[ids]`, a batch at a time, no torch at all.

The table is delivered as it is, which is in its favour: jagged tensors would cost a copy more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload

__all__ = ["opened_table", "rivals"]


class ArrowTake:
    """Takes of shuffled ids; the permutation is made outside the clock."""

    name = "Hugging Face arrow take"
    is_slow = True
    is_reused = False

    def prepare(self, workload: Workload) -> None:
        """Load the saved folder, memory-mapped as always."""
        self._data = datasets.load_from_disk(str(workload.saved())).with_format("arrow")
        self._size = workload.batch_size

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        order = np.random.default_rng(epoch).permutation(len(self._data))
        return (self._data[order[a : a + self._size]] for a in range(0, len(order), self._size))

    def labels(self, batch: Any) -> Any:
        """Return the labels."""
        return batch.column("label")

    def opened(self, batch: Any) -> Opened:
        """Return the columns."""
        return opened_table(batch)

    def close(self) -> None:
        """Let go of the data."""
        self._data = None


def opened_table(table: pa.Table) -> Opened:
    """Return a table's columns as arrays."""
    tokens = table.column("tokens").combine_chunks()
    lengths = tokens.value_lengths().to_numpy()
    return Opened(
        table.column("label").to_numpy(), tokens.flatten().to_numpy(), np.concatenate([[0], np.cumsum(lengths)])
    )


def rivals() -> list[ArrowTake]:
    """Return the take."""
    return [ArrowTake()]
