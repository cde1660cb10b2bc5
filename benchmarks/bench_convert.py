"""Conversion of the token set: from Parquet beside pyarrow, and from an iterable beside Hugging Face.

    python -m pytest benchmarks/bench_convert.py --benchmark-enable -s

Ours and pyarrow end with their bytes on the disk (fsync), Hugging Face does not wait for that. What was
written is read back and checked, outside the clock.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.harness.audit import Opened, check_batch, check_ids
from benchmarks.harness.environment import warm_up
from benchmarks.harness.measure import Comparison, Timed
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload, labels_of, lengths_of, tokens_of
from benchmarks.loaders.huggingface_take import opened_table
from shufflestore.convert.run import ConvertOptions, convert

COMMAND = "python -m pytest benchmarks/bench_convert.py --benchmark-enable -s"
OURS, OURS_TWO = "ours, 1 worker", "ours, 2 workers"
PYARROW, PYARROW_ONE = "pyarrow", "pyarrow, 1 thread"
ITERABLE, HUGGINGFACE = "ours, iterable", "Hugging Face from_generator + save_to_disk"


def convert_ours(source: Any, target: Path, workers: int, count: int) -> int:
    """Convert with so many processes."""
    report = convert(source, target, options=ConvertOptions(worker_count=workers))
    assert report.record_count == count, report
    return count


def copy_by_pyarrow(source: Path, target: Path, use_threads: bool, count: int) -> int:
    """Read Parquet row group by row group, write one Arrow IPC file in chunks of 1,000 records, fsync."""
    target.mkdir()
    file = pq.ParquetFile(source)
    with (target / "data.arrow").open("wb") as sink:
        with pa.ipc.new_file(sink, file.schema_arrow) as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group, use_threads=use_threads), max_chunksize=1000)
        sink.flush()
        os.fsync(sink.fileno())
    return count


_MADE: list[dict[str, Any]] = []
"""Records at hand, so that making them is no part of the conversion."""


def records(count: int) -> Iterator[dict[str, Any]]:
    """Yield records as dicts of a numpy array and a number."""
    for start in range(len(_MADE), count, 1000):
        ids = np.arange(start, min(start + 1000, count))
        lengths = lengths_of(ids)
        parts = np.split(tokens_of(ids, lengths), np.cumsum(lengths)[:-1])
        _MADE.extend({"tokens": t, "label": n} for t, n in zip(parts, labels_of(ids), strict=True))
    yield from _MADE[:count]


def save_by_huggingface(target: Path, count: int) -> int:
    """Do what their documentation says for data that comes from Python."""
    import datasets

    made = datasets.Dataset.from_generator(records, gen_kwargs={"count": count}, cache_dir=str(target / "cache"))
    made.save_to_disk(str(target / "saved"))
    return count


def check_ours(target: Path, count: int) -> None:
    """Read a store back."""
    import shufflestore as ss

    with ss.open(target) as data:
        ids = [check_batch(opened_table(table), count) for table in data.batches(1024, format="arrow")]
    check_ids(ids, count, is_whole=True)


def check_arrow(target: Path, count: int, stream: bool) -> None:
    """Read Arrow files back."""
    found = sorted(target.rglob("*.arrow"))
    ids = []
    for path in found:
        with pa.memory_map(str(path)) as source:
            table = (pa.ipc.open_stream(source) if stream else pa.ipc.open_file(source)).read_all()
            for start in range(0, len(table), 1000):
                opened = opened_table(table.slice(start, 1000))
                ids.append(check_batch(Opened(opened.labels, opened.values, opened.offsets), count))
    check_ids(ids, count, is_whole=True)


def fresh(folder: Path) -> None:
    """Remove the last round's output, outside the clock, and let the disk come to rest."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def run(benchmark: Any, workload: Workload, rounds: int, comparison: Comparison, scratch: Path) -> None:
    """Run the rounds and leave nothing behind."""
    try:
        benchmark.pedantic(
            comparison.round, setup=comparison.rest, rounds=rounds if workload.is_timed else 1, iterations=1
        )
    finally:
        fresh(scratch)


@pytest.mark.timeout(0)
def test_from_parquet(benchmark: Any, workload: Workload, rounds: int) -> None:
    """The token set from Parquet."""
    source, count = workload.parquet(), workload.record_count
    scratch = workload.folder / "convert"
    scratch.mkdir(parents=True, exist_ok=True)
    cached = warm_up(source)
    target = scratch / "out"

    def contender(name: str, work: Any, check: Any) -> Timed:
        return Timed(name, lambda _: work(), partial(fresh, target), partial(check, target, count))

    arrow = partial(check_arrow, stream=False)
    comparison = Comparison(
        [
            contender(PYARROW, partial(copy_by_pyarrow, source, target, True, count), arrow),
            contender(OURS, partial(convert_ours, str(source), target, 1, count), check_ours),
            contender(OURS_TWO, partial(convert_ours, str(source), target, 2, count), check_ours),
            contender(PYARROW_ONE, partial(copy_by_pyarrow, source, target, False, count), arrow),
        ],
        PYARROW,
    )
    run(benchmark, workload, rounds, comparison, scratch)
    report = Report("convert-parquet", "Conversion from Parquet", COMMAND, PYARROW, comparison.rows())
    report.figures = [
        Figure("one process / pyarrow", statistics.median(comparison.ratios(OURS)), 0.8),
        Figure("two processes / one", statistics.median(comparison.ratios(OURS_TWO, OURS)), 1.6),
    ]
    report.notes = {"records": count, "share in page cache": cached, **comparison.notes}
    if workload.is_timed:
        report.write(workload.is_full)


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # theirs: pickling of generators by dill
def test_from_iterable(benchmark: Any, workload: Workload, rounds: int) -> None:
    """An iterable of dicts of numpy arrays."""
    count = workload.iterable_count
    assert sum(1 for _ in records(count)) == count
    scratch = workload.folder / "convert-iterable"
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / "out"
    comparison = Comparison(
        [
            Timed(
                HUGGINGFACE, lambda _: save_by_huggingface(target, count), partial(fresh, target),
                lambda: check_arrow(target / "saved", count, stream=True),
            ),
            Timed(
                ITERABLE, lambda _: convert_ours(partial(records, count), target, 1, count), partial(fresh, target),
                lambda: check_ours(target, count),
            ),
        ],
        HUGGINGFACE,
    )  # fmt: skip
    run(benchmark, workload, rounds, comparison, scratch)
    report = Report("convert-iterable", "Conversion of an iterable", COMMAND, HUGGINGFACE, comparison.rows())
    report.figures = [Figure("ours / Hugging Face", statistics.median(comparison.ratios(ITERABLE)), 5.0)]
    report.notes = {"records": count, **comparison.notes}
    if workload.is_timed:
        report.write(workload.is_full)
