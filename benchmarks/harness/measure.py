"""Interleaved rounds: every contender once a round, each round from another one on, ratios within a round.

On a machine that others share, absolute rates of two separate runs say little. Within a round all
contenders meet the same weather, so a ratio is formed per round and the median of those is reported.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.audit import Wrong, check_batch, check_ids
from benchmarks.harness.workload import Workload, ids_of, lengths_of
from benchmarks.loaders import Rival

__all__ = ["Clock", "Comparison", "Contender", "Epoch", "Sample", "Sampled", "Timed"]

_SAMPLED = 32
"""Batches of a timed epoch that are kept and checked in full when the clock stands."""
_QUIET = 0.1
_ENOUGH = 5


@dataclass(frozen=True)
class Sample:
    """What one contender did in one round."""

    seconds: float
    records: int
    cpu_seconds: float = 0.0
    """Of all threads and of children that ended."""
    others: float = 0.0
    """Share of the machine's processors that other processes took meanwhile."""
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds


class Clock:
    """Wall and processor time from its making to `stop`."""

    def __init__(self) -> None:
        """Start."""
        self._cpu, self._machine = _cpu_seconds(), _machine_seconds()
        self.start = time.perf_counter()

    def stop(self, records: int) -> Sample:
        """Return what passed since."""
        seconds = time.perf_counter() - self.start
        cpu = _cpu_seconds() - self._cpu
        others = (_machine_seconds() - self._machine - cpu) / (seconds * (os.cpu_count() or 1))
        return Sample(seconds, records, cpu, max(others, 0.0))


class Contender(Protocol):
    """Something that can be measured again and again."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    def measure(self, number: int) -> Sample:
        """Do the work of round `number`, check it, and return what the clock said."""
        ...


@dataclass
class Timed:
    """A contender that is a function: called with the round's number, it returns the records it did."""

    name: str
    work: Callable[[int], int]
    before: Callable[[], None] | None = None
    """Called outside the clock, e.g. to remove the last round's output."""
    after: Callable[[], None] | None = None
    """Called outside the clock to check the result."""

    def measure(self, number: int) -> Sample:
        """Run it once."""
        if self.before is not None:
            self.before()
        clock = Clock()
        records = self.work(number)
        sample = clock.stop(records)
        if self.after is not None:
            self.after()
        return sample


@dataclass
class Sampled:
    """A contender that is a function with a clock of its own."""

    name: str
    work: Callable[[], Sample]

    def measure(self, number: int) -> Sample:
        """Run it once."""
        return self.work()


@dataclass
class Epoch:
    """A loader as a contender: one epoch a round, or as much of it as `cap_seconds` allow.

    Within the clock each batch costs two appends: its labels are kept (8 bytes a record, so that all
    ids can be counted afterwards) and every n-th batch itself. All checking happens when it stands.
    """

    rival: Rival
    workload: Workload
    cap_seconds: float
    lengths_of: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lengths_of
    """Tokens of each record."""

    @property
    def name(self) -> str:
        """The rival's."""
        return self.rival.name

    def measure(self, number: int) -> Sample:
        """Run an epoch and check it."""
        rival, batches = self.rival, self.workload.record_count // self.workload.batch_size
        every = max(batches // _SAMPLED, 1)
        labels: list[Any] = []
        kept: list[Any] = []
        labels_in, keep, last = rival.labels, kept.append, None
        cap = self.cap_seconds if rival.is_slow else float("inf")
        is_whole = True
        iterator = rival.batches(number)
        if rival.is_slow:
            labels.append(labels_in(next(iterator)))  # in its favour: starting up is not counted
        clock = Clock()
        for i, batch in enumerate(iterator, number):
            labels.append(labels_in(batch))
            last = batch
            if i % every == 0 and not rival.is_reused:
                keep(batch)
            if rival.is_slow and time.perf_counter() - clock.start > cap:
                is_whole = False
                break
        sample = clock.stop(0)
        ids = [ids_of(np.asarray(one, np.int64)) for one in labels]
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
        for batch in kept if not rival.is_reused else [last]:
            self._check(batch)
        check_ids(ids, self.workload.record_count, is_whole)
        counted = ids[1:] if rival.is_slow else ids
        return replace(sample, records=sum(len(one) for one in counted))

    def prove(self) -> None:
        """Check every token of an untimed epoch, or of as much of it as `cap_seconds` allow."""
        ids: list[NDArray[np.int64]] = []
        is_whole = True
        start = time.perf_counter()
        iterator = self.rival.batches(0)
        for batch in iterator:
            ids.append(self._check(batch))
            if self.rival.is_slow and time.perf_counter() - start > self.cap_seconds:
                is_whole = False
                break
        check_ids(ids, self.workload.record_count, is_whole)
        if not ids:
            raise Wrong(f"{self.rival.name} delivered nothing")

    def _check(self, batch: Any) -> NDArray[np.int64]:
        return check_batch(self.rival.opened(batch), self.workload.record_count, self.lengths_of)


@dataclass
class Comparison:
    """Rounds of several contenders, and what they came to."""

    contenders: Sequence[Contender]
    reference: str
    """The contender that ratios are formed with."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    round_count: int = 0

    def rest(self) -> None:
        """Wait until the machine is quiet, `SHUFFLESTORE_BENCH_PATIENCE` seconds (0) at most."""
        end = time.monotonic() + float(os.environ.get("SHUFFLESTORE_BENCH_PATIENCE", 0))
        while time.monotonic() < end:
            before = _machine_seconds()
            time.sleep(1)
            if _machine_seconds() - before < _QUIET * (os.cpu_count() or 1):
                return

    def round(self) -> None:
        """Measure each contender once, beginning with another one each time."""
        first = self.round_count % len(self.contenders)
        for contender in [*self.contenders[first:], *self.contenders[:first]]:
            self.samples.setdefault(contender.name, []).append(contender.measure(self.round_count))
        self.round_count += 1

    @property
    def counted(self) -> list[int]:
        """The rounds that count: the quiet ones if there are five, else all.

        Quiet is a round in which no contender had to share: other processes took less than a tenth
        of the machine. What a round found has no say in whether it counts.
        """
        loudest = [max(samples[i].others for samples in self.samples.values()) for i in range(self.round_count)]
        quiet = [i for i, share in enumerate(loudest) if share < _QUIET]
        return quiet if len(quiet) >= _ENOUGH else list(range(self.round_count))

    @property
    def notes(self) -> dict[str, Any]:
        """How many rounds there were, and how loud."""
        others = statistics.median(s.others for samples in self.samples.values() for s in samples)
        counted = len(self.counted)
        return {"rounds": f"{counted} counted of {self.round_count}", "share of cpus taken by others": round(others, 3)}

    def ratios(self, name: str, reference: str | None = None) -> list[float]:
        """Return rate over the reference's rate, counted round by round."""
        base = self.samples[reference or self.reference]
        return [self.samples[name][i].rate / base[i].rate for i in self.counted]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a contender: medians, the ratio's range, and every round's seconds."""
        made = []
        for name, every in self.samples.items():
            samples = [every[i] for i in self.counted]
            ratios = self.ratios(name)
            row: dict[str, Any] = {
                "name": name,
                "records_per_second": round(statistics.median(s.rate for s in samples), 1),
                "seconds": round(statistics.median(s.seconds for s in samples), 5),
                "ratio": float(f"{statistics.median(ratios):.4g}"),
                "ratio_low": float(f"{min(ratios):.4g}"),
                "ratio_high": float(f"{max(ratios):.4g}"),
                "cpus_used": round(statistics.median(s.cpu_seconds / s.seconds for s in samples), 2),
                "cpu_ns_per_record": round(statistics.median(s.cpu_seconds / s.records for s in samples) * 1e9, 1),
                "records": int(statistics.median(s.records for s in samples)),
                "rounds_seconds": [round(s.seconds, 5) for s in every],
                "rounds_others": [round(s.others, 3) for s in every],
            }
            for key in samples[0].extra:
                row[key] = round(statistics.median(s.extra[key] for s in samples), 5)
            made.append(row)
        order = [contender.name for contender in self.contenders]
        return sorted(made, key=lambda row: order.index(row["name"]))


def _machine_seconds() -> float:
    """Seconds that all processors together were busy since the machine began."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
