"""Records of fixed_size_list<uint16, 2048> delivered as int64 [32, 2048], beside the same copies widened in C.

python -m pytest benchmarks/bench_fixed.py --benchmark-enable -s
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shufflestore as ss
from benchmarks.harness.audit import Opened
from benchmarks.harness.environment import warm_up
from benchmarks.harness.measure import Comparison, Epoch
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import FIXED_TOKENS, Workload, fixed_lengths_of
from benchmarks.loaders.limit import WidenLoop
from benchmarks.loaders.ours import Ours

COMMAND = "python -m pytest benchmarks/bench_fixed.py --benchmark-enable -s"


class FixedOurs(Ours):
    """Our loader on the fixed set: the core widens while it reads."""

    def __init__(self, store: Path) -> None:
        """Say where the store is."""
        super().__init__("ours")
        self._store = store

    def prepare(self, workload: Workload) -> None:
        """Open the data."""
        self._data = ss.open(self._store)
        self._loader = ss.DataLoader(self._data, workload.batch_size, shuffle=True, seed=1)

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the loader's own iterator."""
        return super().batches(epoch)

    def opened(self, batch: Any) -> Opened:
        """Return the tensor, after a look at its shape and type."""
        tokens = batch["tokens"].numpy()
        assert tokens.dtype == np.int64, tokens.dtype
        assert tokens.shape[1:] == (FIXED_TOKENS,), tokens.shape
        return Opened(batch["label"], tokens.reshape(-1), np.arange(len(tokens) + 1) * FIXED_TOKENS)


@pytest.mark.timeout(0)
def test_fixed(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Both an epoch a round."""
    store = workload.fixed()
    part = workload.fixed_part()
    epochs = [Epoch(rival, part, 0.0, fixed_lengths_of) for rival in (WidenLoop(store), FixedOurs(store))]
    with contextlib.ExitStack() as prepared:
        for epoch in epochs:
            epoch.rival.prepare(part)
            prepared.callback(epoch.rival.close)
        cached = warm_up(store)
        for epoch in epochs:
            epoch.prove()
        comparison = Comparison(epochs, WidenLoop.name)
        benchmark.pedantic(
            comparison.round, setup=comparison.rest, rounds=rounds * 3 if workload.is_timed else 1, iterations=1
        )
    ratio = statistics.median(comparison.ratios("ours"))
    report = Report(
        "fixed", "Fixed records: uint16 [2048] to int64 [32, 2048]", COMMAND, WidenLoop.name, comparison.rows()
    )
    report.figures = [Figure("ours / plain C copy-and-widen", ratio, 0.7)]
    report.notes = {"records": part.record_count, "share in page cache": cached, **comparison.notes}
    benchmark.extra_info["ratio"] = ratio
    if workload.is_timed:
        report.write(workload.is_full)
