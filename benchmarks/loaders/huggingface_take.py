"""Hugging Face's own gather: `dataset.with_format("arrow")[ids]`, a batch at a time, no DataLoader.

What the take itself returns is a table of one slice a record into the memory-mapped file: nothing was
read yet. A batch is there when its bytes are, so here it is made into jagged tensors like everyone's;
the bare slices are measured beside it for information.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload

__all__ = ["jagged", "opened_table", "rivals"]


class ArrowTake:
    """Takes of shuffled ids; the permutation is made outside the clock."""

    is_slow = True
    is_reused = False

    def __init__(self, name: str, finish: Callable[[Any], Any]) -> None:
        """Say what is done with a table."""
        self.name = name
        self._finish = finish

    def prepare(self, workload: Workload) -> None:
        """Load the saved folder, memory-mapped as always."""
        self._data = datasets.load_from_disk(str(workload.saved())).with_format("arrow")
        self._size = workload.batch_size

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        order = np.random.default_rng(epoch).permutation(len(self._data))
        return (self._finish(self._data[order[a : a + self._size]]) for a in range(0, len(order), self._size))

    def labels(self, batch: Any) -> Any:
        """Return the labels."""
        return batch.column("label") if isinstance(batch, pa.Table) else batch[0]

    def opened(self, batch: Any) -> Opened:
        """Return the columns."""
        return opened_table(batch) if isinstance(batch, pa.Table) else Opened(*batch)

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


def jagged(table: pa.Table) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return labels, values and offsets as tensors that may be written."""
    opened = opened_table(table)
    # A table of one chunk would be a view into the file; joining several has copied them already.
    is_joined = table.column("tokens").num_chunks > 1
    values = opened.values if is_joined else opened.values.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Arrow marks its own fresh memory read-only
        return torch.from_numpy(opened.labels), torch.from_numpy(values), torch.from_numpy(opened.offsets)


def rivals() -> list[ArrowTake]:
    """Return the take, delivered and bare."""
    return [
        ArrowTake("Hugging Face arrow take", jagged),
        ArrowTake("Hugging Face arrow take, bare slices", lambda table: table),
    ]
