"""A folder of 100 KB JPEGs decoded to 224 x 224 in two workers, beside the decoder alone and torch's loader.

python -m pytest benchmarks/bench_images.py --benchmark-enable -s
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import shufflestore as ss
from benchmarks.harness.measure import Comparison, Sample, Sampled
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


def alone_sample(pool: Any, parts: list[list[Path]], edge: int) -> Sample:
    """The decoder in two processes; as for the loaders, much work before the clock and a rest afterwards."""
    times = [time.perf_counter() for _ in pool.imap_unordered(alone, parts)]
    first = edge * BATCH // len(parts[0])
    sample = Sample(times[-1] - times[first - 1], sum(map(len, parts[first:])))
    time.sleep(edge * BATCH / sample.rate)
    return sample


class Slices:
    """A loader that is asked for some batches now and then, so that others can be measured a moment later."""

    def __init__(
        self, name: str, make: Callable[[int], Any], sums: list[int], rounds: int, edge: int, counted: int
    ) -> None:
        self.name, self.edge, self.counted, self.sums = name, edge, counted, sums
        self.length = (rounds * (edge + counted) + edge) * BATCH  # there is work behind the last slice, too
        self.batches = iter(make(self.length))
        self.came: list[torch.Tensor] = []

    def measure(self, number: int) -> Sample:
        """While all workers are busy; the images have the pixels that they should. Leaves the workers idle."""
        kept, times = [], []
        for step in range(self.edge + self.counted):
            ids, pixels = next(self.batches)
            times.append(time.perf_counter())
            self.came.append(ids)
            if step % 8 == 0:
                kept.append((ids, pixels))
        sample = Sample(times[-1] - times[self.edge - 1], self.counted * BATCH)
        time.sleep(self.edge * BATCH / sample.rate)  # they fill their queues
        for ids, pixels in kept:
            for image_number, image in zip(ids.tolist(), pixels, strict=True):
                found = int(image.sum(dtype=torch.int64))
                assert found == self.sums[image_number % len(self.sums)], f"image {image_number} is another one"
        return sample

    def close(self) -> None:
        """Take what is left. Each image came once."""
        self.came += [ids for ids, _ in self.batches]
        whole = torch.cat(self.came).sort().values
        assert torch.equal(whole, torch.arange(self.length)), "an image is lost or came twice"


@pytest.mark.timeout(0)
@pytest.mark.parametrize("milliseconds", [0, 5])
def test_folder(benchmark: Any, workload: Workload, rounds: int, tmp_path: Path, milliseconds: int) -> None:
    """Slices of some seconds in turn: this machine's speed changes from one to the next."""
    for number, data in enumerate(files()):
        (tmp_path / f"{number:03}.jpg").write_bytes(data)
    sums = [int(decode(data).astype(np.int64).sum()) for data in files()]
    rounds, edge, counted = (7 * rounds, EDGE, COUNTED) if workload.is_timed else (1, 1, 2)
    tries = max(rounds // 6, 1)

    def slices(name: str, loader: Any, workers: int, times: int) -> Slices:
        def make(length: int) -> Any:
            return loader(Pictures(tmp_path, length, milliseconds / 1000), BATCH, shuffle=True, num_workers=workers)

        return Slices(name, make, sums, times, edge, counted)

    counts = (0, 1, 2, 4, 8) if workload.is_timed else (0, 2)
    torchs = [slices(f"torch, {n} workers", Torch, n, tries) for n in counts]
    trial = Comparison([*torchs, slices("ours, 1 process", ss.DataLoader, 0, tries)], "torch, 0 workers")
    for _ in range(tries):
        trial.round()
    close(trial)
    best = max(counts, key=lambda n: statistics.median(trial.ratios(f"torch, {n} workers")))

    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = sorted(tmp_path.glob("*.jpg"))
        parts = [[paths[(at + i) % len(paths)] for i in range(8)] for at in range(0, (edge + counted) * BATCH, 8)]
        comparison = Comparison(
            [
                Sampled(DECODER, partial(alone_sample, pool, parts, edge)),
                slices("torch", Torch, best, rounds),
                slices("ours", ss.DataLoader, 2, rounds),
            ],
            "ours",
        )
        benchmark.pedantic(comparison.round, rounds=rounds, iterations=1)
        close(comparison)

    report = Report(
        f"images-{milliseconds}ms", f"100 KB JPEGs to 224 x 224, each read waits {milliseconds} ms", COMMAND,
        "ours", comparison.rows(),
    )  # fmt: skip
    report.figures = [Figure("ours, 2 workers / torch's loader, best workers", beside(comparison, "torch"), 1.0)]
    if not milliseconds:
        report.figures.append(Figure("ours, 2 workers / the decoder alone", beside(comparison, DECODER), 0.95))
    report.notes = {
        "torch's workers": best,
        "images/s of the trial": {row["name"]: round(row["records_per_second"]) for row in trial.rows()},
        "rounds": rounds,
    }
    if workload.is_timed:
        report.write(is_full=True)


def close(comparison: Comparison) -> None:
    """End the workers of its loaders."""
    for contender in comparison.contenders:
        if isinstance(contender, Slices):
            contender.close()


def beside(comparison: Comparison, other: str) -> float:
    """Ours over another."""
    return statistics.median(comparison.ratios("ours", other))
