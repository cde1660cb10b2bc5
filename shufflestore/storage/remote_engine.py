"""The threads that send a store's requests, as its schedule says.

Threads with blocking calls: measured against an event loop over the same client they bring as many requests a second
for half of the processor's time (docs/design/object_stores.md).
"""

from __future__ import annotations

import atexit
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from shufflestore.errors import StorageError
from shufflestore.storage.remote_client import Answer, RemoteOptions
from shufflestore.storage.remote_requests import IDLE_SECONDS, Request, Schedule

__all__ = ["Engine", "GAVE_WAY", "Work", "call"]

GAVE_WAY: Final = Answer("gave way", "another copy's bytes are being used")
"""What `Work.perform` returns where another copy of the request was quicker."""
THREADS_A_REQUEST: Final = 4
"""Threads, for one request that may be in flight: one whose answer no longer matters still waits for it."""
GRAIN_SECONDS: Final = 0.005
"""Hedges and retries may come so much late, so that nobody wakes for each of them."""
_NEVER: Final = float("inf")
EXIT_SECONDS: Final = 1.0
"""At the end of the process, for requests under way to end."""


class Work(Protocol):
    """What a request is for."""

    def perform(self, request: Request) -> Answer | None:
        """Send it and use what comes, without any lock held. None for success, or GAVE_WAY.

        Must take `request.claim` before anything is written that others see, and let go of it on failure.
        """

    def settle(self, answer: Answer | None, attempts: int) -> None:
        """Take note of the end, the engine's lock held: None, or why the request is lost."""


class Engine:
    """Sends requests by threads that start when there is work and end when there has been none for a minute."""

    def __init__(self, options: RemoteOptions) -> None:
        """Begin without threads."""
        self.schedule = Schedule(options, random.Random().uniform)
        self.lock = threading.Condition(threading.Lock())
        """Guards the schedule and whatever `settle` changes."""
        self._most_threads = THREADS_A_REQUEST * options.max_in_flight + 1
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._watched_until = _NEVER
        """Some idle thread looks again by then."""
        self._is_stopped = False
        self._process = os.getpid()
        _engines.add(self)

    def add(self, requests: Sequence[Request], *, is_urgent: bool = False) -> None:
        """Queue requests. The lock must be held."""
        if self._is_stopped:
            for request in requests:
                request.is_done = True
                request.work.settle(Answer("closed", "the store was closed"), 0)
        elif requests:
            self.schedule.add(requests, is_urgent=is_urgent)
            self._wake_one()

    def stop(self) -> None:
        """Send nothing more and wait a moment for what is under way. Idempotent; nothing in a forked child."""
        if self._process != os.getpid():
            return
        with self.lock:
            self._is_stopped = True
            self.schedule.clear()
            self.lock.notify_all()
            threads = list(self._threads)
        end = time.monotonic() + EXIT_SECONDS
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=max(end - time.monotonic(), 0.0))

    def let_go(self) -> None:
        """Stop without waiting, nor for the lock: the garbage collector may call this from a thread that holds it."""
        self._is_stopped = True
        if self._process == os.getpid() and self.lock.acquire(blocking=False):
            try:
                self.lock.notify_all()
            finally:
                self.lock.release()

    def _wake_one(self) -> None:
        """Have one more thread look for work. The lock must be held."""
        if self._idle:
            self.lock.notify()
        elif len(self._threads) < self._most_threads and not self._is_stopped:
            thread = threading.Thread(target=self._run, name="shufflestore-remote", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had: those that there are do the work
                self._threads.discard(thread)

    def _run(self) -> None:
        request: Request | None = None
        answer: Answer | None = None
        seconds = 0.0
        while True:
            with self.lock:
                if request is not None:
                    self._note(request, answer, seconds)
                request = self._wait_for_next()
                if request is None:
                    self._threads.discard(threading.current_thread())
                    return
            begun = time.monotonic()
            try:
                answer = request.work.perform(request)
            except BaseException as cause:  # a fault of ours must end as an error of the batch, not as a hang
                answer = Answer("fatal", f"{type(cause).__name__}: {cause}")
            seconds = time.monotonic() - begun

    def _note(self, request: Request, answer: Answer | None, seconds: float) -> None:
        if answer is None:
            if self.schedule.succeeded(request, seconds):
                request.work.settle(None, request.attempts)
        elif answer is GAVE_WAY:
            self.schedule.gave_way(request)
        elif self.schedule.failed(request, answer, time.monotonic()):
            request.work.settle(answer, request.attempts)

    def _wait_for_next(self) -> Request | None:
        """Return the next request to send; None when this thread is to end."""
        while not self._is_stopped:
            now = time.monotonic()
            request, seconds = self.schedule.next(now)
            for lost in self._expired():
                lost.work.settle(lost.answer, lost.attempts)
            if request is not None:
                # Hands on: the next thread finds more to send, or watches over what is due.
                if self.schedule.has_more or not self._idle or self._is_unwatched():
                    self._wake_one()
                return request
            seconds = max(seconds, GRAIN_SECONDS)
            is_watch = now + seconds < self._watched_until
            if is_watch:
                self._watched_until = now + seconds
            self._idle += 1
            was_notified = self.lock.wait(timeout=seconds if is_watch else IDLE_SECONDS)
            self._idle -= 1
            if is_watch:
                self._watched_until = _NEVER
            elif not was_notified:
                return None
        return None

    def _is_unwatched(self) -> bool:
        """Whether something is due clearly before any idle thread looks again."""
        return self.schedule.next_event + GRAIN_SECONDS < self._watched_until

    def _expired(self) -> list[Request]:
        if not self.schedule.expired:
            return []
        expired, self.schedule.expired = self.schedule.expired, []
        return expired


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _stop_all() -> None:
    """At the end of the process: a thread that came back from a request later would find no interpreter."""
    for engine in list(_engines):
        engine.stop()


atexit.register(_stop_all)


class _Call:
    """A request that brings one value to one who waits for it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.value: Any = None
        self.answer: Answer | None = None
        self.done = threading.Event()

    def perform(self, request: Request) -> Answer | None:
        value = self.function()
        if isinstance(value, Answer):
            return value
        if not request.claim.acquire(blocking=False):
            return GAVE_WAY
        self.value = value
        return None

    def settle(self, answer: Answer | None, attempts: int) -> None:
        if answer is not None and attempts > 1:
            answer = Answer(answer.kind, f"{answer.text} ({attempts} attempts)")
        self.answer = answer
        self.done.set()


def call(engine: Engine, functions: Sequence[Callable[[], Any]], patience_seconds: float) -> list[Any]:
    """Run functions that send one request each, with all retries, and return their values.

    Args:
        engine: Whose threads send them, before what was queued.
        functions: Each returns its value, or an Answer where it failed.
        patience_seconds: After which something is wrong with us.

    Returns:
        The values; an Answer where a request is lost.
    """
    calls = [_Call(function) for function in functions]
    with engine.lock:
        engine.add([Request(one, 0) for one in calls], is_urgent=True)
    end = time.monotonic() + patience_seconds
    for one in calls:
        if not one.done.wait(timeout=max(end - time.monotonic(), 0.0)):
            raise StorageError(f"no answer and no error within {patience_seconds:,.0f} s")
    return [one.value if one.answer is None else one.answer for one in calls]
