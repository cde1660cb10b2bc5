"""The whole loader beside its rivals: 1 M records of 64..1024 int32 tokens, batches of 256, page-cached.

    python -m pytest benchmarks/bench_loaders.py --benchmark-enable -s

`SHUFFLESTORE_BENCH_RIVALS` (comma-separated parts of names) measures some of them only.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from typing import Any

import pytest

from benchmarks.harness.environment import warm_up
from benchmarks.harness.measure import Comparison, Epoch
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload
from benchmarks.loaders import Rival, all_rivals
from benchmarks.loaders.ours import Ours

COMMAND = "python -m pytest benchmarks/bench_loaders.py --benchmark-enable -s"
LIMIT = "plain C gather loop"
CAP_SECONDS = 3.0
# (contender, beside whom, at least)
FIGURES = (
    ("ours", LIMIT, 1.0),
    ("ours", "numpy memmap loop", 2.0),
    ("ours", "Hugging Face arrow take", 10.0),
    ("ours", "torch DataLoader, Hugging Face torch format", 50.0),
    ("ours in place", "ours", 0.8),
    ("ours in place, no checksums", "ours", 0.9),
)


def chosen() -> list[Rival]:
    """Return the rivals asked for; ours and the limit are always among them."""
    everyone = all_rivals()
    parts = [part.strip() for part in os.environ.get("SHUFFLESTORE_BENCH_RIVALS", "").split(",") if part.strip()]
    names = [n for n in everyone if not parts or n in ("ours", LIMIT) or any(part in n for part in parts)]
    names = [n for n in names if ", cold" not in n]  # of bench_cold.py
    # Neighbours in a round meet the most similar weather: the limit stands beside ours.
    names.sort(key=lambda n: (n != LIMIT, n != "ours", n))
    return [everyone[name] for name in names]


def figures(comparison: Comparison) -> list[Figure]:
    """Return where the run stands; a figure whose rival was left out is left out."""
    made = []
    for name, reference, limit in FIGURES:
        if name in comparison.samples and reference in comparison.samples:
            ratio = statistics.median(comparison.ratios(name, reference))
            made.append(Figure(f"{name} / {reference}", ratio, limit))
    return made


@pytest.mark.timeout(0)
def test_whole_loader(benchmark: Any, workload: Workload, rounds: int) -> None:
    """Every rival an epoch a round; pytest-benchmark times the rounds, the table compares within them."""
    rivals = chosen()
    epochs = [Epoch(rival, workload, CAP_SECONDS if workload.is_timed else 0.2) for rival in rivals]
    with contextlib.ExitStack() as prepared:
        for epoch in epochs:
            epoch.rival.prepare(workload)
            prepared.callback(epoch.rival.close)
        cached = warm_up(workload.folder / f"tokens-{workload.record_count}")
        for epoch in epochs:
            epoch.prove()
        comparison = Comparison(epochs, LIMIT)
        benchmark.pedantic(comparison.round, setup=comparison.rest, rounds=rounds, iterations=1)
    report = Report("loaders", "Whole loader, 2.2 KB records, batches of 256", COMMAND, LIMIT, comparison.rows())
    report.figures = figures(comparison)
    report.notes = {"records": workload.record_count, "share in page cache": cached, **comparison.notes}
    for rival in rivals:
        if isinstance(rival, Ours):
            report.notes[f"engine, {rival.name}"] = rival.engine
        trials = getattr(rival, "trials", None)
        if trials:
            report.notes[f"records/s by workers, {rival.name}"] = {k: round(v) for k, v in trials.items()}
    benchmark.extra_info.update({row["name"]: row["ratio"] for row in report.rows})
    if workload.is_timed:
        report.write(workload.is_full)
