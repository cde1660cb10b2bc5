"""Batches of reads from an object store: which requests they need, their outputs, and how far they run ahead."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shufflestore._native import place
from shufflestore.storage.base import ZERO, ReadFailure
from shufflestore.storage.plan import plan
from shufflestore.storage.remote_client import Answer, RemoteOptions
from shufflestore.storage.remote_engine import GAVE_WAY
from shufflestore.storage.remote_requests import Request

__all__ = ["Batch", "Fetch", "Group", "RemoteFlow", "RemotePending", "groups_of"]

AHEAD_BYTES: Final = 64 << 20
"""Look-ahead of a stream that asked for none in particular."""
MOST_AHEAD_BYTES: Final = 256 << 20
"""The same where the records are so large that fewer bytes would not keep all requests busy."""
GROUPS_AHEAD: Final = 4
"""Groups of batches that share ranges, of which each has this part of the look-ahead."""
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
        self.waiting: deque[Group] = deque()

    @property
    def group_bytes(self) -> int:
        """The most of batches that start together: part of the bound, so that others are always under way."""
        return (AHEAD_BYTES if self._budget is None else self._budget) // GROUPS_AHEAD

    @property
    def budget_bytes(self) -> int:
        """The bound of `used_bytes`: the one asked for, else what suits."""
        if self._budget is not None:
            return self._budget
        return MOST_AHEAD_BYTES if self.outstanding < self._enough else AHEAD_BYTES

    def has_room(self, size: int) -> bool:
        """Whether batches of that many bytes may start."""
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


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Batches that start together, because ranges serve several of them."""

    batches: Sequence[Batch]
    requests: list[Request]
    bytes: int
    """Of all their outputs."""

    @property
    def is_over(self) -> bool:
        """Whether nobody wants any of it."""
        return all(batch.done.is_set() for batch in self.batches)


@dataclass(eq=False, slots=True)
class Part:
    """What one range holds for one batch."""

    batch: Batch
    indexes: NDArray[np.int64]
    """(n,) of the reads in the batch."""
    reads: NDArray[np.void]
    """(n,) of READ, contiguous, all of one object."""
    is_placed: bool = False
    """Whether all of it came and is in the batch's slots. Guarded by the request's claim."""
    found: tuple[int, int] | None = None
    """(index in `reads`, what was there) of a short read or a wrong checksum."""


class Reader(Protocol):
    """What batches need of their store's reader; `storage.remote_reader.Reader` is the one that there is."""

    options: RemoteOptions
    dropped: deque[Batch]
    """Batches that nobody can take any more, for `tidy`."""

    def get(self, number: int, offset: int, size: int) -> memoryview | Answer:
        """Return one range of an object, or why it did not come; one attempt, without any lock."""

    def known_size(self, number: int) -> int:
        """Return an object's length as far as it is known, else 0."""

    def settled(self, batch: Batch, delivered: int) -> None:
        """Count down a batch whose request has ended; the lock is held."""

    def ask_again(self, request: Request) -> None:
        """Send what takes the place of a request that failed; the lock is held."""

    def take(self, batch: Batch) -> list[NDArray[np.uint8]] | None:
        """Hand a batch's outputs over; None if they were before."""

    def cancel(self, batch: Batch) -> None:
        """End a batch as it is."""

    def tidy(self) -> None:
        """Give back the budget of batches that were dropped."""


class Fetch:
    """One range of one object, and what it holds for each batch that it serves."""

    __slots__ = ("number", "offset", "parts", "reader", "size")

    def __init__(self, reader: Reader, parts: Sequence[Part], offset: int, size: int) -> None:
        """Keep what is to be fetched, and for whom: at least one part, and [offset, offset + size) holds all reads."""
        self.reader = reader
        self.parts = parts
        self.number = int(parts[0].reads["file"][0])
        self.offset = offset
        self.size = size

    @property
    def is_wanted(self) -> bool:
        """Whether any of its batches is still under way."""
        return any(not part.batch.done.is_set() for part in self.parts)

    def perform(self, request: Request) -> Answer | None:
        """Fetch the range, check it, and copy what came into the slots."""
        came = self.reader.get(self.number, self.offset, self.size)
        if isinstance(came, Answer):
            if came.kind == "beyond":
                self._find_short()
            return came
        if not request.claim.acquire(blocking=False):
            return GAVE_WAY  # another copy is at work
        is_wanted = is_wrong = False
        for part in self.parts:
            outputs = part.batch.outputs
            if part.is_placed or outputs is None:
                continue
            is_wanted = True
            part.found = place(came, self.offset, part.reads.view(np.uint64).reshape(-1, 5), outputs)
            part.is_placed = part.found is None
            is_wrong = is_wrong or not part.is_placed
        if is_wanted and not is_wrong:
            return None
        request.claim.release()
        if not is_wanted:
            return GAVE_WAY
        return Answer("checksum", f"{len(came):,} bytes came, but not those that were written")

    def _find_short(self) -> None:
        """Note which reads pass the end of the object, and how much of each is there."""
        end = self.reader.known_size(self.number)
        for part in self.parts:
            ends = (part.reads["offset"] + part.reads["size"]).astype(np.int64)
            short = np.flatnonzero(ends > end)
            if len(short):
                part.found = int(short[0]), max(end - int(part.reads["offset"][short[0]]), 0)

    def settle(self, answer: Answer | None, attempts: int) -> None:
        """Count down the batches; the engine's lock is held. What is wrong with one's bytes does not fail another."""
        for part in self.parts:
            if part.batch.done.is_set():
                continue
            if answer is None or part.is_placed:
                self.reader.settled(part.batch, int(part.reads["size"].sum()))
            elif answer.kind == "beyond" and part.found is None and len(self.parts) > 1:
                self.reader.ask_again(self._alone(part))
            else:
                part.batch.fail(_failure(part, answer, f"{answer.text} ({attempts} attempts)"))
                self.reader.settled(part.batch, 0)

    def _alone(self, part: Part) -> Request:
        """Return a request for what one batch wants."""
        begin = int(part.reads["offset"].min())
        size = int((part.reads["offset"] + part.reads["size"]).max()) - begin
        request = Request(Fetch(self.reader, [part], begin, size), size)
        part.batch.requests.append(request)
        return request


def _failure(part: Part, answer: Answer, text: str) -> ReadFailure:
    position, found = part.found or (0, 0)
    index = int(part.indexes[position])
    if answer.kind == "checksum":
        return ReadFailure(index, "checksum", 0, int(part.reads["crc"][position]), found)
    if answer.kind == "beyond":
        return ReadFailure(index, "short", 0, int(part.reads["size"][position]), found)
    index = int(part.indexes[0])
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


def groups_of(
    reader: Reader,
    reads: NDArray[np.void],
    batches: Sequence[Batch],
    batch_of: NDArray[np.int64],
    most_bytes: int | None,
) -> list[Group]:
    """Return batches in groups of a size, with their requests: ranges of one object that lie near each other are one.

    Args:
        reader: Of the store.
        reads: (n,) of READ, of one batch after the other.
        batches: Theirs, without requests so far.
        batch_of: (n,) which of them each read belongs to; never falls.
        most_bytes: Outputs of a group, should it have more than one batch; None for one group.
    """
    first = np.searchsorted(batch_of, np.arange(len(batches)))
    zeros = np.flatnonzero((reads["op"] == ZERO) & (reads["size"] > 0))
    for batch, zero in zip(batch_of[zeros].tolist(), reads[zeros][["output", "slot", "size"]].tolist(), strict=True):
        batches[batch].zeros.append(zero)
    heads = _heads([batch.bytes for batch in batches], most_bytes)
    groups = [
        Group(batches[a:b], [], sum(batch.bytes for batch in batches[a:b])) for a, b in pairwise([*heads, len(batches)])
    ]
    planned = plan(
        reads, group_of=np.searchsorted(heads, batch_of, side="right"), gap_bytes=reader.options.gap_bytes,
        most_bytes=reader.options.most_bytes, most_waste=MOST_WASTE, block_bytes=1, file_sizes=None,
    )  # fmt: skip
    order, starts = planned.by_fetch()
    sorted_reads, number = reads[order], batch_of[order]
    indexes = order - first[number]
    # Within a fetch, reads come in the order of their batches: a part ends where the batch or the fetch does.
    is_head = np.ones(len(order), bool)
    is_head[1:] = number[1:] != number[:-1]
    is_head[starts[:-1]] = True
    bounds = np.flatnonzero(is_head)
    parts = [
        Part(batches[n], indexes[a:b], sorted_reads[a:b])
        for n, (a, b) in zip(number[bounds].tolist(), pairwise([*bounds.tolist(), len(order)]), strict=True)
    ]
    group_of = (np.searchsorted(heads, number[starts[:-1]], side="right") - 1).tolist()
    of_parts = pairwise(np.searchsorted(bounds, starts).tolist())
    spans = zip(planned.offset.tolist(), planned.size.tolist(), strict=True)
    for group, (a, b), (offset, size) in zip(group_of, of_parts, spans, strict=True):
        request = Request(Fetch(reader, parts[a:b], offset, size), size)
        groups[group].requests.append(request)
        for part in parts[a:b]:
            part.batch.requests.append(request)
    for batch in batches:
        batch.left = len(batch.requests)
    return groups


def _heads(sizes: Sequence[int], most_bytes: int | None) -> list[int]:
    """Return where groups begin that are as large as fits."""
    heads, total = [0] if sizes else [], 0
    for i, size in enumerate(sizes):
        if total and most_bytes is not None and total + size > most_bytes:
            heads.append(i)
            total = 0
        total += size
    return heads
