"""Every benchmark works: run once each, untimed and small, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("bench_*.py"))
SECONDS = 240.0
"""For all of them together; they take some twenty on two free cores."""


@pytest.mark.timeout(300)
def test_every_benchmark_runs(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SHUFFLESTORE_BENCH", "PYTEST_"))}
    small = {"SHUFFLESTORE_BENCH_RECORDS": "2000", "SHUFFLESTORE_BENCH_DATA": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:xdist", "--benchmark-disable", *FILES]
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, **small}, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = set(re.findall(r"^PASSED ([^:]+)::", done.stdout, re.MULTILINE))
    assert passed >= set(FILES), f"no benchmark passed in {sorted(set(FILES) - passed)}"


def test_wrong_batches_are_noticed() -> None:
    """The audit that every figure rests on must itself be able to fail."""
    sys.path.insert(0, str(ROOT))
    try:
        import numpy as np

        from benchmarks.harness.audit import Opened, Wrong, check_batch, check_ids
        from benchmarks.harness.workload import labels_of, lengths_of, tokens_of
    finally:
        sys.path.remove(str(ROOT))
    ids = np.array([5, 2, 9])
    lengths = lengths_of(ids)
    good = Opened(labels_of(ids), tokens_of(ids, lengths), np.concatenate([[0], np.cumsum(lengths)]))
    assert check_batch(good, 10).tolist() == [5, 2, 9]
    flipped = good.values.copy()
    flipped[lengths[0] + 3] ^= 1
    with pytest.raises(Wrong, match="record 2"):
        check_batch(Opened(good.labels, flipped, good.offsets), 10)
    with pytest.raises(Wrong, match="outside"):
        check_batch(good, 9)
    with pytest.raises(Wrong, match="lengths"):
        check_batch(Opened(labels_of(ids[::-1].copy()), good.values, good.offsets), 10)
    check_ids([np.arange(5), np.arange(5, 10)], 10, is_whole=True)
    with pytest.raises(Wrong, match="record 3 came 2 times"):
        check_ids([np.arange(5), np.array([3])], 10, is_whole=False)
    with pytest.raises(Wrong, match="1 records never came, record 9"):
        check_ids([np.arange(9)], 10, is_whole=True)
