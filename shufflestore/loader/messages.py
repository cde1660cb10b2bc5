"""Messages between a loader and its worker processes: pickled, with large tensors and arrays left in segments."""

from __future__ import annotations

import io
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from shufflestore.loader.segments import INLINE, Segment, SegmentPool, UInt8Array, is_plain, received

__all__ = ["ResultQueue", "SegmentQueue", "dumps"]


class SegmentQueue:
    """A queue into which large tensors are put by their segments. Everything else is the queue's own."""

    def __init__(self, queue: Any, pool: SegmentPool) -> None:
        """Wrap the sender's end."""
        self._queue, self._pool = queue, pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def put(self, item: Any) -> None:
        """Send. Raises here, not in a thread of its own, what pickling raises."""
        self._queue.put(_Made(ForkingPickler.loads, dumps(item, self._pool)))


class ResultQueue(SegmentQueue):
    """A worker's queue of results. What cannot be pickled arrives as the error that says so, instead of never."""

    def put(self, item: tuple[Any, Any]) -> None:
        """Send (index, data)."""
        try:
            super().put(item)
        except Exception:
            info = get_worker_info()
            who = "" if info is None else f" {info.id}"
            where = f"in DataLoader worker process{who}, which cannot send the {type(item[1]).__name__} that it made"
            super().put((item[0], ExceptionWrapper(where=where)))  # type: ignore[no-untyped-call]


def dumps(what: Any, pool: SegmentPool) -> bytes:
    """Pickle, with large tensors left in segments. Raises what pickling raises; no segment is lost then."""
    to = io.BytesIO()
    message = _Pickler(to, pool)
    try:
        message.dump(what)
    except BaseException:
        pool.lose(message.segments)
        raise
    if message.segments:
        pool.told(len(message.gone))
    return to.getvalue()


class _Pickler(ForkingPickler):
    """One message. Tensors that share memory do so where it arrives."""

    def __init__(self, to: io.BytesIO, pool: SegmentPool) -> None:
        super().__init__(to)
        self._pool = pool
        self.gone = pool.gone()
        self.segments: list[Segment] = []
        self._storages: dict[int, _Made] = {}
        """Those that were met, by their address; each is sent once."""
        self._kept: list[torch.Tensor] = []

    def reducer_override(self, what: Any) -> Any:
        """Return how the receiver makes a tensor or an array; NotImplemented leaves it to torch, or to pickle."""
        if type(what) is np.ndarray:
            return self._array(what)
        if type(what) is not torch.Tensor or not is_plain(what):
            return NotImplemented
        if what.is_conj() or what.is_neg():  # torch would lose that it is
            what = what.resolve_conj().resolve_neg()
            self._kept.append(what)
        storage = what.untyped_storage()
        made = self._storages.get(storage.data_ptr())
        if made is None:
            used = what.numel() * what.element_size()
            made = self._made(storage, used)
            if made is None and 0 < used <= INLINE and not storage.is_shared():  # a record of what the data set keeps
                what = what.clone()
                return _view, (_inline(what.untyped_storage()), what.dtype, 0, what.shape, what.stride())
        if made is None:
            return NotImplemented
        self._storages[storage.data_ptr()] = made
        return _view, (made, what.dtype, what.storage_offset(), what.shape, what.stride())

    def _made(self, storage: torch.UntypedStorage, used: int) -> _Made | None:
        """Return how the receiver makes a storage; None where torch has to send it, and then shares it for good."""
        size = storage.nbytes()
        if not size or storage.is_shared():
            return None
        if size <= INLINE:
            return _inline(storage)
        segment = self._pool.holding(storage)
        if segment is not None:
            return self._sent(segment, size)
        if self._pool.is_kept(storage, used):
            return None
        self._pool.note_copied(storage)
        return self._copied(_bytes(storage))

    def _copied(self, content: UInt8Array) -> _Made:
        copy = self._pool.take(content.nbytes)
        _bytes(copy)[:] = content
        segment = self._pool.holding(copy)
        assert segment is not None, "it was just taken"
        return self._sent(segment, content.nbytes)  # before `copy` ends: until it is sent nothing else holds it

    def _sent(self, segment: Segment, size: int) -> _Made:
        gone = () if self.segments else self.gone
        self.segments.append(segment)
        return _Made(received, *self._pool.address(segment), size, gone)

    def _array(self, array: np.ndarray[Any, Any]) -> Any:
        if array.nbytes <= INLINE or array.dtype.hasobject or not array.flags.c_contiguous:
            return NotImplemented
        return _array, (self._copied(array.reshape(-1).view(np.uint8)), array.dtype, array.shape)


class _Made:
    """Stands in a message for what the receiver makes by a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._how = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._how


def _inline(storage: torch.UntypedStorage) -> _Made:
    return _Made(_unpacked, bytearray(_bytes(storage)))


def _unpacked(content: bytearray) -> torch.UntypedStorage:
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()


def _view(
    storage: torch.UntypedStorage, dtype: torch.dtype, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def _array(storage: torch.UntypedStorage, dtype: Any, shape: tuple[int, ...]) -> Any:
    return _bytes(storage).view(dtype).reshape(shape)


def _bytes(storage: torch.UntypedStorage) -> UInt8Array:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
