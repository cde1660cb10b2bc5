"""Interleaved rounds: every contender once a round, each round from another one on, ratios within a round.

On a machine that others share, absolute rates of two separate runs say little. Within a round all
contenders meet the same weather, so a ratio is formed per round and the median of those is reported.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.audit import Wrong, check_batch, check_ids
from benchmarks.harness.workload import Workload, ids_of, lengths_of
from benchmarks.loaders import Rival

__all__ = ["Comparison", "Contender", "Epoch", "Sample", "Timed"]

_SAMPLED = 32
"""Batches of a timed epoch that are kept and checked in full when the clock stands."""


@dataclass(frozen=True)
class Sample:
    """What one contender did in one round."""

    seconds: float
    records: int
    cpu_seconds: float = 0.0
    """Of all threads and of children that ended."""
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds


class Contender(Protocol):
    """Something that can be measured again and again."""

    name: str

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
        cpu, start = _cpu_seconds(), time.perf_counter()
        records = self.work(number)
        seconds = time.perf_counter() - start
        sample = Sample(seconds, records, _cpu_seconds() - cpu)
        if self.after is not None:
            self.after()
        return sample


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
        cpu, start = _cpu_seconds(), time.perf_counter()
        for i, batch in enumerate(iterator, number):
            labels.append(labels_in(batch))
            last = batch
            if i % every == 0 and not rival.is_reused:
                keep(batch)
            if rival.is_slow and time.perf_counter() - start > cap:
                is_whole = False
                break
        seconds = time.perf_counter() - start
        cpu = _cpu_seconds() - cpu
        ids = [ids_of(np.asarray(one, np.int64)) for one in labels]
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
        for batch in kept if not rival.is_reused else [last]:
            self._check(batch)
        check_ids(ids, self.workload.record_count, is_whole)
        counted = ids[1:] if rival.is_slow else ids
        return Sample(seconds, sum(len(one) for one in counted), cpu)

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

    def round(self) -> None:
        """Measure each contender once, beginning with another one each time."""
        first = self.round_count % len(self.contenders)
        for contender in [*self.contenders[first:], *self.contenders[:first]]:
            self.samples.setdefault(contender.name, []).append(contender.measure(self.round_count))
        self.round_count += 1

    def ratios(self, name: str, reference: str | None = None) -> list[float]:
        """Return rate over the reference's rate, round by round."""
        base = self.samples[reference or self.reference]
        return [mine.rate / theirs.rate for mine, theirs in zip(self.samples[name], base, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a contender: medians, the ratio's range, and every round's seconds."""
        made = []
        for name, samples in self.samples.items():
            ratios = self.ratios(name)
            row: dict[str, Any] = {
                "name": name,
                "records_per_second": round(statistics.median(s.rate for s in samples), 1),
                "seconds": round(statistics.median(s.seconds for s in samples), 5),
                "ratio": float(f"{statistics.median(ratios):.4g}"),
                "ratio_low": float(f"{min(ratios):.4g}"),
                "ratio_high": float(f"{max(ratios):.4g}"),
                "cpus_used": round(statistics.median(s.cpu_seconds / s.seconds for s in samples), 2),
                "records": int(statistics.median(s.records for s in samples)),
                "rounds_seconds": [round(s.seconds, 5) for s in samples],
            }
            for key in samples[0].extra:
                row[key] = round(statistics.median(s.extra[key] for s in samples), 5)
            made.append(row)
        order = [contender.name for contender in self.contenders]
        return sorted(made, key=lambda row: order.index(row["name"]))


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
