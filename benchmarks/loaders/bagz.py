"""bagz (of Grain's authors): records as bytes, a batch of them read together by its own threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness.workload import Workload
from benchmarks.loaders import Triples

__all__ = ["rivals"]


class Bagz(Triples):
    """`Reader.read_indices` of a shuffled batch, uncompressed; a record is its label and its tokens."""

    name = "bagz"
    is_slow = True

    def prepare(self, workload: Workload) -> None:
        """Open the file."""
        import bagz

        path = workload.once("tokens.bagz", lambda place: _build(place, workload))
        options = bagz.Reader.Options(compression=bagz.CompressionNone(), max_parallelism=64)
        self._reader = bagz.Reader(str(path), options)
        self._size, self._count = workload.batch_size, workload.record_count

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        order = np.random.default_rng(epoch).permutation(self._count)
        return (self._batch(order[a : a + self._size]) for a in range(0, self._count, self._size))

    def _batch(self, ids: Any) -> Any:
        records = [np.frombuffer(record, np.int32) for record in self._reader.read_indices(ids)]
        labels = torch.from_numpy(np.concatenate([record[:2] for record in records]).view(np.int64))
        ends = np.concatenate([[0], np.cumsum([len(record) - 2 for record in records])])
        return labels, torch.from_numpy(np.concatenate([record[2:] for record in records])), torch.from_numpy(ends)

    def close(self) -> None:
        """Let go of the file."""
        self._reader = None


def _build(path: Any, workload: Workload) -> None:
    import bagz

    options = bagz.Writer.Options(compression=bagz.CompressionNone())
    # The writer goes by the ending of the name, and the workload builds under another.
    temporary = path.with_name("building.bagz")
    with bagz.Writer(str(temporary), options) as writer:
        for chunk in workload.chunks():
            labels, tokens = chunk.column("label").to_numpy(), chunk.column("tokens")
            values, ends = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            for i, label in enumerate(labels):
                writer.write(label.tobytes() + values[ends[i] : ends[i + 1]].tobytes())
    temporary.rename(path)


def rivals() -> list[Bagz]:
    """Return it where it is installed (benchmarks/rivals.txt)."""
    return [Bagz()] if importlib.util.find_spec("bagz") else []
