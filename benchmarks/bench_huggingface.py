"""Hugging Face data sets in torch format: served from their own files by the core, beside torch's DataLoader.

    python -m pytest benchmarks/bench_huggingface.py --benchmark-enable -s

Fixed-shape columns (2,048 uint16 tokens and a label) with torch's `default_collate`, and ragged token lists
with a user's collate function that is given the records.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from benchmarks.harness.audit import Opened
from benchmarks.harness.environment import warm_up
from benchmarks.harness.measure import Comparison, Epoch
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import (
    FIXED_TOKENS,
    Workload,
    fixed_lengths_of,
    fixed_tokens_of,
    labels_of,
    lengths_of,
)
from benchmarks.loaders import rate_of
from benchmarks.loaders.torch_huggingface import TorchOver
from shufflestore.dataset.stream import Stream, planned
from shufflestore.loader.huggingface import recognise
from shufflestore.loader.records import FromRecords
from shufflestore.orders import kernels
from shufflestore.orders.epoch import make_order
from shufflestore.orders.partition import Partition, Topology

COMMAND = "python -m pytest benchmarks/bench_huggingface.py --benchmark-enable -s"
CAP_SECONDS = 3.0
TRIAL_SECONDS = 1.5
FIXED_BATCH = 256
Batch = dict[str, Any] | tuple[Any, Any, Any]


def opened(batch: Batch) -> Opened:
    """Return a batch to be checked, after a look at the types that torch format promises."""
    if isinstance(batch, tuple):
        labels, values, offsets = batch
    else:
        assert list(batch) == ["tokens", "label"], list(batch)
        labels, values = batch["label"], batch["tokens"]
        assert values.shape == (len(labels), FIXED_TOKENS), values.shape
        values, offsets = values.reshape(-1), np.arange(len(labels) + 1) * FIXED_TOKENS
    assert str(labels.dtype) == str(values.dtype) == "torch.int64", (labels.dtype, values.dtype)
    return Opened(labels, values, offsets)


def label_of(batch: Batch) -> Any:
    """Return the labels."""
    return batch[0] if isinstance(batch, tuple) else batch["label"]


def jagged(records: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """Collate records as a user would who wants no padding, as cheaply as torch allows."""
    tokens = [record["tokens"] for record in records]
    ends = np.cumsum([0, *(one.numel() for one in tokens)])  # `len` of a tensor takes ten times as long
    return torch.stack([record["label"] for record in records]), torch.cat(tokens), torch.from_numpy(ends)


class Torch(TorchOver):
    """torch's DataLoader over the data set, with its best worker count."""

    def __init__(self, folder: Path, collate: Callable[[Any], Any]) -> None:
        """Say where the data set was saved."""
        super().__init__("torch", collate)
        self._folder = folder

    def prepare(self, workload: Workload) -> None:
        """Load the folder and find the best worker count."""
        self._data = datasets.load_from_disk(str(self._folder)).with_format("torch")
        self._size = workload.batch_size
        for workers in (0, 1, 2):
            self.trials[workers] = self._trial(workers)
        self.workers = max(self.trials, key=lambda count: self.trials[count])

    def _trial(self, workers: int) -> float:
        return rate_of(iter(self._loader(workers)), TRIAL_SECONDS, label_of)

    def labels(self, batch: Any) -> Any:
        """Return the labels."""
        return label_of(batch)

    def opened(self, batch: Any) -> Opened:
        """Return the tensors."""
        return opened(batch)


class Served:
    """The same data set, recognised and read by the core, as the loader drives it."""

    name = "ours, from the data set's own files"
    is_slow = False
    is_reused = False

    def __init__(self, folder: Path, collate: Callable[[Any], Any] | None) -> None:
        """Say where the data set was saved, and the user's collate function if there is one."""
        self._folder = folder
        self._collate = collate
        self.labels = label_of
        self.opened = opened

    def prepare(self, workload: Workload) -> None:
        """Recognise and index the data set, and compile the order's kernel."""
        served = recognise(datasets.load_from_disk(str(self._folder)).with_format("torch"))
        assert served is not None
        self._served, self._data = served, served.dataset
        self._size = workload.batch_size
        kernels.warm()

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the epoch's batches."""
        data, served, collate = self._data, self._served, self._collate
        order = make_order("global", len(data), 1, epoch)
        plan = planned(Partition(len(data), self._size, Topology(0, 1), "uneven", 0), order, data.selection)
        projection = data.projection(None, served.widen)
        finish = served.collate if collate is None else FromRecords(collate, served.records)
        return Stream(data.reading, projection, plan, finish, None)

    def close(self) -> None:
        """Close the files."""
        self._data.close()


def saved_fixed(workload: Workload) -> Path:
    """Return the fixed set as Hugging Face's `save_to_disk` writes it."""

    def build(path: Path) -> None:
        features = datasets.Features(
            {"tokens": datasets.List(datasets.Value("uint16"), length=FIXED_TOKENS), "label": datasets.Value("int64")}
        )

        def records() -> Iterator[dict[str, Any]]:
            for start in range(0, workload.fixed_count, 500):
                ids = np.arange(start, min(start + 500, workload.fixed_count))
                for tokens, label in zip(fixed_tokens_of(ids), labels_of(ids), strict=True):
                    yield {"tokens": tokens, "label": label}

        made = datasets.Dataset.from_generator(records, features=features, cache_dir=f"{path}.cache")
        made.save_to_disk(str(path), max_shard_size="500MB")
        shutil.rmtree(f"{path}.cache")

    return workload.once("saved-fixed", build)


def run(
    benchmark: Any, workload: Workload, rounds: int, epochs: list[Epoch], folder: Path, figure: Figure, name: str
) -> None:
    """Measure both an epoch a round and report."""
    torchs, ours = epochs
    with contextlib.ExitStack() as prepared:
        for epoch in epochs:
            epoch.rival.prepare(epoch.workload)
            prepared.callback(epoch.rival.close)
        cached = warm_up(folder)
        for epoch in epochs:
            epoch.prove()
        comparison = Comparison(epochs, torchs.name)
        benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=rounds, iterations=1)
    ratio = statistics.median(comparison.ratios(ours.name))
    report = Report(f"huggingface-{name}", f"Hugging Face fast path, {name}", COMMAND, torchs.name, comparison.rows())
    report.figures = [replace(figure, found=ratio)]
    report.notes = {
        "records": torchs.workload.record_count,
        "share in page cache": cached,
        "records/s by workers, torch": {k: round(v) for k, v in torchs.rival.trials.items()},
        **comparison.notes,
    }
    benchmark.extra_info["ratio"] = ratio
    if workload.is_timed:
        report.write(workload.is_full)


@pytest.fixture(autouse=True)
def _circumstances(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the row indexes with the data, and let torch copy with one thread, as it does in its own workers.

    Its threads and the core's would fight for two processors; they gain nothing at a megabyte a batch.
    """
    monkeypatch.setenv("SHUFFLESTORE_CACHE", os.fspath(workload.folder / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(0)
def test_fixed_shapes(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Columns of one shape, stacked by `default_collate` or as they come."""
    folder = saved_fixed(workload)
    part = replace(workload.fixed_part(), batch_size=FIXED_BATCH)
    cap = CAP_SECONDS if workload.is_timed else 0.2
    epochs = [
        Epoch(Torch(folder, default_collate), part, cap, fixed_lengths_of),
        Epoch(Served(folder, None), part, cap, fixed_lengths_of),
    ]
    run(benchmark, workload, rounds, epochs, folder, Figure("fixed shapes, ours / torch's loader", 0, 12.0), "fixed")


@pytest.mark.timeout(0)
def test_ragged_lists(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Records as dicts of tensors, which a user's function collates."""
    folder = workload.saved()
    cap = CAP_SECONDS if workload.is_timed else 0.2
    epochs = [
        Epoch(Torch(folder, jagged), workload, cap, lengths_of),
        Epoch(Served(folder, jagged), workload, cap, lengths_of),
    ]
    run(benchmark, workload, rounds, epochs, folder, Figure("ragged lists, ours / torch's loader", 0, 6.0), "ragged")
