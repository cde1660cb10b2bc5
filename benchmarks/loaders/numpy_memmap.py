"""What a careful person writes by hand: one flat memmap of tokens, offsets, and a slice a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness.workload import Workload
from benchmarks.loaders import Triples

__all__ = ["rivals"]


class NumpyMemmap(Triples):
    """Slices concatenated into jagged tensors. The permutation is made outside the clock."""

    name = "numpy memmap loop"
    is_slow = False

    def prepare(self, workload: Workload) -> None:
        """Map the tokens; offsets and labels are in memory."""
        folder = workload.flat()
        self._size = workload.batch_size
        # A plain array over the map: slicing np.memmap itself costs a Python-level subclass hook each time.
        self._tokens = np.asarray(np.memmap(folder / "tokens.i32", np.int32, "r"))
        self._offsets = np.load(folder / "offsets.npy")
        self._labels = np.load(folder / "labels.npy")

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        order = np.random.default_rng(epoch).permutation(len(self._labels))
        return self._gathered(order)

    def _gathered(self, order: Any) -> Iterator[Any]:
        tokens, offsets, size = self._tokens, self._offsets, self._size
        for first in range(0, len(order), size):
            ids = order[first : first + size]
            starts, stops = offsets[ids], offsets[ids + 1]
            values = np.concatenate([tokens[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])
            ends = np.zeros(len(ids) + 1, np.int64)
            np.cumsum(stops - starts, out=ends[1:])
            yield torch.from_numpy(self._labels[ids]), torch.from_numpy(values), torch.from_numpy(ends)

    def close(self) -> None:
        """Let go of the map."""
        del self._tokens


def rivals() -> list[NumpyMemmap]:
    """Return the loop."""
    return [NumpyMemmap()]
