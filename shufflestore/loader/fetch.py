"""Fetching the records of any map-style data set together: finished in any order, each put into its own slot.

The method of the RINAS paper: a batch of reads that wait for a disk or a network takes as long as the
slowest of them, not as long as all of them. Results are those of torch's own loop over the same indices.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.random  # here, since a worker that imports it just after a fork can fail on Python 3.11
import torch
from torch.utils.data import get_worker_info

from shufflestore.errors import OptionError
from shufflestore.orders.random import record_rng

__all__ = ["BadRow", "Delivered", "FetchOptions", "Fetcher", "OnError", "Task"]

OnError = Literal["raise", "skip", "fill"]
_TRIES: Final = 1000
"""Records that `fill` looks at for one that can be read."""
_WINDOW_SECONDS: Final = 0.05
"""Between two looks at how busy the fetch threads keep the cores."""
_BUSY: Final = 0.93
_IDLE: Final = 0.86
"""Shares of the cores above which fewer threads work, and below which more."""
_VERY_IDLE: Final = 0.5


class BadRow(NamedTuple):
    """A record that could not be read, and was skipped or replaced."""

    record_id: int
    cause: str
    replaced_by: int | None = None


class Task(NamedTuple):
    """What a worker gets: one batch of a sampler."""

    step: int
    epoch: int
    index: Any


@dataclass(slots=True)
class Delivered:
    """What a worker returns."""

    step: int
    data: Any
    bad: list[BadRow]

    def pin_memory(self, device: Any = None) -> Delivered:
        """Pin the data, as torch's pinning thread does with all that it knows."""
        from torch.utils.data._utils.pin_memory import pin_memory

        self.data = pin_memory(self.data, device)
        return self


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How the records of a batch are fetched.

    Attributes:
        threads: At once, in each process; 1 is torch's own loop.
        in_completion_order: Records stand in the batch as they finished, as in the paper: not the same from
            run to run.
        on_error: "raise"; "skip" leaves a record out; "fill" puts the next record that can be read in its place.
        seed: Seed python's, numpy's and torch's global generators before each record from (seed, epoch, record id);
            None leaves them alone. Needs one thread.
    """

    threads: int = 1
    in_completion_order: bool = False
    on_error: OnError = "raise"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip", "fill"):
            raise OptionError(f"on_error={self.on_error!r}; allowed are ['raise', 'skip', 'fill']")
        if self.seed is not None and self.threads > 1:
            raise OptionError(
                f"seed_records=True seeds the process's generators, which {self.threads} fetch threads would share; take "
                "fetch_threads=1 and more workers, or draw from shufflestore.record_rng in the data set"
            )

    @property
    def is_plain(self) -> bool:
        """Whether torch's own fetcher does the same."""
        return self.threads == 1 and self.on_error == "raise" and self.seed is None


class Fetcher:
    """Fetches batch after batch; those started with `start` go on beside the one that is waited for."""

    def __init__(
        self, dataset: Any, auto_collation: bool, collate_fn: Callable[[Any], Any], options: FetchOptions
    ) -> None:
        """Prepare; threads start with the first batch."""
        self.dataset = dataset
        self.auto_collation = auto_collation
        self.collate_fn = collate_fn
        self.options = options
        self._takes_batches = bool(getattr(dataset, "__getitems__", None)) and auto_collation
        self._threads: _Threads | None = None

    def start(self, task: Task) -> _Batch:
        """Let the threads begin with a batch. Returns at once."""
        if self._threads is None:
            self._threads = _Threads(self.options.threads)
        batch = _Batch(self, task)
        self._threads.give(batch, 1 if self._takes_batches else min(self.options.threads, len(batch.wanted)))
        return batch

    def fetch(self, task: Task | _Batch) -> Delivered:
        """Return a batch, waiting for it. Raises what the first bad record, in slot order, raised."""
        if isinstance(task, Task):
            if self.options.threads > 1:
                task = self.start(task)
            else:
                batch = _Batch(self, task)
                batch.work()
                return batch.delivered()
        task.finished.wait()  # no deadline: the user's own data set
        return task.delivered()

    def close(self) -> None:
        """Let the threads end after the record that each is at."""
        if self._threads is not None:
            self._threads.close()


class _Batch:
    """One batch on its way: threads take slots in turn and fill them."""

    def __init__(self, fetcher: Fetcher, task: Task) -> None:
        self.fetcher, self.task = fetcher, task
        self.wanted: Sequence[Any] = list(task.index) if fetcher.auto_collation else [task.index]
        self.slots: list[Any] = [None] * len(self.wanted)
        self.order: list[int] = []
        """Slots as they were finished."""
        self.failures: dict[int, BaseException] = {}
        self.bad: dict[int, BadRow] = {}
        self.finished = threading.Event()
        self._next: Iterator[int] = iter(range(len(self.wanted)))
        if not self.wanted:
            self.finished.set()

    def work(self) -> None:
        """Fill slots until none is left; called by several threads at once."""
        if self.fetcher._takes_batches:
            self._fill_all()
            return
        for slot in self._next:  # a range's iterator: each number goes to one thread
            if not self.failures:
                try:
                    self.slots[slot] = self._record(slot)
                except BaseException as error:
                    self.failures[slot] = error
            self.order.append(slot)
            if len(self.order) == len(self.wanted):
                self.finished.set()

    def _fill_all(self) -> None:
        try:
            self.slots = list(self.fetcher.dataset.__getitems__(self.wanted))
            self.order = list(range(len(self.slots)))
        except BaseException as error:
            if self.fetcher.options.on_error == "raise" or not isinstance(error, Exception):
                self.failures[0] = error
            else:
                self._fill_singly()
        self.finished.set()

    def _fill_singly(self) -> None:
        for slot in range(len(self.wanted)):
            try:
                self.slots[slot] = self._record(slot)
            except BaseException as error:
                self.failures[slot] = error
            self.order.append(slot)

    def _record(self, slot: int) -> Any:
        """Return the record of a slot, or what stands for it."""
        number, options = self.wanted[slot], self.fetcher.options
        try:
            return self._read(number)
        except Exception as error:
            if options.on_error == "raise":
                _add_note(error, f"record {number!r}")
                raise
            self.bad[slot] = BadRow(number, f"{type(error).__name__}: {error}")
            if options.on_error == "skip":
                return None
        length = len(self.fetcher.dataset)
        for step in range(1, min(length, _TRIES)):
            other = (number + step) % length
            with contextlib.suppress(Exception):
                found = self._read(other)
                self.bad[slot] = self.bad[slot]._replace(replaced_by=other)
                return found
        raise OptionError(
            f"record {number!r}: {self.bad[slot].cause}; on_error='fill' looked at the {min(length, _TRIES) - 1} records "
            "behind it, and none of them can be read either; is the data set where it should be?"
        )

    def _read(self, number: Any) -> Any:
        seed = self.fetcher.options.seed
        if seed is not None:
            _seed_generators(seed, self.task.epoch, number)
        if self.fetcher._takes_batches:
            return self.fetcher.dataset.__getitems__([number])[0]
        return self.fetcher.dataset[number]

    def delivered(self) -> Delivered:
        """Return the batch. All its slots were looked at."""
        if self.failures:
            raise self.failures[min(self.failures)]
        fetcher = self.fetcher
        left_out = {slot for slot, bad in self.bad.items() if bad.replaced_by is None}
        bad = [self.bad[slot] for slot in sorted(self.bad)]
        slots = self.order if fetcher.options.in_completion_order else range(len(self.slots))
        records = [self.slots[slot] for slot in slots if slot not in left_out]
        if not fetcher.auto_collation:
            return Delivered(self.task.step, fetcher.collate_fn(records[0]) if records else None, bad)
        if not records and left_out:
            return Delivered(self.task.step, [], bad)
        return Delivered(self.task.step, fetcher.collate_fn(records), bad)


class _Threads:
    """Threads that work on batches in the order in which these came. They are daemons: nobody waits for a record.

    Many threads suit records that wait. Of records that compute, more than the cores can serve only get in each
    other's way: while they use up the cores a quarter of them stops, while they leave some idle one more works, and
    twice as many where the cores have little to do.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._count = self.working = count
        self._clock = clock
        info = get_worker_info()
        self.cores = max(1.0, len(os.sched_getaffinity(0)) / (1 if info is None else info.num_workers))
        """That this process has to itself, where its loader's workers share the machine."""
        self._least = math.ceil(self.cores) + 1
        self._batches: deque[_Batch] = deque()
        self._some = threading.Semaphore(0)
        self._gate = threading.Condition()
        self._is_closed = False
        self._running = 0
        self._used, self._since = 0.0, clock()

    def give(self, batch: _Batch, threads: int) -> None:
        while self._running < self._count:
            number = self._running
            self._running += 1
            threading.Thread(target=self._run, args=(number,), name=f"shufflestore-fetch-{number}", daemon=True).start()
        if threads:
            self._batches.extend([batch] * threads)
            self._some.release(threads)

    def _run(self, number: int) -> None:
        while True:
            if number >= self.working:  # never the first
                with self._gate:
                    self._gate.wait_for(lambda: number < self.working or self._is_closed)
            self._some.acquire()  # no deadline: ended by close, or with the process
            if self._is_closed:
                return
            before = time.thread_time()
            self._batches.popleft().work()
            self.note(time.thread_time() - before)

    def note(self, seconds: float) -> None:
        """Count processor time; now and then decide how many threads work."""
        self._used += seconds
        now = self._clock()
        if now - self._since < _WINDOW_SECONDS:
            return
        share = self._used / (now - self._since) / self.cores
        self._used, self._since = 0.0, now
        if share > _BUSY:
            self.working = min(self._count, max(self._least, self.working * 3 // 4))
        elif share < _IDLE and self.working < self._count:
            with self._gate:
                self.working = min(self._count, self.working * 2 if share < _VERY_IDLE else self.working + 1)
                self._gate.notify_all()

    def close(self) -> None:
        self._is_closed = True
        with self._gate:
            self._gate.notify_all()
        self._some.release(self._count)


def _seed_generators(seed: int, epoch: int, number: int) -> None:
    """Seed python's, numpy's and torch's global generators for one record."""
    words = record_rng(seed, epoch, int(number)).integers(0, 2**32, size=4, dtype=np.uint32)
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words)
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def _add_note(error: BaseException, note: str) -> None:
    """Say which record it was, where the interpreter can (3.11)."""
    if hasattr(error, "add_note"):
        error.add_note(note)
