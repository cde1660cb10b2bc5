"""Anybody's data set: records that wait, records that compute, a sampler of a billion, and the cost of a state.

python -m pytest benchmarks/bench_foreign.py --benchmark-enable -s
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch

import shufflestore as ss
from benchmarks.harness.measure import Comparison, Sample, Sampled
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload

COMMAND = "python -m pytest benchmarks/bench_foreign.py --benchmark-enable -s"
Torch = torch.utils.data.DataLoader
BATCH = 64
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Waiting(torch.utils.data.Dataset):  # type: ignore[misc]
    """Each record waits as a remote read would."""

    thread_safe = True

    def __init__(self, length: int, seconds: float) -> None:
        self.length, self.seconds = length, seconds

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> int:
        time.sleep(self.seconds)
        return number


class Computing(Waiting):
    """Each record costs some 40 us of Python that holds the GIL."""

    def __getitem__(self, number: int) -> tuple[int, int]:
        return number, sum(i & number for i in range(500))


def sample(make: Callable[[], Any], look: Callable[[Any], None] | None = None) -> Sample:
    """From the first batch of each worker on; each record was delivered once.

    Args:
        make: Makes a loader whose batches are ids, or begin with them.
        look: Called with every 16th batch when the clock stands, to check what it holds.
    """
    loader = make()
    ids, kept, times = [], [], []
    for step, batch in enumerate(loader):
        times.append(time.perf_counter())
        ids.append(batch[0] if isinstance(batch, list) else batch)
        if look is not None and step % 16 == 0:
            kept.append(batch)
    for batch in kept:
        cast(Callable[[Any], None], look)(batch)
    skipped = max(loader.num_workers, 1)
    records = sum(map(len, ids[skipped:]))
    whole = np.sort(np.concatenate([np.asarray(part) for part in ids]))
    assert np.array_equal(whole, np.arange(len(loader.dataset))), "a record is lost or came twice"
    return Sample(times[-1] - times[skipped - 1], records)


def compare(
    makes: dict[str, Callable[[], Any]], rounds: int, benchmark: Any, look: Callable[[Any], None] | None = None
) -> tuple[Comparison, dict[str, float]]:
    """Measure loaders; return that and their median rates. The first is what others are compared with."""
    contenders = [Sampled(name, partial(sample, make, look)) for name, make in makes.items()]
    comparison = Comparison(contenders, next(iter(makes)))
    benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=rounds, iterations=1)
    return comparison, {row["name"]: row["records_per_second"] for row in comparison.rows()}


@pytest.mark.timeout(0)
def test_waiting(benchmark: Any, workload: Workload, rounds: int) -> None:
    """10 ms a record, two workers."""
    big, small = (12_800, 640) if workload.is_timed else (256, 192)
    seconds = 0.01 if workload.is_timed else 0.001
    makes: dict[str, Callable[[], Any]] = {
        "torch, 2 workers": lambda: Torch(Waiting(small, seconds), BATCH, shuffle=True, num_workers=2),
        "ours, 2 workers x 16 threads": lambda: ss.DataLoader(
            Waiting(big, seconds), BATCH, shuffle=True, num_workers=2, fetch_threads=16
        ),
        "ours, 1 process x 32 threads": lambda: ss.DataLoader(
            Waiting(big, seconds), BATCH, shuffle=True, fetch_threads=32
        ),
    }
    _, medians = compare(makes, rounds if workload.is_timed else 1, benchmark)
    report = Report("foreign-waiting", "Map-style data set whose records wait 10 ms", COMMAND)
    report.figures = [
        Figure("records/s, 2 workers x 16 threads (ideal 3,200)", medians["ours, 2 workers x 16 threads"], 2900)
    ]
    report.notes = {f"records/s, {name}": round(value) for name, value in medians.items()}
    if workload.is_timed:
        report.write(is_full=True)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_overhead(benchmark: Any, workload: Workload, rounds: int, workers: int) -> None:
    """A data set that cannot be helped."""
    data = Computing(51_200 if workload.is_timed else 256, 0)
    makes: dict[str, Callable[[], Any]] = {
        "torch": lambda: Torch(data, BATCH, num_workers=workers),
        "ours": lambda: ss.DataLoader(data, BATCH, num_workers=workers, fetch_threads=1),
    }
    comparison, medians = compare(makes, 2 * rounds - 1 if workload.is_timed else 1, benchmark)
    report = Report(f"foreign-overhead-{workers}", f"Records that only compute, {workers} workers", COMMAND)
    report.figures = [Figure("ours / torch's loader", statistics.median(comparison.ratios("ours")), 0.97)]
    report.notes = {f"records/s, {name}": round(value) for name, value in medians.items()}
    if workload.is_timed:
        report.write(is_full=True)


CHILD = """
import json, sys, time, torch, torch.utils.data, shufflestore as ss
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
kind, length = sys.argv[1], int(sys.argv[2])
make = ss.ShuffleSampler if kind == "ours" else torch.utils.data.RandomSampler
before, start = resident(), time.perf_counter()
first = next(iter(make(range(length))))
print(json.dumps([time.perf_counter() - start, resident() - before, first]))
"""


@pytest.mark.timeout(0)
def test_sampler(benchmark: Any, workload: Workload, rounds: int) -> None:
    """A fresh interpreter each round; torch's at a hundredth, since a billion does not fit here."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    cases = [("ours", 10**9), ("torch", 10**7 if workload.is_timed else 10**5)]

    def once() -> None:
        for kind, length in cases:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, kind, str(length)], capture_output=True, text=True, check=True
            )
            found.setdefault((kind, length), []).append(json.loads(done.stdout))

    benchmark.pedantic(once, rounds=rounds if workload.is_timed else 1, iterations=1)
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in found.items()}
    assert all(0 <= row[2] < 10**9 for row in found[cases[0]])
    seconds, megabytes, _ = medians[cases[0]]
    report = Report("sampler", "ShuffleSampler over 1e9 records", COMMAND)
    report.figures = [
        Figure("seconds to the first index", seconds, 0.05, at_most=True),
        Figure("MB beyond imports", megabytes, 50, at_most=True),
    ]
    theirs = medians[cases[1]]
    report.notes = {
        f"torch's RandomSampler over {cases[1][1]:.0e} records": f"{theirs[0]:.3f} s, {theirs[1]:,.0f} MB to the first index"
    }
    if workload.is_timed:
        report.write(is_full=True)


@pytest.mark.timeout(0)
def test_state(benchmark: Any, workload: Workload, rounds: int) -> None:
    """A loader over a billion records, saved and restored at random positions."""
    saved, restored = [], []
    r = random.Random(1)

    def once() -> None:
        loader = ss.DataLoader(range(10**9), BATCH, shuffle=True)
        state = loader.state_dict()
        ss.ShuffleSampler(range(10**9)).state_dict()
        iterator = iter(loader)
        for _ in range(r.randrange(1, 50)):
            next(iterator)
        start = time.perf_counter()
        state = loader.state_dict()
        saved.append(time.perf_counter() - start)
        text = json.dumps(state)
        assert len(text) < 1024
        other = ss.DataLoader(range(10**9), BATCH, shuffle=True)
        start = time.perf_counter()
        other.load_state_dict(json.loads(text))
        restored.append(time.perf_counter() - start)
        assert torch.equal(next(iter(other)), next(iterator))

    benchmark.pedantic(once, rounds=20 * rounds if workload.is_timed else 2, iterations=1)
    report = Report("state", "Saving and restoring a state, 1e9 records", COMMAND)
    report.figures = [
        Figure("seconds to save, longest", max(saved), 0.001, at_most=True),
        Figure("seconds to restore, longest", max(restored), 0.01, at_most=True),
    ]
    report.notes = {
        "median us": f"{statistics.median(saved) * 1e6:.0f} to save, {statistics.median(restored) * 1e6:.0f} to restore"
    }
    if workload.is_timed:
        report.write(is_full=True)
