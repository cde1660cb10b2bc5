"""Shared memory that brings batches out of worker processes and is used again, batch after batch.

torch makes a new segment for each tensor of each batch: the kernel zeroes its pages, both processes map and unmap
it, and its descriptor crosses a socket. Here a worker keeps its segments, the parent keeps them mapped, and a segment
goes back to the worker once nothing in the parent looks at its memory any more: no tensor, no view, no array.

A segment begins with a header of bytes that say, for each time that it was sent, whether the receiver is done with it.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from itertools import count
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, cast

import numpy as np
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info
from torch.utils.data._utils import collate
from torch.utils.data._utils.collate import collate_tensor_fn

__all__ = ["SegmentPool", "SegmentQueue", "SegmentTable"]

UInt8Array = np.ndarray[Any, np.dtype[np.uint8]]

_HEADER: Final = 64
"""Bytes before a segment's data, and how often it can be sent before it is free again."""
_INLINE: Final = 16384
"""Bytes up to which a tensor goes with the message itself: it takes no descriptor, and a pipe holds four of them."""
_LOOKS: Final = 8
"""Segments that are looked at for one that is free, at most."""
_LONG: Final = 64
"""A segment that so many requests had no use for goes."""
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
            memory: (HEADER + bytes,) uint8, the whole segment.
            turn: Which byte of the header is to be set afterwards; None in the worker, which looks at the lease itself.
        """
        self._memory, self._turn, self._fork = memory, turn, _forks
        self.__array_interface__ = memory[_HEADER:].__array_interface__

    def __del__(self) -> None:
        if self._turn is not None:
            self._memory[self._turn] = _RETURNED if self._fork == _forks else _FORFEITED


class SegmentTable:
    """The segments that an iterator's workers have sent, in the parent."""

    def __init__(self) -> None:
        """Begin with none."""
        self.number = next(_numbers)
        """By which workers address it."""
        self._memories: dict[tuple[int, int], UInt8Array] = {}
        _tables[self.number] = self

    def __len__(self) -> int:
        """Return how many segments are mapped."""
        return len(self._memories)

    def storage(
        self, worker: int, number: int, turn: int, whole: torch.Tensor | None, size: int, gone: tuple[int, ...]
    ) -> torch.UntypedStorage:
        """Return a segment's first `size` bytes of data, as a storage that gives the segment back when it ends."""
        for old in gone:
            self._memories.pop((worker, old), None)
        if whole is not None:
            self._memories[worker, number] = whole.numpy()
        return _storage(_Lease(self._memories[worker, number], turn), size)


class _Segment:
    """In the worker."""

    def __init__(self, number: int, capacity: int) -> None:
        self.number, self.capacity = number, capacity
        storage = torch.UntypedStorage._new_shared(_HEADER + capacity)  # type: ignore[no-untyped-call]  # as torch itself shares what it collates
        self.whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.memory: UInt8Array = self.whole.numpy()
        self.memory[:_HEADER] = _LENT
        self.address: int = self.memory[_HEADER:].__array_interface__["data"][0]
        """Of the data."""
        self.sent = 0
        self.is_known = False
        """To the parent."""
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
    """A worker's segments. Belongs to the process that made it; threads may take from it at once."""

    def __init__(self, table: int) -> None:
        """Begin with none.

        Args:
            table: The number of the parent's `SegmentTable`.
        """
        self._table = table
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._classes: dict[int, deque[_Segment]] = {}
        """By capacity."""
        self._by_address: dict[int, _Segment] = {}
        self._copied: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()
        """The user's storages that were copied and still live, by their address."""
        self._gone: list[int] = []
        """Numbers of segments that the parent may forget."""
        self._made = count()
        self._taken = 0

    def __len__(self) -> int:
        """Return how many segments there are."""
        return len(self._by_address)

    def take(self, size: int) -> torch.UntypedStorage:
        """Return shared memory of `size` bytes, at least 1; its content is whatever an earlier batch left there."""
        capacity = (1 << (_HEADER + size - 1).bit_length()) - _HEADER  # pages that are not used take no memory
        with self._lock:
            self._taken += 1
            if self._taken % _LONG == 0:
                self._drop_unused()
            segments = self._classes.setdefault(capacity, deque())
            for _ in range(min(_LOOKS, len(segments))):
                segments.rotate(-1)
                found = segments[-1]
                if found.is_free:
                    return _storage(found.lend(self._taken), size)
                if found.is_forfeited:
                    self._drop(found)
            made = _Segment(next(self._made), capacity)
            self._by_address[made.address] = made
            segments.append(made)
            return _storage(made.lend(self._taken), size)

    def _drop_unused(self) -> None:
        for segment in list(self._by_address.values()):
            if self._taken - segment.taken >= _LONG and segment.is_free:
                self._drop(segment)

    def _drop(self, segment: _Segment) -> None:
        self._classes[segment.capacity].remove(segment)
        del self._by_address[segment.address]
        if segment.is_known:
            self._gone.append(segment.number)

    def close(self) -> None:
        """Let go of all; what the parent has mapped stays its own. By name, too, where segments have names."""
        with self._lock:
            self._classes.clear()
            self._by_address.clear()

    def collate_tensor(self, batch: list[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
        """Stack as torch's `default_collate` does in a worker, into a segment if it is large."""
        first = batch[0]
        if self._process != os.getpid() or not _is_plain(first):
            return cast(torch.Tensor, collate_tensor_fn(batch, collate_fn_map=collate_fn_map))
        shape = (len(batch), *first.shape)
        size = len(batch) * first.numel() * first.element_size()
        out = torch.empty(0 if size > _INLINE else shape, dtype=first.dtype)
        if size > _INLINE:
            out.set_(self.take(size), 0, shape)  # type: ignore[call-overload]
        return torch.stack(batch, 0, out=out)

    def dumps(self, what: Any) -> bytes:
        """Pickle, with large tensors left in segments. Raises what pickling raises; no segment is lost then."""
        to = io.BytesIO()
        message = _Pickler(to, self, tuple(self._gone))
        try:
            message.dump(what)
        except BaseException:
            with self._lock:
                for segment in message.segments:  # the parent will not hear of them
                    if self._by_address.get(segment.address) is segment:
                        self._drop(segment)
            raise
        if message.segments:
            del self._gone[: len(message.gone)]
        return to.getvalue()

    def holding(self, storage: torch.UntypedStorage, used: int) -> _Segment | None:
        """Return the segment that has what a storage holds; None where torch has to send it.

        Args:
            storage: The user's; copied if it is in no segment, but once only: what the data set keeps and sends again is
                shared by torch for good, without any copy from then on.
            used: Bytes that are wanted of it. So is a large tensor of which only a few records are sent.
        """
        segment = self._by_address.get(storage.data_ptr())
        if segment is not None:
            return segment if segment.sent < _HEADER else None
        if storage.is_shared() or 2 * used < storage.nbytes():
            return None
        if self._copied.get(storage.data_ptr()) is storage:
            return None
        self._copied[storage.data_ptr()] = storage
        copy = self.take(storage.nbytes())
        copy.copy_(storage, False)
        return self._by_address[copy.data_ptr()]

    def address(self, segment: _Segment) -> tuple[Any, ...]:
        """Note that a segment is sent. Return what the parent finds it by."""
        whole = None if segment.is_known else segment.whole
        turn, segment.sent, segment.is_known = segment.sent, segment.sent + 1, True
        return self._table, self._process, segment.number, turn, whole


class _Pickler(ForkingPickler):
    """One message. Tensors that share memory do so where it arrives."""

    def __init__(self, to: io.BytesIO, pool: SegmentPool, gone: tuple[int, ...]) -> None:
        super().__init__(to)
        self._pool = pool
        self.gone = gone
        self.segments: list[_Segment] = []
        self._storages: dict[int, _Made] = {}
        """Those that were met, by their address; each is sent once."""
        self._kept: list[torch.Tensor] = []

    def reducer_override(self, what: Any) -> Any:
        """Return how the parent makes a tensor or an array; NotImplemented leaves it to torch, or to pickle."""
        if type(what) is np.ndarray:
            return self._array(what)
        if type(what) is not torch.Tensor or not _is_plain(what):
            return NotImplemented
        if what.is_conj() or what.is_neg():  # torch would lose that it is
            what = what.resolve_conj().resolve_neg()
            self._kept.append(what)
        storage = what.untyped_storage()
        made = self._storages.get(storage.data_ptr()) or self._made(storage, what.numel() * what.element_size())
        if made is None:
            return NotImplemented
        self._storages[storage.data_ptr()] = made
        return _view, (made, what.dtype, what.storage_offset(), what.shape, what.stride())

    def _made(self, storage: torch.UntypedStorage, used: int) -> _Made | None:
        size = storage.nbytes()
        if not size:
            return None
        if size <= _INLINE and not storage.is_shared():
            return _Made(_unpacked, bytearray(_bytes(storage)))
        segment = self._pool.holding(storage, used)
        return None if segment is None else self._sent(segment, size)

    def _sent(self, segment: _Segment, size: int) -> _Made:
        gone = () if self.segments else self.gone
        self.segments.append(segment)
        return _Made(_received, *self._pool.address(segment), size, gone)

    def _array(self, array: np.ndarray[Any, Any]) -> Any:
        if array.nbytes <= _INLINE or array.dtype.hasobject or not array.flags.c_contiguous:
            return NotImplemented
        copy = self._pool.take(array.nbytes)
        _bytes(copy)[:] = array.reshape(-1).view(np.uint8)
        segment = self._pool.holding(copy, array.nbytes)
        assert segment is not None, "it was just taken"
        return _array, (self._sent(segment, array.nbytes), array.dtype, array.shape)


class _Made:
    """Stands in a message for what the receiver makes by a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._how = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._how


class SegmentQueue:
    """A worker's queue of results, which leaves tensors in segments. Everything else is the queue's own."""

    def __init__(self, queue: Any, pool: SegmentPool) -> None:
        """Wrap, and let torch's `default_collate` stack into the pool, unless the user has put his own in its place."""
        self._queue, self._pool = queue, pool
        known = collate.default_collate_fn_map
        if known.get(torch.Tensor) is collate_tensor_fn:
            known[torch.Tensor] = pool.collate_tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def put(self, item: tuple[int, Any]) -> None:
        """Send (index, data). Data that cannot be pickled arrives as the error that says so, instead of never."""
        index, data = item
        try:
            message = self._pool.dumps(data)
        except Exception:
            info = get_worker_info()
            who = "" if info is None else f" {info.id}"
            where = f"in DataLoader worker process{who}, which cannot send the {type(data).__name__} that it made"
            message = self._pool.dumps(ExceptionWrapper(where=where))  # type: ignore[no-untyped-call]
        self._queue.put((index, _Made(ForkingPickler.loads, message)))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is nothing but numbers in memory; torch knows how to send all others."""
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_nested)
    )


def _storage(lease: _Lease, size: int) -> torch.UntypedStorage:
    return torch.frombuffer(np.asarray(lease), dtype=torch.uint8, count=size).untyped_storage()


def _received(
    table: int, worker: int, number: int, turn: int, whole: torch.Tensor | None, size: int, gone: tuple[int, ...]
) -> torch.UntypedStorage:
    """Find what a worker left in a segment."""
    return _tables[table].storage(worker, number, turn, whole, size, gone)


def _unpacked(content: bytearray) -> torch.UntypedStorage:
    """Take what came with the message."""
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()


def _view(
    storage: torch.UntypedStorage, dtype: torch.dtype, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def _array(storage: torch.UntypedStorage, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return _bytes(storage).view(dtype).reshape(shape)


def _bytes(storage: torch.UntypedStorage) -> UInt8Array:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
