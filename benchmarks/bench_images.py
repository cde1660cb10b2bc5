"""A folder of 100 KB JPEGs decoded to 224 x 224 in two workers, beside the decoder alone and torch's loader.

python -m pytest benchmarks/bench_images.py --benchmark-enable -s
"""

from __future__ import annotations

import io
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import shufflestore as ss
from benchmarks.harness.report import Figure, Report
from benchmarks.harness.workload import Workload
from benchmarks.micro.bench_images import files

COMMAND = "python -m pytest benchmarks/bench_images.py --benchmark-enable -s"
Torch = torch.utils.data.DataLoader
BATCH, SIDE = 32, 224
EDGE, COUNTED = 16, 24
"""Batches of a slice that are not counted, since workers may have begun them before it, and that are."""
DECODER = "the decoder alone, 2 processes"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning", "ignore:This DataLoader will create"
)


def decode(data: bytes) -> np.ndarray[Any, Any]:
    """What a training script does before its augmentation."""
    image = PIL.Image.open(io.BytesIO(data))
    image.draft("RGB", (SIDE, SIDE))
    return np.array(image.convert("RGB").resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR))


class Pictures(torch.utils.data.Dataset):  # type: ignore[misc]
    """Files, opened by name for each record."""

    thread_safe = True

    def __init__(self, folder: Path, length: int, seconds: float) -> None:
        self.paths = sorted(folder.glob("*.jpg"))
        self.length, self.seconds = length, seconds

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[int, torch.Tensor]:
        if self.seconds:
            time.sleep(self.seconds)
        return number, torch.from_numpy(decode(self.paths[number % len(self.paths)].read_bytes()))


def alone(paths: list[Path]) -> int:
    """The decoder with nothing around it."""
    return sum(int(decode(path.read_bytes())[0, 0, 0]) for path in paths)


def alone_rate(pool: Any, parts: list[list[Path]], edge: int) -> float:
    """Images a second of two processes; as for the loaders, much work before the clock and a rest afterwards."""
    times = [time.perf_counter() for _ in pool.imap_unordered(alone, parts)]
    first = edge * BATCH // len(parts[0])
    rate = sum(map(len, parts[first:])) / (times[-1] - times[first - 1])
    time.sleep(edge * BATCH / rate)
    return rate


class Slices:
    """A loader that is asked for some batches now and then, so that others can be measured a moment later."""

    def __init__(self, make: Callable[[int], Any], sums: list[int], rounds: int, edge: int, counted: int) -> None:
        self.edge, self.counted, self.sums = edge, counted, sums
        self.length = rounds * (edge + counted) * BATCH
        self.batches = iter(make(self.length))
        self.came: list[torch.Tensor] = []

    def rate(self) -> float:
        """Images a second while all workers are busy; each came once, with the pixels that it has. Leaves them idle."""
        kept, times = [], []
        for step in range(self.edge + self.counted):
            ids, pixels = next(self.batches)
            times.append(time.perf_counter())
            self.came.append(ids)
            if step % 8 == 0:
                kept.append((ids, pixels))
        rate = self.counted * BATCH / (times[-1] - times[self.edge - 1])
        time.sleep(self.edge * BATCH / rate)  # they fill their queues
        for ids, pixels in kept:
            for number, image in zip(ids.tolist(), pixels, strict=True):
                found = int(image.sum(dtype=torch.int64))
                assert found == self.sums[number % len(self.sums)], f"image {number} is another one"
        return rate

    def close(self) -> None:
        """End the workers. Each image came at most once."""
        numbers = torch.cat(self.came)
        assert len(numbers.unique()) == len(numbers), "an image came twice"
        assert 0 <= int(numbers.min()) <= int(numbers.max()) < self.length
        del self.batches


def compared(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Rates round by round, each in an order of its own: a machine is faster after a rest."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    shuffled = random.Random(1)
    for _ in range(rounds):
        for name in shuffled.sample(list(contenders), len(contenders)):
            found[name].append(contenders[name]())
    return found


def ratio(found: dict[str, list[float]], name: str, other: str) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(found[name], found[other], strict=True))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("milliseconds", [0, 5])
def test_folder(benchmark: Any, workload: Workload, rounds: int, tmp_path: Path, milliseconds: int) -> None:
    """Slices of some seconds in turn: this machine's speed changes from one to the next."""
    for number, data in enumerate(files()):
        (tmp_path / f"{number:03}.jpg").write_bytes(data)
    sums = [int(decode(data).astype(np.int64).sum()) for data in files()]
    rounds, edge, counted = (7 * rounds, EDGE, COUNTED) if workload.is_timed else (1, 1, 2)

    def slices(loader: Any, workers: int, times: int) -> Slices:
        def make(length: int) -> Any:
            return loader(Pictures(tmp_path, length, milliseconds / 1000), BATCH, shuffle=True, num_workers=workers)

        return Slices(make, sums, times, edge, counted)

    def measured(
        running: dict[str, Slices], others: dict[str, Callable[[], float]], times: int
    ) -> dict[str, list[float]]:
        found = compared({**others, **{name: one.rate for name, one in running.items()}}, times)
        for one in running.values():
            one.close()
        return found

    tries = max(rounds // 6, 1)
    counts = (0, 1, 2, 4, 8) if workload.is_timed else (0, 2)
    trial = measured({str(n): slices(Torch, n, tries) for n in counts}, {}, tries)
    best = max(trial, key=lambda n: ratio(trial, n, "0"))
    alone_in_process = measured({"ours": slices(ss.DataLoader, 0, 1)}, {}, 1)["ours"][0]

    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = sorted(tmp_path.glob("*.jpg"))
        parts = [[paths[(at + i) % len(paths)] for i in range(8)] for at in range(0, (edge + counted) * BATCH, 8)]

        running = {
            "torch": slices(Torch, int(best), rounds),
            "ours": slices(ss.DataLoader, 2, rounds),
        }
        found: dict[str, list[float]] = benchmark.pedantic(
            lambda: measured(running, {DECODER: lambda: alone_rate(pool, parts, edge)}, rounds), rounds=1, iterations=1
        )

    report = _report(found, milliseconds)
    report.notes |= {
        "images/s, ours, 1 process (one slice)": round(alone_in_process),
        "images/s by workers, torch": {int(n): round(statistics.median(values)) for n, values in trial.items()},
        "torch's workers": int(best),
        "rounds": rounds,
    }
    if workload.is_timed:
        report.write(is_full=True)


def _report(found: dict[str, list[float]], milliseconds: int) -> Report:
    report = Report(
        f"images-{milliseconds}ms", f"100 KB JPEGs to 224 x 224, each read waits {milliseconds} ms", COMMAND
    )
    report.figures = [Figure("ours, 2 workers / torch's loader, best workers", ratio(found, "ours", "torch"), 1.0)]
    if not milliseconds:
        report.figures.append(Figure("ours, 2 workers / the decoder alone", ratio(found, "ours", DECODER), 0.95))
    report.notes = {f"images/s, {name}": round(statistics.median(values)) for name, values in found.items()}
    return report
