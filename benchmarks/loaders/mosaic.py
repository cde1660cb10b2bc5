"""MosaicML Streaming: its shards from a local folder, shuffled record by record (`naive`), with its best worker count."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.harness.workload import Workload
from benchmarks.loaders import Triples, rate_of

__all__ = ["rivals"]

WORKERS = (0, 2)
_TRIAL_SECONDS = 2.0


def _collate(records: Sequence[dict[str, Any]]) -> Any:
    tokens = [record["tokens"] for record in records]
    labels = torch.from_numpy(np.array([record["label"] for record in records], np.int64))
    ends = np.concatenate([[0], np.cumsum([len(one) for one in tokens])])
    return labels, torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(ends)


class Mosaic(Triples):
    """torch's DataLoader over their `StreamingDataset`."""

    name = "MosaicML Streaming"
    is_slow = True

    def prepare(self, workload: Workload) -> None:
        """Find the best worker count."""
        _without_torchvision()
        self._path = workload.once("mds", lambda place: _build(place, workload))
        self._size = workload.batch_size
        self.trials = {workers: rate_of(self._batches(0, workers), _TRIAL_SECONDS) for workers in WORKERS}
        self._workers = max(self.trials, key=lambda count: self.trials[count])

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        return self._batches(epoch, self._workers)

    def _batches(self, epoch: int, workers: int) -> Iterator[Any]:
        import streaming

        streaming.base.util.clean_stale_shared_memory()
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*", category=DeprecationWarning)
        data = streaming.StreamingDataset(
            local=str(self._path), shuffle=True, shuffle_algo="naive", shuffle_seed=epoch + 1, batch_size=self._size
        )
        return iter(torch.utils.data.DataLoader(data, self._size, num_workers=workers, collate_fn=_collate))

    def close(self) -> None:
        """Nothing to let go of."""


def _without_torchvision() -> None:
    """It imports torchvision for classes that are not used here; the CPU build of torch has none beside it."""
    try:
        importlib.import_module("torchvision.datasets")
    except ImportError:
        for name in ("transformers", "datasets"):  # they ask whether torchvision is there, and must hear the truth
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def _build(path: Any, workload: Workload) -> None:
    _without_torchvision()
    import streaming

    with streaming.MDSWriter(out=str(path), columns={"tokens": "ndarray:int32", "label": "int"}) as writer:
        for chunk in workload.chunks():
            labels, tokens = chunk.column("label").to_numpy(), chunk.column("tokens")
            values, ends = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            for i, label in enumerate(labels):
                writer.write({"tokens": values[ends[i] : ends[i + 1]], "label": int(label)})


def rivals() -> list[Mosaic]:
    """Return it where it is installed (benchmarks/rivals.txt)."""
    return [Mosaic()] if importlib.util.find_spec("streaming") else []
