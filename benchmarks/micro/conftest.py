"""One opened data set and a window of shuffled ids, for every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.harness.workload import Workload
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.reading import Projection

WINDOW = 4096
BATCH = 256


class Window(NamedTuple):
    """What a loader resolves at once: ids of several batches."""

    data: Dataset
    projection: Projection
    ids: NDArray[np.int64]
    ends: NDArray[np.int64]


@pytest.fixture(scope="session")
def window(workload: Workload) -> Iterator[Window]:
    """4,096 shuffled ids in batches of 256; every shard's row index is in memory."""
    import shufflestore as ss

    with ss.open(workload.store(narrow=False)) as data:
        data.reading.indexes.find(np.arange(len(data)))
        order = np.random.default_rng(0).permutation(len(data))
        ids = np.resize(order, WINDOW).astype(np.int64)
        yield Window(data, data.projection(), ids, np.arange(BATCH, WINDOW + 1, BATCH))


@pytest.fixture
def per_record(benchmark: Any) -> Any:
    """Note nanoseconds a record beside the benchmark's own figures, if it was timed."""
    counts: list[int] = []
    yield counts.append
    if counts and benchmark.stats:
        benchmark.extra_info["ns_per_record"] = round(benchmark.stats["median"] / counts[0] * 1e9, 2)
