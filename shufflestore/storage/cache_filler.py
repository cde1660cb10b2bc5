"""The thread that keeps what comes for a cached store."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shufflestore.storage.base import Pending
from shufflestore.storage.cache_batches import SLICE_SECONDS, CachedFlow, CachedPending

__all__ = ["Fill", "Filler"]

_IDLE_SECONDS: Final = 1.0
_EXIT_SECONDS: Final = 5.0
_CANCEL_SLICES: Final = 100
"""For a fetch that was given up to end."""
_log = logging.getLogger("shufflestore")


@dataclass
class Fill:
    """Blocks that are fetched for a batch, which is read once they are kept."""

    batch: weakref.ref[CachedPending]
    """Gone if nobody wants it any more."""
    flow: CachedFlow | None
    fetch: Pending | None
    """None if all that the batch waits for was asked for by others before it."""
    blocks: list[int]
    """That were fetched, by their numbers in the store."""
    ranges: list[tuple[int, int, int, int]]
    """(file, offset, size, place in the fetched bytes)."""

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for the batch."""
        batch = self.batch()
        return batch is not None and not batch.is_cancelled


class Filler:
    """Takes fills in their order, keeps their blocks, and has their batches read. It waits for nobody but the store."""

    def __init__(self, keep: Callable[[Fill], None]) -> None:
        """Begin without a thread.

        Args:
            keep: Called for each fill whose fetch has ended, in this thread.
        """
        self._keep = keep
        self._queue: deque[Fill] = deque()
        self._some = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        _fillers.add(self)

    def add(self, fill: Fill) -> None:
        """Queue a fill. Raises ValueError after `stop`."""
        with self._some:
            if self._is_stopped:
                raise ValueError("the store is closed")
            self._queue.append(fill)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shufflestore-cache", daemon=True)
                self._thread.start()
            self._some.notify()

    def stop(self) -> None:
        """End what is under way and the thread. Idempotent."""
        with self._some:
            self._is_stopped = True
            self._some.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=_EXIT_SECONDS)

    def _run(self) -> None:
        while True:
            with self._some:
                if not self._queue and not self._is_stopped:
                    self._some.wait(timeout=_IDLE_SECONDS)
                if not self._queue:
                    self._thread = None
                    return
                fill = self._queue.popleft()
            self._work(fill)
            del fill

    def _work(self, fill: Fill) -> None:
        try:
            self._await(fill)
            self._keep(fill)
        except Exception:  # a fault of ours: the batch is read all the same, from the store
            _log.exception("blocks that came could not be kept")
        batch = fill.batch()
        if batch is not None and fill.flow is not None and not self._is_stopped:
            fill.flow.offer(batch)
        elif batch is not None:
            batch.start(None, None)

    def _await(self, fill: Fill) -> None:
        """Wait for a fetch, and give it up if nobody wants it any more."""
        patience = _CANCEL_SLICES
        while fill.fetch is not None and not fill.fetch.wait(SLICE_SECONDS):
            if self._is_stopped or not fill.is_wanted:
                fill.fetch.cancel()
                patience -= 1
                if not patience:
                    return


_fillers: weakref.WeakSet[Filler] = weakref.WeakSet()


def _stop_all() -> None:
    """At the end of the process: a thread that came back from a wait later would find no interpreter."""
    for filler in list(_fillers):
        filler.stop()


atexit.register(_stop_all)
