"""Submit and wait for 16 batches of 256 records, engine by engine, beside the plain C loop over the same spans.

python -m pytest benchmarks/micro/bench_gather.py --benchmark-enable
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.audit import Opened, check_batch
from benchmarks.harness.workload import Workload, labels_of, lengths_of
from benchmarks.loaders.limit import CLoop
from benchmarks.micro.conftest import BATCH, Window
from shufflestore.dataset.fetch import wait
from shufflestore.format.resolve import Resolved
from shufflestore.storage.base import READ
from shufflestore.storage.local import LocalStore

pytestmark = pytest.mark.benchmark(group="gather")


def _resolved(window: Window, store: LocalStore, verify: bool) -> Resolved:
    """Resolve the window for a store that has its own handles."""
    indexes = window.data.reading.indexes
    shards, sizes = indexes.shards, indexes.data_bytes
    handles = np.array([store.handle(shards.name("data", i), int(sizes[i])) for i in range(len(shards))], np.uint32)
    found = indexes.resolve(window.ids, window.ends, window.projection.wanted, verify)
    reads = found.reads.view(READ).reshape(-1)
    reads["file"] = handles[indexes.find(window.ids).shard[reads["reserved"]]]
    return found


def _gather(store: LocalStore, resolved: Resolved) -> list[Any]:
    pendings = store.submit(resolved.reads.view(READ).reshape(-1), resolved.ends, resolved.output_sizes)
    outputs = []
    for pending in pendings:
        wait(pending)
        assert pending.failure() is None
        outputs.append(pending.take())
    return outputs


@pytest.fixture
def store(request: pytest.FixtureRequest, workload: Workload) -> Iterator[LocalStore]:
    """The converted store, read by one engine."""
    made = LocalStore(str(workload.store(narrow=False)), engine=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("verify", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("store", ["mmap", "pread", "null"], indirect=True)
def test_gather(benchmark: Any, window: Window, store: LocalStore, verify: bool, per_record: Any) -> None:
    """Fresh buffers each time; "null" reads nothing and shows what all the rest costs."""
    if store.engine == "null" and verify:
        pytest.skip("nothing is read, so there is nothing to check")
    resolved = _resolved(window, store, verify)
    outputs = benchmark(_gather, store, resolved)
    per_record(len(window.ids))
    if store.engine == "null":
        return
    for number, (output,) in enumerate(outputs):
        ids = window.ids[number * BATCH : (number + 1) * BATCH]
        offsets = np.concatenate([[0], np.cumsum(lengths_of(ids))])
        check_batch(Opened(labels_of(ids), output.view(np.int32), offsets), len(window.data))


def test_plain_loop(benchmark: Any, window: Window, workload: Workload, per_record: Any) -> None:
    """The same spans, memcpy after memcpy into one buffer."""
    loop = CLoop()
    loop.prepare(workload)
    work = [loop.spans(ids) for ids in np.split(window.ids, window.ends[:-1])]

    def gather() -> None:
        for offset, size in work:
            loop.gather(offset, size)

    benchmark(gather)
    per_record(len(window.ids))
    ids = window.ids[-BATCH:]
    offsets = np.concatenate([[0], np.cumsum(lengths_of(ids))])
    check_batch(Opened(labels_of(ids), loop.out.view(np.int32)[: offsets[-1]], offsets), len(window.data))
    loop.close()
