"""What checking every byte costs: the same loader with and without, turn by turn.

    python -m pytest benchmarks/bench_verify.py --benchmark-enable -s

A second process does the same with the checksum kernel of processors without wide folding, if the core
lets itself be told (`SHUFFLESTORE_CRC32C=sse42`).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.environment import warm_up
from benchmarks.harness.measure import Comparison, Epoch
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload
from benchmarks.loaders.ours import Ours
from shufflestore import _native

COMMAND = "python -m pytest benchmarks/bench_verify.py --benchmark-enable -s"
CHECKED, UNCHECKED = "ours", "ours, not verifying"
NARROW = "sse42"


def prepared(workload: Workload, stack: contextlib.ExitStack) -> Comparison:
    """Return a comparison that is ready to run; both loaders have been proved right."""
    epochs = [Epoch(Ours(UNCHECKED, verify=False), workload, 0.0), Epoch(Ours(CHECKED), workload, 0.0)]
    for epoch in epochs:
        epoch.rival.prepare(workload)
        stack.callback(epoch.rival.close)
        epoch.prove()
    return Comparison(epochs, UNCHECKED)


def kernel() -> str:
    """Return the name of the checksum kernel in use."""
    return next(name for name in _native.cpu_features() if name.startswith("crc32c:")).removeprefix("crc32c:")


def narrow(workload: Workload, rounds: int) -> list[float] | str:
    """Return the ratios of each round with the narrow kernel, or why there are none."""
    arguments = [sys.executable, "-m", "benchmarks.bench_verify", str(workload.folder)]
    arguments += [str(workload.record_count), str(rounds)]
    environment = {**os.environ, "SHUFFLESTORE_CRC32C": NARROW}
    done = subprocess.run(
        arguments, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    ratios: list[float] = json.loads(done.stdout.splitlines()[-1])
    return ratios


@pytest.mark.timeout(0)
def test_verify(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Both an epoch a round."""
    with contextlib.ExitStack() as stack:
        comparison = prepared(workload, stack)
        cached = warm_up(workload.store(narrow=False))
        benchmark.pedantic(
            comparison.round, setup=comparison.rest, rounds=rounds * 2 if workload.is_timed else 1, iterations=1
        )
    cost = 1 - statistics.median(comparison.ratios(CHECKED))
    report = Report("verify", "Cost of verify-on-read, 2.2 KB records", COMMAND, UNCHECKED, comparison.rows())
    report.figures = [Figure(f"cost with the {kernel()} kernel", cost, 0.15, at_most=True)]
    report.notes = {"records": workload.record_count, "share in page cache": cached, **comparison.notes}
    other = narrow(workload, comparison.round_count)
    if isinstance(other, str):
        report.notes[f"with the {NARROW} kernel"] = f"not measured: {other}"
    else:
        report.figures.append(
            Figure(f"cost with the {NARROW} kernel", 1 - statistics.median(other), 0.30, at_most=True)
        )
    benchmark.extra_info["cost"] = cost
    if workload.is_timed:
        report.write(workload.is_full)


def main() -> None:
    """Run in a process whose checksum kernel was chosen from outside, and print each round's ratio."""
    if kernel() != NARROW:
        sys.exit(f"the core took the {kernel()} kernel; it cannot be told to take {NARROW}")
    workload = Workload(Path(sys.argv[1]), int(sys.argv[2]))
    with contextlib.ExitStack() as stack:
        comparison = prepared(workload, stack)
        for _ in range(int(sys.argv[3])):
            comparison.round()
    print(json.dumps(comparison.ratios(CHECKED)))


if __name__ == "__main__":
    main()
