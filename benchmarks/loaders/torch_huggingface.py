"""torch's DataLoader over a Hugging Face map-style data set, in each of its formats, with its best worker count."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload
from benchmarks.loaders import rate_of
from benchmarks.loaders.huggingface_take import jagged

__all__ = ["rivals"]

WORKERS = (0, 1, 2)
_TRIAL_SECONDS = 1.5
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _ends(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))


def collate_torch(records: Sequence[dict[str, Any]]) -> Batch:
    """Return jagged tensors of records that are tensors."""
    tokens = [record["tokens"] for record in records]
    return torch.stack([record["label"] for record in records]), torch.cat(tokens), _ends([len(t) for t in tokens])


def collate_numpy(records: Sequence[dict[str, Any]]) -> Batch:
    """Return jagged tensors of records that are arrays."""
    tokens = [record["tokens"] for record in records]
    labels = np.array([record["label"] for record in records])
    return torch.from_numpy(labels), torch.from_numpy(np.concatenate(tokens)), _ends([len(t) for t in tokens])


class TorchOver:
    """A DataLoader with batches of shuffled records and a collate function as cheap as can be."""

    is_slow = True
    is_reused = False

    def __init__(self, format_: str, collate: Callable[[Any], Batch]) -> None:
        """Say which format the data set delivers."""
        self.name = f"torch DataLoader, Hugging Face {format_} format"
        self._format = format_
        self._collate = collate
        self.trials: dict[int, float] = {}
        """Records a second of each worker count."""

    def prepare(self, workload: Workload) -> None:
        """Load the saved folder and find the best worker count."""
        self._data = datasets.load_from_disk(str(workload.saved())).with_format(self._format)
        self._size = workload.batch_size
        for workers in WORKERS:
            self.trials[workers] = self._trial(workers)
        self.workers = max(self.trials, key=lambda count: self.trials[count])

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Return the epoch's batches."""
        torch.manual_seed(epoch)
        return iter(self._loader(self.workers))

    def _loader(self, workers: int) -> Any:
        # A forked worker warns about threads of this process, which it does not touch.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*", category=DeprecationWarning)
        if self._format == "arrow":
            # The set's own __getitems__ cannot cut a table into records: give it whole batches of ids.
            sampler = BatchSampler(RandomSampler(self._data), self._size, drop_last=False)
            return DataLoader(
                self._data, batch_size=None, sampler=sampler, num_workers=workers, collate_fn=self._collate
            )
        return DataLoader(self._data, self._size, shuffle=True, num_workers=workers, collate_fn=self._collate)

    def _trial(self, workers: int) -> float:
        return rate_of(iter(self._loader(workers)), _TRIAL_SECONDS, self.labels)

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the labels."""
        return batch[0]

    def opened(self, batch: Batch) -> Opened:
        """Return the tensors."""
        return Opened(*batch)

    def close(self) -> None:
        """Let go of the data."""
        self._data = None


def rivals() -> list[TorchOver]:
    """Return one rival a format."""
    return [
        TorchOver("torch", collate_torch),
        TorchOver("numpy", collate_numpy),
        TorchOver("arrow", jagged),
    ]
