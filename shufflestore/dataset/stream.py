"""Batches one after another, read ahead within a byte budget."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shufflestore.dataset.reading import Projection, Reading, Ready
from shufflestore.dataset.selection import Selection
from shufflestore.format.decode import Column
from shufflestore.orders.epoch import Order
from shufflestore.orders.partition import Partition

__all__ = ["PREFETCH_BYTES", "Plan", "Stream", "planned"]

T = TypeVar("T")
PREFETCH_BYTES: Final = 64 << 20
"""Look-ahead: some tens of milliseconds of work for the core, small beside any training job's memory."""
WINDOW_IDS: Final = 4096
"""Ids resolved at once: enough to spread the cost of some thirty numpy calls."""
_WINDOWS_A_BATCH: Final = 2
"""Windows submitted for each batch delivered, until the budget is used: the look-ahead grows without a stall."""

_NOTHING: Final[deque[Ready]] = deque()

Plan = Callable[[int], "tuple[NDArray[np.int64], NDArray[np.int64]] | None"]
"""plan(batches) -> ids and ends of at most so many further batches, None at the end."""


def planned(
    partition: Partition, order: Order, selection: Selection, watch: Callable[[int], None] | None = None
) -> Plan:
    """Return the plan of an epoch: steps to positions, positions to ids of the order, ids to the view's records.

    Args:
        partition: Which positions, batch by batch.
        order: Of the epoch.
        selection: Of the view.
        watch: Called with the number of ids before they are computed.
    """
    step = 0

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


class Stream(Generic[T], Iterator[T]):
    """An iterator over batches that keeps the store busy with those to come.

    The first window is one batch, so that the first batch comes at once; windows then double.
    """

    def __init__(
        self,
        reading: Reading,
        projection: Projection,
        plan: Plan,
        finish: Callable[[NDArray[np.int64], dict[str, Column]], T],
        prefetch_bytes: int,
    ) -> None:
        self._reading = reading
        self._projection = projection
        self._plan = plan
        self._finish = finish
        self._budget = prefetch_bytes
        self._ahead: deque[Ready] = deque()
        self.ahead_bytes = 0
        """Bytes of batches that were submitted and not delivered."""
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
            self._ahead, self.ahead_bytes, self._ended = _NOTHING, 0, True
            raise

    def _deliver(self) -> T:
        if self._process != os.getpid():
            self._read_again()
        if not self._ahead:
            self._look_ahead()  # the first batch is wanted before anything is done for those behind it
        elif self.ahead_bytes < self._budget and not self._ended:
            for _ in range(_WINDOWS_A_BATCH):
                self._look_ahead()
        if not self._ahead:
            raise StopIteration
        ready = self._ahead.popleft()
        self.ahead_bytes -= ready.byte_count
        if not self._ahead and self._has_begun:
            self._look_ahead()  # work for the core while this batch is waited for and put together
        self._has_begun = True
        try:
            return self._finish(ready.ids, self._reading.deliver(ready))
        except StopIteration as cause:  # of a user's function: must not pass for the end of the data
            raise RuntimeError("StopIteration was raised while a batch was put together") from cause

    def _read_again(self) -> None:
        """Submit again, in a forked child, what the parent's threads read there."""
        again: deque[Ready] = deque()
        for ready in self._ahead:
            again.extend(self._reading.submit(ready.ids, np.array([len(ready.ids)], np.int64), self._projection))
        self._ahead, self._process = again, os.getpid()

    def _look_ahead(self) -> None:
        """Submit one window, unless the budget is used or nothing is left; at least one batch, however large."""
        if self._ended or (self._ahead and self.ahead_bytes >= self._budget):
            return
        planned = self._plan(self._window)
        if planned is None:
            self._ended = True
            return
        ids, ends = planned
        batches = self._reading.submit(ids, ends, self._projection)
        self._ahead.extend(batches)
        size = sum(ready.byte_count for ready in batches)
        self.ahead_bytes += size
        # Twice as much next time, while that stays a small part of the budget.
        if len(ids) * 2 <= WINDOW_IDS and size * 8 <= self._budget:
            self._window *= 2
        elif size * 2 > self._budget and self._window > 1:
            self._window //= 2

    def close(self) -> None:
        """Cancel what was submitted. Idempotent."""
        self._ended = True
        while self._ahead:
            self._ahead.popleft().pending.cancel()
        self.ahead_bytes = 0
