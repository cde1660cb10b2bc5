"""Batches one after another, read ahead within a byte budget."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shufflestore.dataset.reading import Projection, Reading, Ready
from shufflestore.dataset.selection import Selection
from shufflestore.format.decode import Column
from shufflestore.format.resolve import Resolved
from shufflestore.orders.epoch import Order
from shufflestore.orders.partition import Partition
from shufflestore.storage.base import READ, ZERO

__all__ = ["Plan", "Stream", "Traffic", "planned"]

T = TypeVar("T")
WINDOW_IDS: Final = 4096
"""Ids resolved at once: enough to spread the cost of a window over its batches."""
WINDOW_READS: Final = 65_536
"""Reads resolved at once: 2.5 MB of descriptors."""

_NOTHING: Final[deque[Ready]] = deque()

Plan = Callable[[int], "tuple[NDArray[np.int64], NDArray[np.int64]] | None"]
"""plan(batches) -> ids and ends of at most so many further batches, None at the end."""


def planned(
    partition: Partition,
    order: Order,
    selection: Selection,
    watch: Callable[[int], None] | None = None,
    first_step: int = 0,
) -> Plan:
    """Return the plan of an epoch: steps to positions, positions to ids of the order, ids to the view's records.

    Args:
        partition: Which positions, batch by batch.
        order: Of the epoch.
        selection: Of the view.
        watch: Called with the number of ids before they are computed.
        first_step: Of the partition, to begin with.
    """
    step = first_step

    def plan(batches: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        nonlocal step
        last = min(step + batches, partition.step_count)
        if step == last:
            return None
        positions, ends = partition.positions(step, last)
        step = last
        if watch is not None:
            watch(len(positions))
        return selection.ids(order.ids(positions)), ends

    return plan


class Traffic:
    """What the streams that somebody has one after another delivered, and how far ahead the newest one is.

    For whoever wants to know: any thread may look.
    """

    def __init__(self) -> None:
        self.used_bytes = 0
        """Bytes of the delivered records, as they are stored; of columns that are read whole, as they are delivered."""
        self._newest: Callable[[], Stream[Any] | None] = lambda: None

    def follow(self, stream: Stream[Any]) -> None:
        """Take note of a stream that begins. It is not kept alive: what it read ahead goes when it is dropped."""
        self._newest = weakref.ref(stream)

    @property
    def ahead(self) -> tuple[int, int] | None:
        """Bytes of batches that are ready to be taken, and of all that may be; None where no reads are ahead."""
        stream = self._newest()
        if stream is None or stream.flow is None:
            return None
        ready, submitted = stream.ahead_bytes
        return ready, min(submitted, stream.flow.budget_bytes)


class Stream(Generic[T], Iterator[T]):
    """An iterator over batches that keeps the store busy with those to come.

    Windows of batches are resolved here and queued; how many of them the store reads ahead, a budget of
    bytes decides there. The first window is one batch, so that the first batch comes at once; they then
    double.
    """

    def __init__(
        self,
        reading: Reading,
        projection: Projection,
        plan: Plan,
        finish: Callable[[NDArray[np.int64], dict[str, Column]], T],
        prefetch_bytes: int | None,
        traffic: Traffic | None = None,
    ) -> None:
        self._reading = reading
        self._projection = projection
        self._plan = plan
        self._finish = finish
        self._prefetch_bytes = prefetch_bytes
        self.flow = reading.store.flow(reading.budget.flow_bytes(prefetch_bytes))
        """What bounds the bytes read ahead."""
        self._traffic = traffic
        """Kept up to date for whoever wants to know."""
        self._stored: deque[int] = deque()
        """For that, the stored bytes of each batch ahead."""
        if traffic is not None:
            traffic.follow(self)
        self._ahead: deque[Ready] = deque()
        self._window = 1
        self._has_begun = False
        """Whether the first batch, which nothing may delay, is on its way."""
        self._ended = False
        self._process = os.getpid()

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._deliver()
        except StopIteration:
            raise
        except BaseException:  # also Ctrl-C anywhere in between: to go on would skip what was lost
            # No call, which a second Ctrl-C could keep from being made.
            self._ahead, self._ended = _NOTHING, True
            raise

    def _deliver(self) -> T:
        if self._process != os.getpid():
            self._read_again()
        ahead = self._ahead
        if len(ahead) < self._window and not self._ended and (self._has_begun or not ahead):
            self._look_ahead()
        if not ahead:
            raise StopIteration
        ready = ahead.popleft()
        if not ahead and self._has_begun and not self._ended:
            self._look_ahead()  # work for the core while this batch is waited for and put together
        self._has_begun = True
        columns = self._reading.deliver(ready)
        if self._traffic is not None:
            self._traffic.used_bytes += self._stored.popleft() + self._whole_bytes(columns)
        try:
            return self._finish(ready.ids, columns)
        except StopIteration as cause:  # of a user's function: must not pass for the end of the data
            raise RuntimeError("StopIteration was raised while a batch was put together") from cause

    @property
    def ahead_bytes(self) -> tuple[int, int]:
        """Bytes of the batches, up to the first that is still being read, that wait to be taken; of all submitted."""
        ahead = list(self._ahead) if self._process == os.getpid() else []
        ready = next((i for i, one in enumerate(ahead) if not one.pending.is_done()), len(ahead))
        return _output_bytes(ahead[:ready]), _output_bytes(ahead)

    def _whole_bytes(self, columns: dict[str, Column]) -> int:
        """Return the bytes of columns that were read whole, as they are delivered."""
        if self._reading.indexes.whole_columns.isdisjoint(self._projection.columns):
            return 0
        size: int = sum(column.arrow.nbytes for column in columns.values() if column.arrow is not None)
        return size

    def _read_again(self) -> None:
        """Submit again, in a forked child, what the parent's threads read there."""
        self.flow = self._reading.store.flow(self._reading.budget.flow_bytes(self._prefetch_bytes))
        again: deque[Ready] = deque()
        for ready in self._ahead:
            ends = np.array([len(ready.ids)], np.int64)
            again.extend(self._reading.submit(ready.ids, ends, self._projection, self.flow))
        self._ahead, self._process = again, os.getpid()

    def _look_ahead(self) -> None:
        """Submit one window, unless nothing is left."""
        planned = self._plan(self._window)
        if planned is None:
            self._ended = True
            return
        ids, ends = planned
        batches = self._reading.submit(ids, ends, self._projection, self.flow)
        self._ahead.extend(batches)
        if self._traffic is not None:
            self._stored.extend(_stored_bytes(batches[0].gathered.window, ends, self._projection))
        reads = len(batches[0].gathered.window.reads)
        if 2 * len(ids) <= WINDOW_IDS and 2 * reads <= WINDOW_READS:
            self._window *= 2
        elif reads > WINDOW_READS and self._window > 1:
            self._window //= 2

    def close(self) -> None:
        """Cancel what was submitted. Idempotent."""
        self._ended = True
        while self._ahead:
            self._ahead.popleft().pending.cancel()


def _output_bytes(batches: list[Ready]) -> int:
    """Return the bytes that batches that follow one another deliver: window by window, since they may be thousands."""
    total = at = 0
    while at < len(batches):
        first = batches[at].gathered
        sizes = first.window.output_sizes[first.batch : first.batch + len(batches) - at]
        total, at = total + int(sizes.sum()), at + len(sizes)
    return total


def _stored_bytes(window: Resolved, ends: NDArray[np.int64], projection: Projection) -> list[int]:
    """Return the bytes of each batch's records as they are stored; no zeros of padding, no widened integers."""
    reads = window.reads.view(READ).reshape(-1)
    sizes = np.where(reads["op"] == ZERO, 0, reads["size"].astype(np.int64))
    before = np.concatenate([[0], np.cumsum(sizes)])[np.concatenate([[0], window.ends.astype(np.int64)])]
    stored: list[int] = (np.diff(before) + np.diff(ends, prepend=0) * projection.wanted.fixed_bytes).tolist()
    return stored
