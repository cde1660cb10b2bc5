"""Opening 1e9 records in 1e5 shards, and the first batch there: at the start and resumed anywhere.

    python -m pytest benchmarks/bench_opening.py --benchmark-enable -s

The manifest is real, the shards are invented (`harness/invented.py`). Each measurement is a fresh
process; its clock starts when everything is imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.invented import invented
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload

COMMAND = "python -m pytest benchmarks/bench_opening.py --benchmark-enable -s"
COUNTS = (1_000_000, 1_000_000_000)
SMALL_COUNTS = (20_000, 100_000)
# An arbitrary place far from any boundary, as a share of the records.
PLACE = 0.6180339887


def child(folder: Path, position: int, kernel: str) -> dict[str, Any]:
    """Return what one fresh process measured."""
    arguments = [sys.executable, "-m", "benchmarks.harness.opening", str(folder), str(position), kernel]
    done = subprocess.run(arguments, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(0)
def test_opening(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Every combination once a round."""
    counts = COUNTS if workload.is_timed else SMALL_COUNTS
    folders = {count: invented(workload, count) for count in counts}
    cases = [(c, k, where) for c in counts for k in ("warm", "cold") for where in ("start", "resumed")]
    if not workload.is_timed:
        cases = [cases[0], cases[-1]]
    found: dict[tuple[int, str, str], list[dict[str, Any]]] = {case: [] for case in cases}

    def once() -> None:
        for case in cases:
            count, kernel, where = case
            position = int(count * PLACE) if where == "resumed" else 0
            found[case].append(child(folders[count], position, kernel))

    benchmark.pedantic(once, rounds=rounds, iterations=1)
    if workload.is_timed:
        _report(found, rounds).write(is_full=True)


def _report(found: dict[tuple[int, str, str], list[dict[str, Any]]], rounds: int) -> Report:
    def median(case: tuple[int, str, str], *keys: str) -> float:
        return float(statistics.median(sum(one[key] for key in keys) for one in found[case]))

    small, large = COUNTS
    report = Report("opening", "1e9 records in 1e5 shards", COMMAND)
    starts = [case for case in found if case[0] == large]
    report.figures = [
        Figure("seconds to open", max(median(case, "open_seconds") for case in starts), 0.2, at_most=True),
        Figure("MB to open", max(median(case, "open_bytes") for case in starts) / 1e6, 100, at_most=True),
    ]
    for where in ("start", "resumed"):
        first = median((large, "warm", where), "first_seconds")
        compiling = median((large, "warm", where), "compile_seconds", "first_seconds")
        twin = median((large, "cold", where), "first_seconds")
        smaller = median((small, "warm", where), "first_seconds")
        report.figures += [
            Figure(f"seconds to the first batch, kernel compiled, {where}", first, 0.1, at_most=True),
            Figure(f"seconds to compile the kernel and to the first batch, {where}", compiling, 1.2, at_most=True),
            Figure(f"seconds to the first batch, by the numpy twin, {where}", twin, 1.2, at_most=True),
            Figure(f"first batch at 1e9 over 1e6, {where}", first / smaller, 3, at_most=True),
        ]
    report.notes = {"rounds": rounds}
    for case in found:
        keys = ("open_seconds", "first_seconds", "second_seconds", "compile_seconds")
        times = ", ".join(f"{key.removesuffix('_seconds')} {median(case, key):.4f} s" for key in keys)
        peaks = [median(case, key) / 1e6 for key in ("open_bytes", "total_bytes")]
        report.notes[f"{case[0]:.0e} records, kernel {case[1]}, {case[2]}"] = (
            f"{times}; +{peaks[0]:.0f} MB to open, +{peaks[1]:.0f} MB in all"
        )
    return report
