"""A user's transform in threads: batches keep their order, errors arrive where their batch would."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

__all__ = ["Transformed"]

T = TypeVar("T")
U = TypeVar("U")


_NOTHING: Final[deque[Future[Any]]] = deque()


class Transformed(Generic[T, U], Iterator[U]):
    """An iterator over `transform(item)`, so many items ahead as there are threads, plus one."""

    def __init__(self, items: Iterator[T], transform: Callable[[T], U], threads: int) -> None:
        self._items = items
        self._transform = transform
        self._pool = ThreadPoolExecutor(threads, "shufflestore-transform")
        self._ahead: deque[Future[U]] = deque()
        self._depth = threads + 1
        self._failure: BaseException | None = None
        self._ended = False

    def __iter__(self) -> Transformed[T, U]:
        return self

    def __next__(self) -> U:
        try:
            self._fill()
            if self._ahead:
                return self._made()
            failure, self._failure = self._failure, None
            self.close()
        except BaseException:  # also Ctrl-C anywhere in between: to go on would skip what was lost
            self._ahead, self._ended = _NOTHING, True  # no call, which a second Ctrl-C could keep from being made
            self.close()
            raise
        if failure is not None:
            raise failure
        raise StopIteration

    def _made(self) -> U:
        try:
            return self._ahead.popleft().result()  # no deadline: the user's own code
        except StopIteration as cause:  # must not pass for the end of the data
            raise RuntimeError("the transform raised StopIteration") from cause

    def _fill(self) -> None:
        """Take further items; an error among them waits for its turn, behind the batches before it."""
        while not self._ended and len(self._ahead) < self._depth:
            try:
                item = next(self._items)
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._failure, self._ended = error, True
            else:
                self._ahead.append(self._pool.submit(self._transform, item))

    def close(self) -> None:
        """Start no further item. Idempotent; what runs is not waited for."""
        self._ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ahead.clear()
        closing = getattr(self._items, "close", None)
        if closing is not None:
            closing()
