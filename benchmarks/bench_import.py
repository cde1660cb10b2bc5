"""How long `import shufflestore` takes, and what it loads.

python -m pytest benchmarks/bench_import.py --benchmark-enable -s
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload

COMMAND = "python -m pytest benchmarks/bench_import.py --benchmark-enable -s"
HEAVY = ("numpy", "torch", "numba", "pyarrow", "datasets", "rich")
CHILD = f"""
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import shufflestore
seconds = time.perf_counter() - start
loaded = set(sys.modules) - before
heavy = sorted(name for name in {HEAVY!r} if name in sys.modules)
start = time.perf_counter()
shufflestore.open
print(json.dumps([seconds, len(loaded), heavy, time.perf_counter() - start]))
"""


@pytest.mark.timeout(0)
def test_import(benchmark: Any, workload: Workload, rounds: int) -> None:
    """A fresh interpreter each round; the clock runs inside it."""
    found: list[tuple[float, int, list[str], float]] = []

    def once() -> None:
        done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))

    benchmark.pedantic(once, rounds=rounds * 2 if workload.is_timed else 1, iterations=1)
    heavy = sorted({name for _, _, names, _ in found for name in names})
    assert not heavy, f"import shufflestore loads {heavy}"
    seconds = statistics.median(one[0] for one in found)
    report = Report("import", "import shufflestore", COMMAND)
    report.figures = [Figure("seconds", seconds, 0.05, at_most=True)]
    report.notes = {
        "modules loaded": found[-1][1],
        f"of {', '.join(HEAVY)}": "none",
        "seconds of `shufflestore.open` for the first time (numpy, pyarrow)": round(
            statistics.median(one[3] for one in found), 3
        ),
    }
    benchmark.extra_info["seconds"] = seconds
    if workload.is_timed:
        report.write(is_full=True)
