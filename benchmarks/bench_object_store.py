"""Reading from an object store: ours beside a bare obstore loop, and a cached epoch beside the same files on disk.

    python -m pytest benchmarks/bench_object_store.py --benchmark-enable -s

The store is `benchmarks.harness.object_store`, a process of its own on the same machine. Every batch is checked against
its checksums; the bare loop checks nothing and puts nothing together. A request takes 10 ms.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from obstore.store import S3Store

import shufflestore as ss
from benchmarks.harness.audit import check_ids
from benchmarks.harness.measure import Clock, Comparison, Sample, Timed
from benchmarks.harness.object_store import ObjectStore
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload, ids_of
from shufflestore.storage.base import READ

COMMAND = "python -m pytest benchmarks/bench_object_store.py --benchmark-enable -s"
LATENCY_SECONDS = 0.01
BATCH = 256
STEADY_FROM = 4
"""Batches until the first ones are over, and as many that are not counted at the end."""
STALLED = (0.01, 2.0)
"""(share of the requests, seconds that they take)."""


def _part(workload: Workload) -> Workload:
    """An epoch of seconds: a hundred batches at full size."""
    records = 100 * BATCH if workload.is_timed else min(workload.record_count, 8 * BATCH)
    return replace(workload, record_count=records, batch_size=BATCH)


@contextmanager
def _served(store: Path, **settings: Any) -> Iterator[ObjectStore]:
    with ObjectStore(store.parent, **settings) as server:
        yield server


def _opened(server: ObjectStore, store: Path, cache_dir: Path | None = None, **options: Any) -> Any:
    keys = {"endpoint": server.endpoint, "skip_signature": "true", "region": "here"}
    return ss.open(f"s3://{store.name}", cache_dir=cache_dir, storage_options={**keys, **options})


@dataclass
class Ours:
    """Our loader, an epoch a round; in the steady state alone, or from its first request to its end."""

    name: str
    data: Any
    is_whole: bool

    def measure(self, number: int) -> Sample:
        """Run an epoch and check that each record came once."""
        loader = ss.DataLoader(self.data, BATCH, shuffle=True, seed=number)
        labels: list[Any] = []
        count = len(loader)
        first, last = (0, count) if self.is_whole else (STEADY_FROM, max(count - STEADY_FROM, STEADY_FROM + 1))
        clock, sample = Clock(), None
        for i, batch in enumerate(loader, 1):
            labels.append(batch["label"])
            if i == first:
                clock = Clock()
            if i == last:
                sample = clock.stop(sum(len(one) for one in labels[first:]))
        assert sample is not None, "the epoch was shorter than the loader said"
        check_ids([ids_of(np.asarray(one)) for one in labels], len(self.data), is_whole=True)
        return sample


def _bare(server: ObjectStore, store: Path, data: Any, in_flight: int) -> Timed:
    """obstore in an event loop, so many requests at a time, over the ranges that an epoch of ours reads."""
    ids = np.random.default_rng(0).permutation(len(data))
    ends = np.array([len(ids)], np.int64)
    window = data.reading.indexes.resolve(ids, ends, data.projection().wanted, verify=True)
    reads = window.reads.view(READ).reshape(-1)
    reads = reads[reads["size"] > 0]
    names = [data.reading.indexes.shards.name("data", i) for i in range(len(data.reading.indexes.shards))]
    files = {data.reading.store.handle(name, 0): name for name in names}
    columns = ([files[f] for f in reads["file"].tolist()], reads["offset"].tolist(), reads["size"].tolist())
    ranges = list(zip(*columns, strict=True))
    client = S3Store(
        store.name, endpoint=server.endpoint, skip_signature=True, region="here",
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip

    async def loop() -> None:
        todo = iter(ranges)

        async def one() -> None:
            for name, offset, size in todo:
                found = await obstore.get_range_async(client, name, start=offset, length=size)
                assert len(found) == size

        await asyncio.gather(*(one() for _ in range(in_flight)))

    def work(_: int) -> int:
        asyncio.run(loop())
        return len(ids)

    return Timed("bare obstore loop", work)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("in_flight", [32, 64])
def test_object_store(benchmark: Any, workload: Workload, rounds: int, in_flight: int) -> None:
    """An epoch of each a round, one request a record."""
    part = _part(workload)
    store = part.store()
    with _served(store, latency_seconds=LATENCY_SECONDS if workload.is_timed else 0.001) as server:
        data = _opened(server, store, max_in_flight=in_flight, gap_bytes=0)
        merging = _opened(server, store, max_in_flight=in_flight)
        contenders = [
            _bare(server, store, data, in_flight),
            Ours("ours, between its ends", data, False),
            Ours("ours, the whole epoch", data, True),
            Ours("ours, neighbours merged", merging, True),
        ]
        comparison = Comparison(contenders, "bare obstore loop")
        for one in contenders:
            one.measure(0)  # row indexes, connections and threads are there
        benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=rounds, iterations=1)
        counts = data.reading.store.counters()
        data.close()
        merging.close()
    report = Report(
        f"object-store-{in_flight}", f"An object store of 10 ms a request, {in_flight} in flight, batches of {BATCH}",
        COMMAND, "bare obstore loop", comparison.rows(),
    )  # fmt: skip

    def beside(name: str) -> float:
        return statistics.median(comparison.ratios(name))

    report.figures = [
        Figure("ours between its ends / bare obstore loop", beside("ours, between its ends"), 0.9),
        Figure("ours over a whole epoch / bare obstore loop", beside("ours, the whole epoch"), 0.8),
    ]
    epochs = 2 * (comparison.round_count + 1)
    report.notes = {
        "records": part.record_count, "hedges": counts["hedges"], **comparison.notes,
        "requests a record, ours, between its ends and whole": round(counts["requests"] / epochs / part.record_count, 3),
    }  # fmt: skip
    if workload.is_timed:
        report.write(workload.is_full)


@pytest.mark.timeout(0)
def test_tail(benchmark: Any, workload: Workload, rounds: int) -> None:
    """One request in a hundred takes two seconds: how long a batch takes that is asked for alone, nothing read ahead."""
    part = _part(workload)
    store = part.store()
    batches = 100 if workload.is_timed else 4
    times: list[float] = []
    with _served(store, latency_seconds=LATENCY_SECONDS if workload.is_timed else 0.001) as server:
        data = _opened(server, store, max_in_flight=64, gap_bytes=0)

        def work(number: int) -> int:
            random = np.random.default_rng(number)
            for _ in range(batches):
                ids = random.integers(0, len(data), BATCH)
                begun = time.perf_counter()
                found = data.take(ids)
                times.append(time.perf_counter() - begun)
                assert np.array_equal(ids_of(found["label"].to_numpy()), ids)
            return batches * BATCH

        work(0)  # row indexes, connections, threads; and what a usual request takes
        server.configure(tail=STALLED if workload.is_timed else (0.01, 0.1))
        before = data.reading.store.counters()
        times.clear()
        comparison = Comparison([Timed("ours, hedged", work)], "ours, hedged")
        benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=rounds, iterations=1)
        after = data.reading.store.counters()
        data.close()
    asked, hedged = (after[name] - before[name] for name in ("requests", "hedges"))
    median, slow = (float(np.quantile(times, q)) for q in (0.5, 0.99))
    report = Report(
        "object-store-tail", "One request in a hundred takes 2 s", COMMAND, "ours, hedged", comparison.rows()
    )
    report.figures = [
        Figure("99th percentile of a batch's time / the median", slow / median, 2.0, at_most=True),
        Figure("requests beyond those needed, of these", hedged / (asked - hedged), 0.04, at_most=True),
    ]
    report.notes = {"records": part.record_count, "median batch, ms": round(median * 1e3, 2), **comparison.notes}
    if workload.is_timed:
        report.write(workload.is_full)


@pytest.mark.timeout(0)
def test_cached(benchmark: Any, workload: Workload, rounds: int, tmp_path: Path) -> None:
    """Epochs of a bucket whose first epoch filled the cache, beside epochs of the same files on the local disk."""
    part = replace(_part(workload), record_count=400_000) if workload.is_timed else _part(workload)
    store = part.store()
    with _served(store, latency_seconds=LATENCY_SECONDS if workload.is_timed else 0.001) as server:
        data = _opened(server, store, tmp_path / "cache")
        local = ss.open(store)
        contenders = [Ours("local", local, True), Ours("cached", data, True)]
        for one in contenders:
            one.measure(0)
        server.reset_counts()
        comparison = Comparison(contenders, "local")
        benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=5 * rounds, iterations=1)
        asked = server.counts()["request_count"]
        engines = {"local": local.reading.store.engine, "cached": data.reading.store.engine}
        data.close()
        local.close()
    report = Report(
        "object-store-cached", "An epoch from the cache of a bucket beside one from the local disk", COMMAND, "local",
        comparison.rows(),
    )  # fmt: skip
    report.figures = [
        Figure("cached second epoch / local", statistics.median(comparison.ratios("cached")), 0.9),
        Figure("requests to the bucket", asked, 0, at_most=True),
    ]
    report.notes = {"records": part.record_count, "engines": engines, **comparison.notes}
    if workload.is_timed:
        report.write(workload.is_full)
    assert not asked
