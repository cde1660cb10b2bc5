"""Opening an ordinary data set, and taking records of it at once.

python -m pytest benchmarks/micro/bench_opening.py --benchmark-enable
"""

from __future__ import annotations

from typing import Any

import pytest

import shufflestore as ss
from benchmarks.harness.audit import check_batch
from benchmarks.harness.workload import Workload
from benchmarks.loaders.huggingface_take import opened_table

pytestmark = pytest.mark.benchmark(group="opening")


def test_open(benchmark: Any, workload: Workload) -> None:
    """Manifest and shard table; no shard is touched."""
    path = workload.store()

    def opened() -> int:
        with ss.open(path) as data:
            return len(data)

    assert benchmark(opened) == workload.record_count


def test_open_and_take(benchmark: Any, workload: Workload) -> None:
    """Until 32 records from all over the data set are there."""
    path = workload.store()
    ids = [i * (workload.record_count // 32) for i in range(32)]

    def taken() -> Any:
        with ss.open(path) as data:
            return data.take(ids)

    assert check_batch(opened_table(benchmark(taken)), workload.record_count).tolist() == ids
