"""Batches of a cached store: where each read is done, and how far they run ahead."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import SUITABLE_BYTES, ZERO, Pending, ReadFailure, Store
from shufflestore.storage.cache_blocks import Blocks
from shufflestore.storage.descriptors import GROWS
from shufflestore.storage.process import briefly

__all__ = ["CachedFlow", "CachedPending", "SLICE_SECONDS", "Submission"]

SLICE_SECONDS: Final = 0.05
"""Between two looks for signals, or for a store that was closed."""


class Cached(Protocol):
    """What batches need of their store; `storage.cached.CachedStore` is the one that there is."""

    inner: Store
    """Where the bytes come from."""
    blocks: Blocks
    is_closed: bool

    @property
    def local(self) -> Store:
        """What is kept of them."""

    def read_here(self, reads: NDArray[np.void], sizes: NDArray[np.uint64], flow: Any) -> Pending:
        """Submit one batch of reads whose blocks are there."""

    def read_through(self, reads: NDArray[np.void], sizes: NDArray[np.uint64], flow: Any) -> Pending:
        """Submit one batch to the store behind."""

    def count_passed(self, count: int) -> None:
        """Take note of reads that the store does as they are."""

    def forget(self, read: np.void) -> None:
        """Drop the blocks under one read: they are not what the store has."""


class CachedFlow:
    """Bounds the look-ahead of one stream; see `storage.base.Store.flow`.

    Batches of a stream are read in four ways, each with a bound of its own: an epoch that fills the cache uses two of
    them, one that is read from it one. In each way batches come in the order in which they are taken, so none waits
    for one behind it.
    """

    def __init__(self, store: Cached, budget_bytes: int | None) -> None:
        """Remember the bound; None for what suits each way."""
        half = None if budget_bytes is None else budget_bytes // 2
        self._store = store
        self.local = store.local.flow(half)
        """Reads of what was there when they were submitted."""
        self.through = store.inner.flow(half)
        """Reads of what is not kept."""
        self.fetched = store.inner.flow(half)
        """Blocks on their way."""
        self._most = SUITABLE_BYTES if half is None else half
        self._filled = 0
        """Bytes of batches that waited for blocks, have started and were not taken."""
        self._waiting: deque[weakref.ref[CachedPending]] = deque()
        """Batches whose blocks have come."""
        self._dropped: deque[int] = deque()
        """Bytes of batches that the garbage collector took."""

    @property
    def budget_bytes(self) -> int:
        """The bound of `used_bytes`, as near as it is known."""
        return 2 * self._most

    @property
    def used_bytes(self) -> int:
        """Bytes of outputs that have started and were not taken."""
        parts = (self.local, self.through, self.fetched)
        return self._filled - sum(list(self._dropped)) + sum(getattr(part, "used_bytes", 0) for part in parts)

    def offer(self, batch: CachedPending) -> None:
        """Have a batch read whose blocks have come, as soon as there is room."""
        self._waiting.append(weakref.ref(batch))
        self.settle()

    def leave(self, size: int) -> None:
        """Give room back."""
        with briefly:
            self._filled -= size
        self.settle()

    def drop(self, size: int) -> None:
        """Give room back without any lock: the garbage collector may call this from a thread that holds one."""
        self._dropped.append(size)

    def settle(self) -> None:
        """Have those batches read for which there is room."""
        while (batch := self._next()) is not None:
            batch.start(None, None)

    def _next(self) -> CachedPending | None:
        with briefly:
            while self._dropped:
                self._filled -= self._dropped.popleft()
            while self._waiting:
                batch = self._waiting[0]()
                if batch is not None and not batch.is_cancelled:
                    is_full = self._filled and self._filled + batch.bytes > self._most
                    if is_full and not self._store.is_closed:  # else they all end, as failed
                        return None
                    self._filled += batch.bytes
                    batch.held_bytes = batch.bytes
                self._waiting.popleft()
                if batch is not None:
                    return batch
        return None


class Submission:
    """What the batches of one call of `submit` share."""

    def __init__(
        self,
        store: Cached,
        reads: NDArray[np.void],
        ends: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        flow: CachedFlow | None,
    ) -> None:
        """Keep what is to be read; see `storage.base.Store.submit`."""
        self.store, self.reads, self.sizes, self.flow = store, reads, sizes, flow
        self.bounds = [0, *ends.tolist()]


class CachedPending:
    """One batch; see `storage.base.Pending`. Dropped unread, it gives its room back.

    What is there is read from local files; what is not comes from the store, end to end, and is put in its slots when
    the batch is taken. A batch that local damage spoils is read from the store instead, as a whole.
    """

    # In the class, since most batches need no more than `_local`, and there are many.
    held_bytes = 0
    """That count in the flow until the batch is taken."""
    is_cancelled = False
    _rest: Pending | None = None
    _lacking: NDArray[np.int64] | None = None
    """Of the reads of `_rest`, where there is also `_local`: their indexes."""
    _failure: ReadFailure | None = None
    _is_claimed = False
    _is_over = False
    _ready: threading.Event | None = None
    """Set once reads were submitted, where that was not at once."""

    def __init__(self, submission: Submission, index: int, local: Pending | None = None) -> None:
        """Be the batch at an index.

        Args:
            submission: Of which.
            index: Which one.
            local: All of its bytes from local files, where they have been asked for; else see `start` and `expect`.
        """
        self._of, self._index = submission, index
        self._local = local
        if local is not None:
            self._is_claimed = True

    @property
    def reads(self) -> NDArray[np.void]:
        """(n,) of READ."""
        begin, end = self._of.bounds[self._index : self._index + 2]
        return self._of.reads[begin:end]

    @property
    def bytes(self) -> int:
        """Of all outputs."""
        return int(self._sizes.sum())

    @property
    def _sizes(self) -> NDArray[np.uint64]:
        sizes: NDArray[np.uint64] = self._of.sizes[self._index]
        return sizes

    # -- by the store --------------------------------------------------------------------------------

    def expect(self) -> None:
        """Get ready to be started later."""
        self._ready = threading.Event()

    def start(self, local_flow: Any, through_flow: Any) -> None:
        """Submit the reads, each where its bytes are now. Once; nothing after `cancel`."""
        if not self._claim():
            return
        try:
            self._submit(local_flow, through_flow)
        except Exception as cause:  # a fault of ours must end as an error of the batch, not as a hang
            self._fail(cause)
        if self.is_cancelled:
            self._cancel_parts()
        if self._ready is not None:
            self._ready.set()

    def _claim(self) -> bool:
        with briefly:
            was_claimed, self._is_claimed = self._is_claimed, True
        return not was_claimed

    def _submit(self, local_flow: Any, through_flow: Any) -> None:
        store, reads = self._of.store, self.reads
        held = store.blocks.held(reads)
        if held.all():
            self._local = store.read_here(reads, self._sizes, local_flow)
        elif not (held & (reads["op"] != ZERO)).any():
            store.count_passed(len(reads))
            self._rest = store.read_through(reads, self._sizes, through_flow)
        else:
            self._lacking = np.flatnonzero(~held)
            store.count_passed(len(self._lacking))
            rest = reads[self._lacking]
            lengths = rest["size"] * GROWS[rest["op"]]
            rest["slot"], rest["output"] = np.cumsum(lengths) - lengths, 0
            self._rest = store.read_through(rest, lengths.sum(keepdims=True), through_flow)
            self._local = store.read_here(reads[held], self._sizes, local_flow)

    def _fail(self, cause: Exception) -> None:
        kind = "closed" if self._of.store.is_closed else "remote"
        self._local = self._rest = None
        self._failure = ReadFailure(0, kind, 0, 0, 0, "" if kind == "closed" else f"{type(cause).__name__}: {cause}")

    # -- by whoever takes it -------------------------------------------------------------------------

    def wait(self, timeout_seconds: float) -> bool:
        """Return True once every read has ended, False when the time is over."""
        end = time.monotonic() + min(max(timeout_seconds, 0.0), threading.TIMEOUT_MAX)
        ready = self._ready
        while ready is not None and not ready.wait(min(max(end - time.monotonic(), 0.0), SLICE_SECONDS)):
            if self._of.flow is not None:
                self._of.flow.settle()  # room that the garbage collector has given back
            if time.monotonic() >= end:
                return False
        while not self._is_over:
            for part in (self._local, self._rest):
                if part is not None and not part.wait(max(end - time.monotonic(), 0.0)):
                    return False
            self._judge()
        return True

    def is_done(self) -> bool:
        """Whether every read has ended."""
        if self._is_over:
            return True
        if self._ready is not None and not self._ready.is_set():
            if self._of.flow is not None:
                self._of.flow.settle()
            return False
        if (self._local is None or self._local.is_done()) and (self._rest is None or self._rest.is_done()):
            self._judge()
        return self._is_over

    def _judge(self) -> None:
        """Settle the end of parts that are done; or have the store read what the local files have lost."""
        local = None if self._local is None else self._local.failure()
        rest = None if self._rest is None else self._rest.failure()
        if local is not None and not (local.kind in ("closed", "memory") or self.is_cancelled):
            held = self.reads if self._lacking is None else np.delete(self.reads, self._lacking)
            self._of.store.forget(held[local.index])
            self._local = self._rest = self._lacking = None
            try:
                self._of.store.count_passed(len(self.reads))
                self._rest = self._of.store.read_through(self.reads, self._sizes, None)
            except Exception as cause:
                self._fail(cause)
            return
        if rest is not None and self._lacking is not None:
            rest = ReadFailure(
                int(self._lacking[rest.index]), rest.kind, rest.errno, rest.expected, rest.found, rest.text
            )
        self._failure = self._failure or rest or local
        self._is_over = True

    def failure(self) -> ReadFailure | None:
        """Return what went wrong, once done. Raises ValueError before."""
        if not self._is_over and not self.is_done():
            raise ValueError("the batch is not done yet")
        return self._failure

    def take(self) -> list[NDArray[np.uint8]]:
        """Return the outputs, once. Raises ValueError if the batch is not done, failed, or was taken."""
        if self.failure() is not None:
            raise ValueError("the batch failed: it has no outputs")
        if self._rest is None and self._local is not None and not self.held_bytes:
            return self._local.take()
        outputs = [part.take() for part in (self._local, self._rest) if part is not None]
        if self._lacking is not None:
            self._put(outputs[0], outputs[1][0])
        self._leave()
        return outputs[0]

    def _put(self, outputs: list[NDArray[np.uint8]], came: NDArray[np.uint8]) -> None:
        """Put what came end to end from the store in its slots."""
        reads = self.reads[self._lacking]
        lengths = (reads["size"] * GROWS[reads["op"]]).tolist()
        at = 0
        for output, slot, length in zip(reads["output"].tolist(), reads["slot"].tolist(), lengths, strict=True):
            outputs[output][slot : slot + length] = came[at : at + length]
            at += length

    def cancel(self) -> None:
        """Start no further read."""
        self.is_cancelled = True
        if self._claim():  # it has not even started
            self._failure, self._is_over = ReadFailure(0, "closed", 0, 0, 0), True
            if self._ready is not None:
                self._ready.set()
        self._cancel_parts()
        self._leave()

    def _cancel_parts(self) -> None:
        for part in (self._local, self._rest):
            if part is not None:
                part.cancel()

    def _leave(self) -> None:
        with briefly:
            held, self.held_bytes = self.held_bytes, 0
        if held and self._of.flow is not None:
            self._of.flow.leave(held)

    def __del__(self) -> None:
        if self.held_bytes and self._of.flow is not None:
            self._of.flow.drop(self.held_bytes)
