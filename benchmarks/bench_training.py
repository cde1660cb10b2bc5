"""A training loop end to end; on a machine with a GPU: pinned memory, non-blocking copies, the share of waiting.

python -m pytest benchmarks/bench_training.py --benchmark-enable -s
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.harness.report import Figure, Report
from benchmarks.harness.training import run
from benchmarks.harness.workload import Workload

COMMAND = "python -m pytest benchmarks/bench_training.py --benchmark-enable -s"


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_training(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Without a GPU it is small, and proves only that the loop works."""
    has_gpu = torch.cuda.is_available()
    found: dict[str, Any] = {}
    benchmark.pedantic(
        lambda: found.update(run(not (workload.is_timed and has_gpu), rounds if workload.is_timed else 1)),
        rounds=1, iterations=1,
    )  # fmt: skip
    report = Report("training", "Training on a device, end to end", COMMAND)
    report.figures = [
        Figure(
            "share of the loop that waited", found["share of the loop that waited for the loader"], 0.02, at_most=True
        )
    ]
    report.notes = dict(found)
    if workload.is_timed and has_gpu:
        report.write(is_full=True)
