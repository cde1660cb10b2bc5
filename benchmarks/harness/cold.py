"""Cold reads: each contender in a process of its own, in a memory group far smaller than the data, from an empty page cache.

`python -m benchmarks.harness.cold JSON` is such a process; `Group`, `run` and `Raw` are what starts them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness.measure import Sample
from benchmarks.harness.workload import Workload

__all__ = ["Cold", "Group", "Raw", "list_of_reads", "raw_reads"]

_CGROUPS: Final = Path("/sys/fs/cgroup")
_SOURCE: Final = Path(__file__).with_name("raw_reads.cpp")


class Group:
    """A memory group of its own with a limit, page cache included; of either version of control groups. Needs root."""

    def __init__(self, limit_bytes: int) -> None:
        """Make it. Raises OSError where that is not allowed."""
        version_1 = (_CGROUPS / "memory").is_dir()
        base = _CGROUPS / "memory" if version_1 else _CGROUPS
        self.folder = Path(tempfile.mkdtemp(prefix="shufflestore-bench-", dir=base))
        (self.folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit_bytes))

    def enter(self) -> None:
        """Put this process into it, and what it will start."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def processes(self) -> list[int]:
        """Who is in it."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """Remove it; it must be empty."""
        for _ in range(50):
            try:
                self.folder.rmdir()
                return
            except OSError:
                time.sleep(0.1)


def empty_page_cache() -> None:
    """Have the system forget what it has read. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def anonymous_bytes() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


class _Peak:
    """The most anonymous memory that this process had, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.bytes = max(self.bytes, anonymous_bytes())

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self.bytes


def _read_bytes(processes: Sequence[int]) -> int:
    """Bytes that processes had fetched from devices."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/io").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
    return total


@dataclass
class Cold:
    """A rival as a contender: `seconds` of an epoch, from an empty page cache, under a limit of memory."""

    name: str
    workload: Workload
    limit_bytes: int
    seconds: float

    def measure(self, number: int) -> Sample:
        """Run it once in a process of its own, and return what that said."""
        told = {**asdict(self.workload), "folder": str(self.workload.folder)}
        what = {
            "name": self.name,
            "workload": told,
            "limit": self.limit_bytes,
            "seconds": self.seconds,
            "round": number,
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.harness.cold", json.dumps(what)],
            capture_output=True, text=True, timeout=600 + 10 * self.seconds, check=False, env=_environment(),
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(
                f"{self.name} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )
        found = json.loads(done.stdout.splitlines()[-1])
        return Sample(found["seconds"], found["records"], found["cpu"], 0.0, found["extra"])


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def _child(what: dict[str, Any]) -> None:
    import numba  # noqa: F401  what is loaded anyhow is no memory of its own
    import pyarrow as pa  # noqa: F401
    import torch  # noqa: F401

    import shufflestore as ss
    from benchmarks.harness.audit import check_batch, check_ids
    from benchmarks.harness.measure import Clock
    from benchmarks.harness.workload import ids_of
    from benchmarks.loaders import all_rivals

    _ = ss.DataLoader
    workload = Workload(**{**what["workload"], "folder": Path(what["workload"]["folder"])})
    rival = all_rivals()[what["name"]]
    group = Group(what["limit"])
    try:
        group.enter()
        base = anonymous_bytes()
        peak = _Peak()
        rival.prepare(workload)
        if workload.is_timed:
            empty_page_cache()
        labels, kept = [], []
        most_kept = max(16 // workload.scale, 1)  # they count as memory of the contender
        iterator = rival.batches(what["round"])
        first = next(iterator)  # in everyone's favour: starting up is not counted
        before = _read_bytes(group.processes)
        clock = Clock()
        last = 0.0
        for i, batch in enumerate(iterator):
            labels.append(rival.labels(batch))
            if i % 97 == 0 and len(kept) < most_kept:
                kept.append(batch)
            if (last := time.perf_counter()) - clock.start > what["seconds"]:
                break
        is_whole = last - clock.start <= what["seconds"]
        sample = clock.stop(0)
        came = _read_bytes(group.processes) - before
        most = peak.stop() - base
        ids = [ids_of(np.asarray(one, np.int64)) for one in labels]
        counted = np.concatenate(ids)
        for batch in [first, *kept]:
            check_batch(rival.opened(batch), workload.record_count, workload.lengths)
        check_ids([ids_of(np.asarray(rival.labels(first), np.int64)), *ids], workload.record_count, is_whole)
        used = 4 * int(workload.lengths(counted).sum()) + 8 * len(counted)
        extra = {"read_per_used": came / used, "peak_bytes": float(most), "used_bytes": float(used)}
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
        rival.close()
        told = {"engine": getattr(rival, "engine", "")}
        print(
            json.dumps(
                {"seconds": sample.seconds, "records": len(counted), "cpu": sample.cpu_seconds, "extra": extra, **told}
            )
        )
        sys.stdout.flush()
    finally:
        (group.folder.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.close()


# -- the yardstick ---------------------------------------------------------------------------------


@contextmanager
def raw_reads() -> Iterator[Path]:
    """Compile `raw_reads.cpp` for as long as it is needed. Raises FileNotFoundError without a compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("a C++ compiler is needed for the yardstick: g++, or what CXX names")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "raw_reads")
        subprocess.run([compiler, "-O2", "-std=c++20", "-pthread", str(_SOURCE), "-o", str(program)], check=True)
        yield program


def list_of_reads(store: Path, place: Path, count: int, epoch: int) -> None:
    """Write down the reads of shards that our loader does for the first `count` records of an epoch."""
    import shufflestore as ss
    from shufflestore.orders.epoch import make_order
    from shufflestore.storage.base import READ

    with ss.open(store) as data, place.open("wb") as file:
        count = min(count, len(data))
        ids = make_order("global", len(data), 1, epoch).ids(np.arange(count))
        indexes = data.reading.indexes
        ranges = []
        for start in range(0, count, 4096):
            some = ids[start : start + 4096]
            window = indexes.resolve(some, np.array([len(some)]), data.projection().wanted, True)
            reads = window.reads.view(READ).reshape(-1)
            reads = reads[(reads["op"] != 1) & (reads["size"] > 0)]
            one = np.zeros(len(reads), np.dtype([("offset", "<u8"), ("size", "<u8"), ("file", "<u4")]))
            for key in ("offset", "size", "file"):
                one[key] = reads[key]
            ranges.append(one)
        for path, _ in data.reading.store._files:
            file.write(f"file {path}\n".encode())
        file.write(b"reads\n" + np.concatenate(ranges).tobytes())


@dataclass
class Raw:
    """A plain loop of the same reads as a contender."""

    engine: str
    workers: int
    depth: int
    program: Path
    reads: Path
    limit_bytes: int
    seconds: float
    is_cold: bool = True
    """Whether the page cache is emptied before."""

    @property
    def name(self) -> str:
        """Engine and how much is in flight."""
        return f"plain loop, {self.engine}, {self.workers} x {max(self.depth, 1)}"

    def measure(self, number: int) -> Sample:
        """Run it once."""
        group = Group(self.limit_bytes)
        try:
            if self.is_cold:
                empty_page_cache()
            command = [
                str(self.program),
                str(self.reads),
                self.engine,
                str(self.workers),
                str(self.depth),
                str(self.seconds),
            ]
            joined = f'echo $$ > "{group.folder}/cgroup.procs" && exec "$@"'
            done = subprocess.run(["/bin/sh", "-c", joined, "sh", *command], capture_output=True, text=True, check=True)
        finally:
            group.close()
        found = json.loads(done.stdout)
        return Sample(found["seconds"], found["records"], 0.0, 0.0, {"peak_bytes": 0.0, "read_per_used": 0.0})


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
