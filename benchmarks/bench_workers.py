"""What it costs to bring batches out of worker processes, beside torch's loader with as many: the data set does next to nothing.

python -m pytest benchmarks/bench_workers.py --benchmark-enable -s
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import shufflestore as ss
from benchmarks.bench_foreign import compare
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload

COMMAND = "python -m pytest benchmarks/bench_workers.py --benchmark-enable -s"
Torch = torch.utils.data.DataLoader
BATCH, WORKERS = 64, 2
SMALL, LARGE = 10, 40_000
Record = tuple[int, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Kept(torch.utils.data.Dataset):  # type: ignore[misc]
    """Records that are in memory: a number, and as many float32 that begin and end with it."""

    def __init__(self, length: int, width: int) -> None:
        self.values = torch.rand(BATCH, width)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Record:
        record = self.values[number % BATCH].clone()
        record[0] = record[-1] = number
        return number, record


def as_list(records: list[Record]) -> list[Any]:
    """Ragged data is delivered so."""
    return [torch.tensor([number for number, _ in records]), [record for _, record in records]]


def as_numpy(records: list[Record]) -> list[Any]:
    """As for JAX."""
    return [np.array([number for number, _ in records]), np.stack([record.numpy() for _, record in records])]


def check(batch: list[Any]) -> None:
    """Each record's values are those of its number."""
    for number, record in zip(batch[0].tolist(), batch[1], strict=True):
        assert record[0] == record[-1] == number, f"record {number} is another one"


CASES = {
    "small": ("64 records of 40 bytes", SMALL, 2000, None),
    "list": ("a list of 64 tensors of 40 bytes", SMALL, 400, as_list),
    "large": ("10 MB", LARGE, 150, None),
    "numpy": ("10 MB in a numpy array", LARGE, 100, as_numpy),
}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("case", CASES)
def test_workers(benchmark: Any, workload: Workload, rounds: int, case: str) -> None:
    """Two workers, one fetch thread each, as torch's."""
    what, width, batches, collate_fn = CASES[case]
    data = Kept((batches if workload.is_timed else 6) * BATCH, width)
    makes: dict[str, Callable[[], Any]] = {
        "torch": lambda: Torch(data, BATCH, num_workers=WORKERS, collate_fn=collate_fn),
        "ours": lambda: ss.DataLoader(data, BATCH, num_workers=WORKERS, collate_fn=collate_fn),
    }
    comparison, _ = compare(makes, rounds if workload.is_timed else 1, benchmark, check)
    report = Report(
        f"workers-{case}", f"Batches of {what} from two worker processes", COMMAND, "torch", comparison.rows()
    )
    report.figures = [Figure("ours / torch's loader", statistics.median(comparison.ratios("ours")), 1.0)]
    if workload.is_timed:
        report.write(is_full=True)
