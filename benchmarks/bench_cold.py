"""Data several times the memory, cold: ours beside a plain loop of the same reads, and beside other people's loaders.

Run as root (it limits memory by a control group and empties the page cache):
`python -m pytest benchmarks/bench_cold.py --benchmark-enable -s`. Rivals: `pip install --no-deps -r benchmarks/rivals.txt`.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.cold import Cold, Group, Raw, list_of_reads, raw_reads
from benchmarks.harness.measure import Comparison, Contender
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload
from benchmarks.loaders import all_rivals
from benchmarks.loaders.ours_cold import MEMORY_LIMIT

COMMAND = "python -m pytest benchmarks/bench_cold.py --benchmark-enable -s"
LIMIT_BYTES = 400 << 20
"""Memory of a contender, page cache and interpreter included: 2.2 GB of records are 5.5 times as much, 2.75 times where
tokens are stored in 16 bits, as ours and LanceDB's are."""
SECONDS = 4.0
SIZES = {2: (1, 1_000_000, 256), 16: (8, 130_000, 256), 110: (50, 20_000, 64)}
"""KB a record: scale of the token set, records, records a batch."""
OURS = ("ours, cold", "ours, cold, not narrow")
RAW = (("pread", 64, 1), ("pread", 128, 1), ("io_uring", 1, 256), ("io_uring", 2, 128), ("io_uring_direct", 1, 128))
OTHERS = (
    "LanceDB StreamingDataset", "numpy memmap loop", "the paper's method", "bagz", "MosaicML Streaming",
    "torch DataLoader, Hugging Face torch format", "torch DataLoader, Hugging Face arrow format",
)  # fmt: skip
SLACK_BYTES = 64 << 20


def _is_allowed() -> bool:
    try:
        Group(1 << 30).close()
        return os.access("/proc/sys/vm/drop_caches", os.W_OK)
    except OSError:
        return False


def _part(workload: Workload, size: int) -> Workload:
    scale, records, batch = SIZES[size]
    if not workload.is_full:
        records = max(workload.record_count // scale, 600)
    return replace(workload, record_count=records, scale=scale, batch_size=batch)


def _measured(
    benchmark: Any, contenders: list[Contender], reference: str, workload: Workload, rounds: int
) -> Comparison:
    comparison = Comparison(contenders, reference)
    benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=rounds, iterations=1)
    return comparison


@pytest.mark.timeout(0)
@pytest.mark.skipif(not _is_allowed(), reason="needs root: a control group of its own, and an empty page cache")
@pytest.mark.parametrize("size", SIZES)
def test_cold(benchmark: Any, workload: Workload, rounds: int, tmp_path: Path, size: int) -> None:
    """Seconds of an epoch, every contender a process of its own."""
    part = _part(workload, size)
    seconds = SECONDS if workload.is_timed else 0.2
    parts = [name.strip() for name in os.environ.get("SHUFFLESTORE_BENCH_RIVALS", "").split(",") if name.strip()]
    others = [n for n in OTHERS if n in all_rivals() and (not parts or any(p in n for p in parts))]
    ours = OURS
    if not workload.is_timed:  # every process of its own begins with seconds of imports
        ours, others = OURS[:1], others[: int(size == min(SIZES))]
    store = part.store()
    reads = tmp_path / "reads"
    list_of_reads(store, reads, 1_000_000, 1)
    with raw_reads() as program:
        raw: list[Contender] = [
            Raw(*how, program, reads, LIMIT_BYTES, seconds, is_cold=workload.is_timed) for how in RAW
        ]
        others, killed = _survivors(others, part) if workload.is_timed else (others, [])
        loaders: list[Contender] = [Cold(name, part, LIMIT_BYTES, seconds) for name in (*ours, *others)]
        comparison = _measured(benchmark, [*raw, *loaders], "ours, cold", part, rounds)
    rows = comparison.rows()
    report = Report(
        f"cold-{size}kb-read-ahead-{(ahead := _read_ahead(store))}kb",
        f"Cold reads of {size} KB records, memory far below the data, device read-ahead {ahead} KB",
        COMMAND, "ours, cold", rows,
    )  # fmt: skip
    report.figures = list(_figures(comparison, [one.name for one in raw], others, size))
    for row in rows:
        if row.get("read_per_used"):
            report.notes[f"bytes read per byte used, {row['name']}"] = round(row["read_per_used"], 2)
    report.notes |= {
        "records": part.record_count, "memory of a contender, MB": LIMIT_BYTES >> 20, "seconds each": seconds,
        "device read-ahead, KB": ahead, **comparison.notes,
        **{f"{name}": "killed by the system for its memory" for name in killed},
    }  # fmt: skip
    if workload.is_timed:
        report.write(workload.is_full)


def _survivors(names: list[str], part: Workload) -> tuple[list[str], list[str]]:
    """Which loaders live through a moment under the limit, and which the system kills."""
    killed = []
    for name in names:
        try:
            Cold(name, part, LIMIT_BYTES, 0.2).measure(0)
        except RuntimeError as error:
            if "ended with -9" not in str(error):
                raise
            killed.append(name)
    return [name for name in names if name not in killed], killed


def _figures(comparison: Comparison, raw: list[str], others: list[str], size: int) -> list[Figure]:
    def beside(names: list[str]) -> float:
        """Ours / the contender that is the best of some over all rounds, by the median of its ratios."""
        return 1.0 / max(statistics.median(comparison.ratios(name, "ours, cold")) for name in names)

    made = [Figure("ours / the best plain loop of the same reads", beside(raw), 0.9)]
    if (lance := "LanceDB StreamingDataset") in others:
        made.append(Figure("ours / LanceDB's StreamingDataset", beside([lance]), 3.0 if size == 2 else 1.0))
    if rest := [name for name in others if not name.startswith("LanceDB")]:
        made.append(Figure("ours / the best of the others", beside(rest), 6.0 if size == 2 else 1.0))
    mine = comparison.samples["ours, cold"]
    if size == 2:
        read = statistics.median(s.extra["read_per_used"] for s in mine)
        made.append(Figure("bytes read per byte used", read, 3.0, at_most=True))
    peak = max(s.extra["peak_bytes"] for s in mine)
    made.append(Figure("peak memory beyond imports, MB", peak / 1e6, (MEMORY_LIMIT + SLACK_BYTES) / 1e6, at_most=True))
    return made


def _read_ahead(store: Path) -> str:
    """Of the device that the data is on, in KB."""
    device = store.stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    return path.read_text().strip() if path.exists() else "unknown"
