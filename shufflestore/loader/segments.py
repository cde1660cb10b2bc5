"""Shared memory that brings batches out of worker processes (and into them) and is used again, batch after batch.

torch makes a new segment for each tensor of each batch: the kernel zeroes its pages, both processes map and unmap
it, and its descriptor crosses a socket. Here a sender keeps its segments, the receiver keeps them mapped, and a segment
goes back to the sender once nothing in the receiver looks at its memory any more: no tensor, no view, no array.

A segment begins with a header of bytes that say, for each time that it was sent, whether the receiver is done with it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from itertools import count
from typing import Any, Final, cast

import numpy as np
import torch
from torch.utils.data._utils import collate
from torch.utils.data._utils.collate import collate_tensor_fn

__all__ = ["INLINE", "Segment", "SegmentPool", "SegmentTable", "UInt8Array", "is_plain", "received"]

UInt8Array = np.ndarray[Any, np.dtype[np.uint8]]

_HEADER: Final = 64
"""Bytes before a segment's data, and how often it can be sent before it is free again."""
INLINE: Final = 16384
"""Bytes up to which a tensor goes with the message itself: it takes no descriptor, and a pipe holds four of them."""
_LOOKS: Final = 8
"""Segments that are looked at for one that is free, at most."""
_LONG: Final = 64
"""A segment that so many requests had no use for goes."""
_KEPT: Final = 64 << 20
"""Bytes from which a tensor is taken for what the data set keeps, if little of it is sent."""
_LENT, _RETURNED, _FORFEITED = 0, 1, 2
_tables: weakref.WeakValueDictionary[int, SegmentTable] = weakref.WeakValueDictionary()
_numbers = count()
_forks = 0
"""Begun and ended in this process. What was lent before a fork is seen by the child, too, and never used again; whichever
of the two ends first says so."""


def _note_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_note_fork, after_in_parent=_note_fork)


class _Lease:
    """Memory for as long as an array or a tensor over it lives; then the segment's header says so."""

    def __init__(self, memory: UInt8Array, turn: int | None) -> None:
        """Lend.

        Args:
            memory: (_HEADER + bytes,) uint8, the whole segment.
            turn: Which byte of the header is to be set afterwards; None at the sender, who looks at the lease itself.
        """
        self._memory, self._turn, self._fork = memory, turn, _forks
        self.__array_interface__ = memory[_HEADER:].__array_interface__

    def __del__(self) -> None:
        if self._turn is not None:
            self._memory[self._turn] = _RETURNED if self._fork == _forks else _FORFEITED


class SegmentTable:
    """The segments that were sent to this process by others."""

    def __init__(self, number: int | None = None) -> None:
        """Begin with none.

        Args:
            number: By which senders address it, one table of a process each; None for the next that is not taken.
        """
        self.number = next(_numbers) if number is None else number
        self._memories: dict[tuple[int, int], UInt8Array] = {}
        _tables[self.number] = self

    def __len__(self) -> int:
        """Return how many segments are mapped."""
        return len(self._memories)

    def storage(
        self, sender: int, number: int, turn: int, whole: torch.Tensor | None, size: int, gone: tuple[int, ...]
    ) -> torch.UntypedStorage:
        """Return a segment's first `size` bytes of data, as a storage that gives the segment back when it ends."""
        for old in gone:
            self._memories.pop((sender, old), None)
        if whole is not None:
            self._memories[sender, number] = whole.numpy()
        return _storage(_Lease(self._memories[sender, number], turn), size)


class Segment:
    """At the sender."""

    def __init__(self, number: int, capacity: int) -> None:
        self.number, self.capacity = number, capacity
        storage = torch.UntypedStorage._new_shared(_HEADER + capacity)  # type: ignore[no-untyped-call]
        self.whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.memory: UInt8Array = self.whole.numpy()
        self.memory[:_HEADER] = _LENT
        self.address: int = self.memory[_HEADER:].__array_interface__["data"][0]
        """Of the data."""
        self.sent = 0
        self.is_known = False
        """To the receiver."""
        self.taken, self._fork = 0, _forks
        self._lease: weakref.ref[_Lease] | None = None

    def lend(self, taken: int) -> _Lease:
        self.memory[: self.sent] = _LENT
        self.sent, self.taken, self._fork = 0, taken, _forks
        lease = _Lease(self.memory, None)
        self._lease = weakref.ref(lease)
        return lease

    @property
    def is_free(self) -> bool:
        unused = self._lease is None or self._lease() is None
        return unused and self._fork == _forks and bool((self.memory[: self.sent] == _RETURNED).all())

    @property
    def is_forfeited(self) -> bool:
        return self._fork != _forks or bool((self.memory[: self.sent] == _FORFEITED).any())


class SegmentPool:
    """A sender's segments, for one receiver. Belongs to the process that made it; threads may take from it at once."""

    def __init__(self, table: int) -> None:
        """Begin with none.

        Args:
            table: The number of the receiver's `SegmentTable`.
        """
        self._table = table
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._classes: dict[int, deque[Segment]] = {}
        """By capacity."""
        self._by_address: dict[int, Segment] = {}
        self._copied: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()
        """The user's storages that were copied and still live, by their address."""
        self._gone: list[int] = []
        """Numbers of segments that the receiver may forget."""
        self._made = count()
        self._taken = 0

    def __len__(self) -> int:
        """Return how many segments there are."""
        return len(self._by_address)

    def take(self, size: int) -> torch.UntypedStorage:
        """Return shared memory of `size` bytes, at least 1; its content is whatever an earlier batch left there."""
        step = 1 << ((_HEADER + size).bit_length() - 4)
        capacity = -(-(_HEADER + size) // step) * step - _HEADER  # of few kinds, with at most an eighth unused
        with self._lock:
            self._taken += 1
            if self._taken % _LONG == 0:
                self._drop_unused()
            for kind in sorted(self._classes):
                found = self._free(self._classes[kind]) if capacity <= kind <= 1.5 * capacity else None
                if found is not None:
                    return _storage(found.lend(self._taken), size)
            made = self._make(capacity)
            self._by_address[made.address] = made
            self._classes.setdefault(capacity, deque()).append(made)
            return _storage(made.lend(self._taken), size)

    def _free(self, segments: deque[Segment]) -> Segment | None:
        for _ in range(min(_LOOKS, len(segments))):
            segments.rotate(-1)
            if segments[-1].is_free:
                return segments[-1]
            if segments[-1].is_forfeited:
                self._drop(segments[-1])
        return None

    def _drop_unused(self) -> None:
        for segment in list(self._by_address.values()):
            if self._taken - segment.taken >= _LONG and segment.is_free:
                self._drop(segment)

    def _make(self, capacity: int) -> Segment:
        """Make another; idle ones, of other sizes, stay below what is in use, and go where there is no memory."""
        free = sorted((s for s in self._by_address.values() if s.is_free), key=lambda segment: segment.taken)
        idle = sum(segment.capacity for segment in free)
        in_use = sum(segment.capacity for segment in self._by_address.values()) - idle
        while free and idle > in_use:
            idle -= free[0].capacity
            self._drop(free.pop(0))
        try:
            return Segment(next(self._made), capacity)
        except (OSError, RuntimeError):
            if not free:
                raise
        for segment in free:
            self._drop(segment)
        return Segment(next(self._made), capacity)

    def _drop(self, segment: Segment) -> None:
        self._classes[segment.capacity].remove(segment)
        del self._by_address[segment.address]
        if segment.is_known:
            self._gone.append(segment.number)

    def close(self) -> None:
        """Let go of all, by name too where segments have names. What the receiver has mapped stays its own."""
        with self._lock:
            self._classes.clear()
            self._by_address.clear()

    def serve_default_collate(self) -> None:
        """Let torch's `default_collate` stack into segments, unless the user has put a rule of his own in its place."""
        known = collate.default_collate_fn_map
        if known.get(torch.Tensor) is collate_tensor_fn:
            known[torch.Tensor] = self.collate_tensor

    def collate_tensor(self, batch: list[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
        """Stack as torch's `default_collate` does in a worker, into a segment if it is large."""
        first = batch[0]
        if self._process != os.getpid() or not is_plain(first):
            return cast(torch.Tensor, collate_tensor_fn(batch, collate_fn_map=collate_fn_map))
        shape = (len(batch), *first.shape)
        size = len(batch) * first.numel() * first.element_size()
        out = torch.empty(0 if size > INLINE else shape, dtype=first.dtype)
        if size > INLINE:
            out.set_(self.take(size), 0, shape)  # type: ignore[call-overload]
        return torch.stack(batch, 0, out=out)

    def gone(self) -> tuple[int, ...]:
        """Return the numbers of segments that the receiver may forget; `told` once it has heard of them."""
        return tuple(self._gone)

    def told(self, count: int) -> None:
        """Note that the first `count` of those are known to the receiver."""
        del self._gone[:count]

    def lose(self, segments: list[Segment]) -> None:
        """Let go of segments in a message that was never sent: the receiver will not hear of them."""
        with self._lock:
            for segment in segments:
                if self._by_address.get(segment.address) is segment:
                    self._drop(segment)

    def holding(self, storage: torch.UntypedStorage) -> Segment | None:
        """Return the segment that a storage lies in, if it does and can be sent."""
        segment = self._by_address.get(storage.data_ptr())
        return None if segment is None or segment.sent == _HEADER else segment

    def note_copied(self, storage: torch.UntypedStorage) -> None:
        """Remember that a storage of the user's was copied, for as long as it lives."""
        self._copied[storage.data_ptr()] = storage

    def is_kept(self, storage: torch.UntypedStorage, used: int) -> bool:
        """Whether a storage belongs to the data set rather than to a batch: copied before, or large and little used."""
        was_copied = self._copied.get(storage.data_ptr()) is storage
        return was_copied or (storage.nbytes() > _KEPT and 2 * used < storage.nbytes())

    def address(self, segment: Segment) -> tuple[Any, ...]:
        """Note that a segment is sent, while something here still holds it. Return what the receiver finds it by."""
        whole = None if segment.is_known else segment.whole
        turn, segment.sent, segment.is_known = segment.sent, segment.sent + 1, True
        return self._table, self._process, segment.number, turn, whole


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is nothing but numbers in memory; torch knows how to send all others."""
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_nested)
    )


def _storage(lease: _Lease, size: int) -> torch.UntypedStorage:
    return torch.frombuffer(np.asarray(lease), dtype=torch.uint8, count=size).untyped_storage()


def received(
    table: int, sender: int, number: int, turn: int, whole: torch.Tensor | None, size: int, gone: tuple[int, ...]
) -> torch.UntypedStorage:
    """Return what was left in a segment; called by the receiver with what `address` gave the sender."""
    return _tables[table].storage(sender, number, turn, whole, size, gone)
