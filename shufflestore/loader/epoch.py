"""One pass over the data: exact wherever it is interrupted, and in whichever process it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from shufflestore.loader.course import Progress
from shufflestore.loader.telemetry import Meter, next_in_range
from shufflestore.orders.partition import Partition

__all__ = ["EpochIterator", "Read"]

Read = Callable[[Partition], Iterator[Any]]
"""read(partition) -> iterator over this rank's batches of it."""


class EpochIterator(Iterator[Any]):
    """Iterates over what is left of an epoch; binds epoch, position and rank at the first `next`.

    What was read ahead is given up where `next` raised (Ctrl-C, damaged data, the user's own code) and
    in a forked child, whose parent's threads are not there. The following `next` begins again behind the
    last batch returned: nothing is skipped or repeated.
    """

    def __init__(
        self, progress: Progress, bind: Callable[[], Read], step_count: Callable[[], int], meter: Meter
    ) -> None:
        """Prepare.

        Args:
            progress: Fresh; kept up to date from now on.
            bind: Called once, at the first `next`: fills in `progress` and returns what reads.
            step_count: Batches of a whole epoch.
            meter: Told of each batch.
        """
        self._progress = progress
        self._bind = bind
        self._step_count = step_count
        self._meter = meter
        self._read: Read | None = None
        self._items: Iterator[Any] | None = None
        self._process = os.getpid()
        self._is_closed = False

    def __len__(self) -> int:
        return self._step_count()

    def __next__(self) -> Any:
        if self._is_closed:
            raise StopIteration
        try:
            self._meter.wait_began()
            if self._items is None or self._process != os.getpid():
                self._items = self._begin()
            batch = next_in_range(self._items)
            self._meter.delivered(self._records())
        except StopIteration:
            raise
        except BaseException:
            items, self._items = self._items, None  # here: a second interrupt could keep a call from doing it
            self._give_up(items)
            raise
        self._progress.delivered += 1  # no call between this and the return, hence no signal's exception
        return batch

    def _records(self) -> int:
        """Records of the batch that was just taken."""
        progress = self._progress
        part = progress.partition
        assert part is not None, "just bound"
        return min(part.batch_size, part.record_count - progress.delivered * part.batch_size)

    def _begin(self) -> Iterator[Any]:
        items, self._items = self._items, None
        self._give_up(items)
        if self._read is None:
            self._read = self._bind()
        progress = self._progress
        assert progress.partition is not None, "just bound"
        self._process = os.getpid()
        return self._read(replace(progress.partition, start=progress.position))

    def _give_up(self, items: Iterator[Any] | None) -> None:
        closing = getattr(items, "close", None)
        if closing is not None and self._process == os.getpid():  # a parent's threads and locks are left alone
            closing()

    def close(self) -> None:
        """Stop reading ahead. Idempotent."""
        self._is_closed = True
        self._give_up(self._items)
