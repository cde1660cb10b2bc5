"""What counts while a loader runs: a meter, and a range in torch's profiler.

A meter is told twice a batch, at less than a microsecond each. All else is worked out when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch.autograd.profiler as _profiler

from shufflestore.loader.metrics import BUCKETS, LAST_BUCKET, Stats

__all__ = ["Meter", "Pulled", "WAIT_RANGE", "batch_bytes", "next_in_range"]

T = TypeVar("T")
WAIT_RANGE: Final = "enumerate(DataLoader)#shufflestore.DataLoader.__next__"
"""Name of a wait in a profile. Tools know the time spent on loading by the first word, torch's own."""
_NEVER: Final = 1 << 63
_DEEP: Final = 4
"""Levels of a batch that `batch_bytes` looks into."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a meter cannot see itself and asks for when somebody wants figures. Counts only grow.

    Attributes:
        engine: What reads, in a word or two.
        bytes_read: Bytes that this process asked of files; None if nobody counts them.
        bytes_used: Bytes of the delivered records; None likewise.
        lookahead: Bytes of batches that are ready to be taken, and of all that may be; None where nothing is ahead.
        quarantined: Records that could not be read and were skipped or replaced.
        epoch: Of the newest iterator.
        rank: Of this process.
    """

    engine: str = ""
    bytes_read: int | None = None
    bytes_used: int | None = None
    lookahead: tuple[int, int] | None = None
    quarantined: int = 0
    epoch: int = 0
    rank: int = 0


class Meter:
    """Counts what one loader delivers, and how long that was waited for.

    `wait_began` and `delivered` are called in turn, by one thread at a time; any thread may ask for `stats`. A wait
    that ends without a batch (the end of a pass, an error) does not count. Memory is fixed, 11 KB.

    A copy, in this process or another, begins at zero: it belongs to another loader.

    >>> meter = Meter()
    >>> for batch in ([1, 2, 3], [4]):
    ...     meter.wait_began()
    ...     meter.delivered(len(batch))
    >>> meter.stats().records, meter.stats().batches
    (4, 2)
    """

    __slots__ = (
        "_began", "_bytes", "_clock", "_due", "_every", "_first", "_pull", "_records", "_returned", "_show", "_step",
        "_waited", "_waits",
    )  # fmt: skip

    def __init__(self, pull: Callable[[], Pulled] = Pulled, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Begin at zero.

        Args:
            pull: Returns what else there is to say. Called at the first wait and by `stats`; must not raise.
            clock: Nanoseconds, of any origin but 0, never going back.
        """
        self._pull, self._clock = pull, clock
        self._records = self._bytes = self._waited = self._step = 0
        self._began = self._returned = 0
        self._waits = [0] * BUCKETS
        self._first: Pulled | None = None
        """What was counted before the first wait, for others that read through the same store."""
        self._due, self._every = _NEVER, 0
        self._show: Callable[[], None] | None = None

    def wait_began(self) -> None:
        """Note that the training loop asks for a batch."""
        if self._returned:
            self._began = now = self._clock()
            self._step += now - self._returned
            self._returned = 0
            return
        if self._first is None:
            self._first = self._pull()
        self._began = self._clock()

    def delivered(self, records: int, size: int = 0) -> None:
        """Note that it gets one.

        Args:
            records: In the batch, 0 or more.
            size: Bytes of the batch where nobody else counts them; see `batch_bytes`.
        """
        self._returned = now = self._clock()
        waited = now - self._began
        self._waited += waited
        self._records += records
        self._bytes += size
        shift = waited.bit_length() - 6
        bucket = waited if shift <= 0 else (shift << 5) + (waited >> shift)
        self._waits[bucket if bucket < LAST_BUCKET else LAST_BUCKET] += 1
        if now >= self._due and self._show is not None:
            self._due = now + self._every
            self._show()

    def watch(self, every_seconds: float, show: Callable[[], None] | None) -> None:
        """Have something called by `delivered`, at most so often; None ends that. Costs a comparison a batch.

        Args:
            every_seconds: At least so long between two calls, and before the first.
            show: Must be quick and must not raise: the training loop waits for it.
        """
        self._every, self._show = int(every_seconds * 1e9), show
        self._due = _NEVER if show is None else self._clock() + self._every

    def stats(self) -> Stats:
        """Return the figures from the first batch to now. Some tens of microseconds, and what `pull` takes."""
        now, first, waits = self._pull(), self._first or Pulled(), tuple(self._waits)
        ready, most = now.lookahead or (0, 0)
        used = _grown(now.bytes_used, first.bytes_used)
        return Stats(
            records=int(self._records),  # whatever integers it was told
            batches=sum(waits),
            waited_seconds=self._waited / 1e9,
            step_seconds=self._step / 1e9,
            bytes_read=_grown(now.bytes_read, first.bytes_read),
            bytes_used=self._bytes or None if used is None else used,
            engine=now.engine,
            # A batch that is larger than the bound comes alone.
            lookahead_fill=min(ready / most, 1.0) if most else None,
            quarantined=now.quarantined,
            epoch=now.epoch,
            rank=now.rank,
            waits=waits,
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes as what it asks, without what it counted."""
        return Meter, (self._pull, self._clock)


def _grown(now: int | None, before: int | None) -> int | None:
    """What was counted since; nothing where a count began anew, as in a forked child."""
    return None if now is None else max(now - (before or 0), 0)


def batch_bytes(batch: Any) -> int:
    """Return the bytes of the tensors, arrays and byte strings in a batch: of dicts, lists and tuples, up to 4 levels.

    Half a microsecond for each of them, so about 30 for a list of 64.

    >>> batch_bytes({"image": b"abcd", "label": [b"x", 7]})
    5
    """
    return _bytes(batch, _DEEP)


def _bytes(value: Any, levels: int) -> int:
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if levels and isinstance(value, dict):
        return sum(_bytes(inner, levels - 1) for inner in value.values())
    if levels and isinstance(value, (list, tuple)):
        return sum(_bytes(inner, levels - 1) for inner in value)
    return 0


def next_in_range(items: Iterator[T]) -> T:
    """Return `next(items)`, as the range WAIT_RANGE where a torch profiler is at work.

    Without one that is a call and a look at a global, less than 100 ns; torch's `record_function` takes microseconds.
    """
    if _profiler._is_profiler_enabled:
        with _profiler.record_function(WAIT_RANGE):
            return next(items)
    return next(items)
