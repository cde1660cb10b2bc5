"""Batches of a cached store: how far they run ahead, and where each is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import READ, SUITABLE_BYTES, Pending, ReadFailure
from shufflestore.storage.plan import plan

if TYPE_CHECKING:
    from shufflestore.storage.cached import CachedStore

__all__ = ["CachedFlow", "CachedPending", "Failed", "reads_of_blocks"]

_SLICE_SECONDS: Final = 0.05
"""Between two looks for signals."""
_MOST_BYTES: Final = 8 << 20
"""Neighbouring blocks fetched by one read of the store."""
_ready_lock = threading.RLock()
"""Held for moments, by whoever makes or sets the event of a batch."""


class CachedFlow:
    """Bounds the look-ahead of one stream; see `storage.base.Store.flow`."""

    def __init__(self, store: CachedStore, budget_bytes: int | None) -> None:
        self.local = store.local.flow(budget_bytes)
        """Of batches that were there."""
        self.through = store.inner.flow(budget_bytes)
        """Of batches that are not kept."""
        self.fetched = store.inner.flow(budget_bytes)
        """Of blocks on their way."""
        self._filled = 0
        self._changed = threading.Condition(threading.RLock())

    @property
    def budget_bytes(self) -> int:
        """The bound of what was filled from blocks that came, and was not taken."""
        return self.local.budget_bytes or SUITABLE_BYTES

    @property
    def used_bytes(self) -> int:
        """Bytes of outputs that have started and were not taken."""
        return self._filled + self.local.used_bytes

    def enter(self, size: int, is_wanted: Any) -> None:
        """Wait for room for a batch. Batches come in the order in which they are taken, so there will be some."""
        with self._changed:
            while self._filled and self._filled + size > self.budget_bytes and is_wanted():
                self._changed.wait(_SLICE_SECONDS)
            self._filled += size

    def leave(self, size: int) -> None:
        """Give room back."""
        with self._changed:
            self._filled -= size
            self._changed.notify_all()


class CachedPending:
    """One batch; see `storage.base.Pending`. A batch that local damage spoils is read again from the store."""

    __slots__ = (
        "__weakref__", "_held", "_inner", "_is_local", "_is_sound", "_ready", "blocks", "fetch", "flow", "is_cancelled", "ranges",
        "reads", "sizes", "store",
    )  # fmt: skip

    def __init__(self, store: CachedStore, reads: NDArray[np.void], sizes: NDArray[np.uint64], flow: Any) -> None:
        self.store, self.reads, self.sizes, self.flow = store, reads, sizes, flow
        self.blocks: list[tuple[int, int]] = []
        """(file, block) that this batch has fetched."""
        self.fetch: Pending | None = None
        self.ranges: list[tuple[int, int, int, int]] = []
        """(file, offset, size, place in the fetched bytes)."""
        self.is_cancelled = False
        self._is_sound = False
        """Whether it is known to have ended well."""
        self._inner: Pending | None = None
        self._is_local = False
        self._held = 0
        self._ready: threading.Event | None = None
        """Set by `become`, where somebody waits for that."""

    def become(self, pending: Pending, is_local: bool, held: int = 0) -> None:
        """Be that batch from now on; `held` bytes count in the flow until it is taken."""
        self._inner, self._is_local, self._held = pending, is_local, held
        if self.is_cancelled:
            pending.cancel()
        with _ready_lock:
            if self._ready is not None:
                self._ready.set()

    def _event(self) -> threading.Event:
        with _ready_lock:
            if self._ready is None:
                self._ready = threading.Event()
                if self._inner is not None:
                    self._ready.set()
            return self._ready

    def wait(self, timeout_seconds: float) -> bool:
        """Return True once every read has ended, False when the time is over."""
        end = time.monotonic() + min(max(timeout_seconds, 0.0), threading.TIMEOUT_MAX)
        while self._inner is None and not self._event().wait(min(max(end - time.monotonic(), 0.0), _SLICE_SECONDS)):
            if time.monotonic() >= end:
                return False
        while True:
            assert self._inner is not None, "it is ready"
            if not self._inner.wait(max(end - time.monotonic(), 0.0)):
                return False
            if not self._heal():
                return True

    def is_done(self) -> bool:
        """Whether every read has ended."""
        return self._is_sound or (self._inner is not None and self._inner.is_done() and not self._heal())

    def _heal(self) -> bool:
        """Have a batch that failed on local files read from the store instead; False if there is no need."""
        inner = self._inner
        assert inner is not None, "it is ready"
        failure = inner.failure() if self._is_local else None
        self._is_sound = self._is_local and failure is None
        if failure is None or failure.kind in ("closed", "memory") or self.is_cancelled:
            return False
        self.store.forget(self.reads[failure.index])
        self.become(self.store.pass_through(self.reads, self.sizes, None), is_local=False, held=self._held)
        return True

    def failure(self) -> ReadFailure | None:
        """Return what went wrong, once done. Raises ValueError before."""
        if self._inner is None or not self.is_done():
            raise ValueError("the batch is not done yet")
        return self._inner.failure()

    def take(self) -> list[NDArray[np.uint8]]:
        """Return the outputs, once. Raises ValueError if the batch is not done, failed, or was taken."""
        if not self._is_sound and self.failure() is not None:
            raise ValueError("the batch failed: it has no outputs")
        assert self._inner is not None, "it is done"
        outputs = self._inner.take()
        self._leave()
        return outputs

    def cancel(self) -> None:
        """Start no further read."""
        self.is_cancelled = True
        if self._inner is not None:
            self._inner.cancel()
        self._leave()

    def _leave(self) -> None:
        held, self._held = self._held, 0
        if held and self.flow is not None:
            self.flow.leave(held)

    def __del__(self) -> None:
        self.is_cancelled = True
        self._leave()


def reads_of_blocks(
    blocks: Sequence[tuple[int, int]], sizes: Sequence[int], block_bytes: int
) -> tuple[NDArray[np.void], list[tuple[int, int, int, int]]]:
    """Return the reads that fetch blocks end to end, neighbours together, and (file, offset, size, slot) of each.

    Args:
        blocks: (file, block) pairs.
        sizes: Length of each file.
        block_bytes: Of a block.
    """
    asked = np.zeros(len(blocks), READ)
    asked["file"] = [file for file, _ in blocks]
    asked["offset"] = starts = np.array([block for _, block in blocks], np.int64) * block_bytes
    ends = np.array([sizes[file] for file, _ in blocks], np.int64)
    asked["size"] = np.minimum(starts + block_bytes, ends) - starts
    made = plan(
        asked, group_of=None, gap_bytes=0, most_bytes=_MOST_BYTES, most_waste=1.0, block_bytes=1, file_sizes=None
    )
    reads = np.zeros(len(made), READ)
    reads["file"], reads["offset"], reads["size"] = made.file, made.offset, made.size
    reads["slot"] = slots = np.cumsum(made.size) - made.size
    ranges = zip(made.file.tolist(), made.offset.tolist(), made.size.tolist(), slots.tolist(), strict=True)
    return reads, list(ranges)


class Failed:
    """A batch that could not even be asked for."""

    def __init__(self, cause: Exception) -> None:
        """Keep why."""
        self._cause = cause

    def wait(self, timeout_seconds: float) -> bool:
        """Return True: it is over."""
        return True

    def is_done(self) -> bool:
        """Return True."""
        return True

    def failure(self) -> ReadFailure | None:
        """Say that the store was closed, which is the only way to get here."""
        return ReadFailure(0, "closed", 0, 0, 0, str(self._cause))

    def take(self) -> list[NDArray[np.uint8]]:
        """Raise ValueError."""
        raise ValueError("the batch failed: it has no outputs")

    def cancel(self) -> None:
        """Do nothing."""
