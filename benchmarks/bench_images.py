"""A folder of 100 KB JPEGs decoded to 224 x 224 in two workers, beside the decoder alone and torch's loader.

python -m pytest benchmarks/bench_images.py --benchmark-enable -s
"""

from __future__ import annotations

import io
import multiprocessing
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
EDGE = 16
"""Batches at either end of an epoch that are not counted."""
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


def rate(make: Callable[[], Any], sums: list[int]) -> float:
    """Images a second while all workers are busy; each came once, with the pixels that it has."""
    loader = make()
    times, numbers, kept = [], [], []
    for ids, pixels in loader:
        times.append(time.perf_counter())
        numbers.append(ids)
        if len(times) % 8 == 1:
            kept.append((ids, pixels))
    for ids, pixels in kept:
        for number, image in zip(ids.tolist(), pixels, strict=True):
            assert int(image.sum(dtype=torch.int64)) == sums[number % len(sums)], f"image {number} is another one"
    whole = torch.cat(numbers).sort().values
    assert torch.equal(whole, torch.arange(len(loader.dataset))), "an image is lost or came twice"
    # Not from a first batch to the last: what many workers had begun by the first would count for them.
    edge = min(EDGE, len(times) // 4)
    return sum(map(len, numbers[edge + 1 : len(times) - edge])) / (times[-edge - 1] - times[edge])


@pytest.mark.timeout(0)
@pytest.mark.parametrize("milliseconds", [0, 5])
def test_folder(benchmark: Any, workload: Workload, rounds: int, tmp_path: Path, milliseconds: int) -> None:
    """Interleaved; torch's number of workers is the best of a trial."""
    for number, data in enumerate(files()):
        (tmp_path / f"{number:03}.jpg").write_bytes(data)
    sums = [int(decode(data).astype(np.int64).sum()) for data in files()]
    length = 3200 if workload.is_timed else 128
    data = Pictures(tmp_path, length, milliseconds / 1000)

    def torchs(workers: int) -> float:
        return rate(lambda: Torch(data, BATCH, shuffle=True, num_workers=workers), sums)

    trial = {workers: torchs(workers) for workers in ((0, 1, 2, 4, 8) if workload.is_timed else (0, 2))}
    best = max(trial, key=lambda workers: trial[workers])
    found: dict[str, list[float]] = {
        "the decoder alone, 2 processes": [],
        "torch": [],
        "ours": [],
        "ours, 1 process": [],
    }
    with multiprocessing.get_context("fork").Pool(2) as pool:
        halves = [(data.paths * (length // len(data.paths)))[half::2] for half in (0, 1)]
        pool.map(alone, [half[:8] for half in halves])

        def once() -> None:
            start = time.perf_counter()
            pool.map(alone, halves, chunksize=1)
            done = sum(map(len, halves)) / (time.perf_counter() - start)
            found["the decoder alone, 2 processes"].append(done)
            found["torch"].append(torchs(best))
            found["ours"].append(rate(lambda: ss.DataLoader(data, BATCH, shuffle=True, num_workers=2), sums))
            found["ours, 1 process"].append(rate(lambda: ss.DataLoader(data, BATCH, shuffle=True), sums))

        benchmark.pedantic(once, rounds=rounds if workload.is_timed else 1, iterations=1)

    def ratio(other: str) -> float:
        return statistics.median(ours / theirs for ours, theirs in zip(found["ours"], found[other], strict=True))

    report = Report(
        f"images-{milliseconds}ms", f"100 KB JPEGs to 224 x 224, each read waits {milliseconds} ms", COMMAND
    )
    report.figures = [Figure("ours, 2 workers / torch's loader, best workers", ratio("torch"), 1.0)]
    if not milliseconds:
        report.figures.append(
            Figure("ours, 2 workers / the decoder alone", ratio("the decoder alone, 2 processes"), 0.95)
        )
    report.notes = {f"images/s, {name}": round(statistics.median(rates)) for name, rates in found.items()}
    report.notes["images/s by workers, torch"] = {workers: round(value) for workers, value in trial.items()}
    if workload.is_timed:
        report.write(is_full=True)
