"""Batches of reads from an object store: which requests they need, their outputs, and how far they run ahead."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore._native import place
from shufflestore.storage.base import ZERO, ReadFailure
from shufflestore.storage.plan import plan
from shufflestore.storage.remote_client import Answer
from shufflestore.storage.remote_engine import GAVE_WAY
from shufflestore.storage.remote_requests import Request

if TYPE_CHECKING:
    from shufflestore.storage.remote_reader import Reader

__all__ = ["Batch", "Fetch", "RemoteFlow", "RemotePending", "requests_of"]

AHEAD_BYTES: Final = 64 << 20
"""Look-ahead of a stream that asked for none in particular."""
MOST_AHEAD_BYTES: Final = 256 << 20
"""The same where the records are so large that fewer bytes would not keep all requests busy."""
MOST_WASTE: Final = 8.0
"""Bytes fetched for a byte used: reads that lie near each other are one request only where it costs no more than this."""


class RemoteFlow:
    """Bounds the look-ahead of one stream of batches; see `storage.base.Store.flow`. The engine's lock guards it."""

    def __init__(self, budget_bytes: int | None, max_in_flight: int) -> None:
        """Remember the bound; None for what keeps so many requests busy."""
        self._budget = budget_bytes
        self._enough = 2 * max_in_flight
        self.used_bytes = 0
        """Bytes of outputs that have started and were not taken."""
        self.outstanding = 0
        """Requests of batches that have started."""
        self.waiting: deque[Batch] = deque()

    @property
    def budget_bytes(self) -> int:
        """The bound of `used_bytes`: the one asked for, else what suits."""
        if self._budget is not None:
            return self._budget
        return MOST_AHEAD_BYTES if self.outstanding < self._enough else AHEAD_BYTES

    def has_room(self, size: int) -> bool:
        """Whether a batch of that many bytes may start."""
        return not self.used_bytes or self.used_bytes + size <= self.budget_bytes


class Batch:
    """One submitted batch. The engine's lock guards all but `outputs`, whose slots belong to the requests."""

    __slots__ = ("bytes", "done", "failure", "flow", "has_started", "left", "outputs", "requests", "sizes", "zeros")

    def __init__(self, sizes: Sequence[int], flow: RemoteFlow | None) -> None:
        self.sizes = sizes
        self.bytes = sum(sizes)
        self.flow = flow
        self.requests: list[Request] = []
        self.zeros: list[tuple[int, int, int]] = []
        """(output, slot, size) of what is filled with zeros."""
        self.left = 0
        self.outputs: list[NDArray[np.uint8]] | None = None
        self.failure: ReadFailure | None = None
        self.has_started = False
        self.done = threading.Event()

    def allocate(self) -> bool:
        """Make the outputs; False where there is no memory for them."""
        try:
            outputs = [np.empty(size, np.uint8) for size in self.sizes]
        except (MemoryError, ValueError):  # numpy's word for a size beyond the address space is ValueError
            self.failure = ReadFailure(0, "memory", 0, max(self.sizes), 0)
            return False
        for output, slot, size in self.zeros:
            outputs[output][slot : slot + size] = 0
        self.outputs = outputs
        return True

    def fail(self, failure: ReadFailure) -> None:
        """Keep the failure of the read with the lowest index."""
        if self.failure is None or failure.index < self.failure.index:
            self.failure = failure


class Fetch:
    """One range of one object, and the reads of a batch that it serves."""

    __slots__ = ("batch", "found", "indexes", "number", "offset", "reader", "reads", "size")

    def __init__(
        self,
        reader: Reader,
        batch: Batch,
        indexes: NDArray[np.int64],
        reads: NDArray[np.void],
        span: tuple[int, int],
    ) -> None:
        """Keep what is to be fetched, and for whom.

        Args:
            reader: Of the store.
            batch: Whose reads they are.
            indexes: (n,) of the reads in the batch.
            reads: (n,) of READ, contiguous, all of one object.
            span: (offset, size) in it that holds them all.
        """
        self.reader = reader
        self.batch = batch
        self.indexes = indexes
        self.reads = reads
        self.number = int(reads["file"][0])
        self.offset, self.size = span
        self.found: tuple[int, int] = (0, 0)
        """(index in `reads`, what was there) of a short read or a wrong checksum."""

    def perform(self, request: Request) -> Answer | None:
        """Fetch the range, check it, and copy what came into the slots."""
        came = self.reader.get(self.number, self.offset, self.size)
        if isinstance(came, Answer):
            if came.kind == "beyond":
                self._find_short()
            return came
        outputs = self.batch.outputs
        if outputs is None or not request.claim.acquire(blocking=False):
            return GAVE_WAY  # nobody wants it any more, or another copy is at work
        rows = self.reads.view(np.uint64).reshape(-1, 5)
        wrong = place(came, self.offset, rows, outputs)
        if wrong is None:
            return None
        self.found = wrong
        request.claim.release()
        return Answer("checksum", f"{len(came):,} bytes came, but not those that were written")

    def _find_short(self) -> None:
        """Note which read passes the end of the object, and how much of it is there."""
        end = self.reader.known_size(self.number)
        for position, (offset, size) in enumerate(self.reads[["offset", "size"]].tolist()):
            if offset + size > end:
                self.found = position, max(end - offset, 0)
                return

    def settle(self, answer: Answer | None, attempts: int) -> None:
        """Count down the batch; the engine's lock is held."""
        if answer is not None:
            self.batch.fail(self._failure(answer, f"{answer.text} ({attempts} attempts)"))
        self.reader.settled(self.batch, int(self.reads["size"].sum()) if answer is None else 0)

    def _failure(self, answer: Answer, text: str) -> ReadFailure:
        position, found = self.found
        index = int(self.indexes[position])
        if answer.kind == "checksum":
            return ReadFailure(index, "checksum", 0, int(self.reads["crc"][position]), found)
        if answer.kind == "beyond":
            return ReadFailure(index, "short", 0, int(self.reads["size"][position]), found)
        index = int(self.indexes[0])
        if answer.kind == "missing":
            return ReadFailure(index, "errno", errno.ENOENT, 0, 0, text)
        if answer.kind in ("changed", "closed"):
            return ReadFailure(index, answer.kind, 0, 0, 0, text)
        return ReadFailure(index, "remote", 0, 0, 0, text)


class RemotePending:
    """One submitted batch; see `storage.base.Pending`. Dropped unread, it is cancelled."""

    __slots__ = ("_batch", "_reader")

    def __init__(self, batch: Batch, reader: Reader) -> None:
        """Stand for a batch, and keep alive the reader that fills it."""
        self._batch = batch
        self._reader = reader

    def wait(self, timeout_seconds: float) -> bool:
        """Return True once every read has ended, False when the time is over."""
        if self._batch.done.is_set():
            return True
        self._reader.tidy()
        return self._batch.done.wait(timeout=min(max(timeout_seconds, 0.0), threading.TIMEOUT_MAX))

    def is_done(self) -> bool:
        """Whether every read has ended."""
        return self._batch.done.is_set()

    def failure(self) -> ReadFailure | None:
        """Return what went wrong, once done. Raises ValueError before."""
        if not self._batch.done.is_set():
            raise ValueError("the batch is not done yet")
        return self._batch.failure

    def take(self) -> list[NDArray[np.uint8]]:
        """Return the outputs, once. Raises ValueError if the batch is not done, failed, or was taken."""
        if self.failure() is not None:
            raise ValueError("the batch failed: it has no outputs")
        outputs = self._reader.take(self._batch)
        if outputs is None:
            raise ValueError("the outputs were taken before")
        return outputs

    def cancel(self) -> None:
        """Start no further read."""
        self._reader.cancel(self._batch)

    def __del__(self) -> None:
        # No lock: the garbage collector may be at work in a thread that holds it.
        self._reader.dropped.append(self._batch)


def requests_of(reader: Reader, reads: NDArray[np.void], batches: Sequence[Batch], batch_of: NDArray[np.int64]) -> None:
    """Give each batch its requests: ranges of one object that lie near each other are one."""
    first = np.searchsorted(batch_of, np.arange(len(batches)))
    zeros = np.flatnonzero((reads["op"] == ZERO) & (reads["size"] > 0))
    for batch, zero in zip(batch_of[zeros].tolist(), reads[zeros][["output", "slot", "size"]].tolist(), strict=True):
        batches[batch].zeros.append(zero)
    planned = plan(
        reads, group_of=batch_of, gap_bytes=reader.options.gap_bytes, most_bytes=reader.options.most_bytes,
        most_waste=MOST_WASTE, block_bytes=1, file_sizes=None,
    )  # fmt: skip
    order, starts = planned.by_fetch()
    sorted_reads, number = reads[order], batch_of[order]
    indexes = order - first[number]
    spans = zip(planned.offset.tolist(), planned.size.tolist(), strict=True)
    for (begin, end), span in zip(pairwise(starts.tolist()), spans, strict=True):
        batch = batches[number[begin]]
        fetch = Fetch(reader, batch, indexes[begin:end], sorted_reads[begin:end], span)
        batch.requests.append(Request(fetch, span[1]))
    for batch in batches:
        batch.left = len(batch.requests)
