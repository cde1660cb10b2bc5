"""Ids to reads: which shard and row, which bytes, which slot. Windows of 4,096 ids.

python -m pytest benchmarks/micro/bench_resolve.py --benchmark-enable
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.harness.workload import lengths_of
from benchmarks.micro.conftest import Window
from shufflestore.storage.base import READ

pytestmark = pytest.mark.benchmark(group="resolve")


def test_find(benchmark: Any, window: Window, per_record: Any) -> None:
    """Id -> shard, chunk, row."""
    indexes = window.data.reading.indexes
    places = benchmark(indexes.find, window.ids)
    per_record(len(window.ids))
    shards = indexes.first_id[places.shard]
    assert (shards <= window.ids).all()
    assert (window.ids < indexes.first_id[places.shard + 1]).all()


def test_resolve(benchmark: Any, window: Window, per_record: Any) -> None:
    """Ids -> reads with slots, checksums, offsets and copied columns, from pages of the row index."""
    indexes = window.data.reading.indexes
    found = benchmark(indexes.resolve, window.ids, window.ends, window.projection.wanted, True)
    per_record(len(window.ids))
    assert np.array_equal(found.reads.view(READ)["size"].reshape(-1), lengths_of(window.ids) * 4)
    assert int(found.output_sizes.sum()) == int(lengths_of(window.ids).sum()) * 4
