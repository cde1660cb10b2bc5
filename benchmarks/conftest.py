"""How benchmarks find their data, and how many rounds they run."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# The benchmarks are no installed package; `pytest` alone does not put the repository on the path.
if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def workload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The token set: of full size where it is timed, else of a size that takes no time."""
    from benchmarks.harness.workload import FULL_RECORDS, SMALL_RECORDS, Workload

    is_timed = not request.config.getoption("benchmark_disable") or request.config.getoption("benchmark_enable")
    records = int(os.environ.get("SHUFFLESTORE_BENCH_RECORDS", FULL_RECORDS if is_timed else SMALL_RECORDS))
    given = os.environ.get("SHUFFLESTORE_BENCH_DATA")
    if given or is_timed:
        folder = Path(given or Path(tempfile.gettempdir()) / "shufflestore_bench")
    else:
        folder = tmp_path_factory.mktemp("bench")
    return Workload(folder, records, is_timed=is_timed)


@pytest.fixture(autouse=True)
def _unwatched(workload: Any) -> None:
    """Timed runs take minutes: the suite's watchdog, which shows all stacks of a hanging test, would only be noise."""
    if workload.is_timed:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def rounds(workload: Any) -> int:
    """Interleaved rounds: `SHUFFLESTORE_BENCH_ROUNDS`, 5 where nothing is said, 1 untimed."""
    return int(os.environ.get("SHUFFLESTORE_BENCH_ROUNDS", 5)) if workload.is_timed else 1
