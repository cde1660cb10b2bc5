"""Which request goes out when: retries, their budget, how many at a time, and second tries for the slow ones.

No clock and no I/O: whoever asks says what time it is, so that an hour's outage is a test of microseconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, Final

from shufflestore.storage.remote_client import Answer, RemoteOptions

__all__ = ["Request", "Schedule"]

IDLE_SECONDS: Final = 60.0
"""To look again although nothing is due."""
FIRST_BACKOFF_SECONDS: Final = 0.05
BACKOFF_FACTOR: Final = 3.0
LONGEST_BACKOFF_SECONDS: Final = 5.0
"""Full jitter below these: eight attempts take eight seconds on average, and after an outage nobody sleeps for long."""
RETRY_TOKENS: Final = 100.0
"""Retries that may go out before any request has succeeded."""
TOKENS_A_SUCCESS: Final = 1.5
"""Retries that one success pays for: enough while three in five fail, and next to none while all do."""
TOKENS_A_SECOND: Final = 2.0
"""Requests by which a store that answers nothing is still asked whether it is back."""
LEAST_SHARE: Final = 8
"""However often a store refuses, this part of the requests may be in flight: outages are the tokens' affair."""
HEDGE_SHARE: Final = 0.04
HEDGE_BURST: Final = 8.0
HEDGES: Final = 2
"""Copies of one request, beside its first."""
HEDGE_FACTOR: Final = 2.0
HEDGE_LEAST_SECONDS: Final = 0.02
"""A request is slow beyond so many times the 95th percentile of the last ones of its size, and at least so long."""
SAMPLES: Final = 256
_ATTEMPTS: Final = {"missing": 4, "denied": 3, "checksum": 3}
"""What is tried less often than the options say, and costs no tokens, since it is seldom the network's fault."""
_FINAL: Final = frozenset({"changed", "beyond", "exists", "fatal"})


class Request:
    """One request: what it asks for, and how that went so far. The schedule's own, but for `work` and `claim`."""

    __slots__ = (
        "answer", "attempts", "by_kind", "claim", "deadline", "hedges", "is_done", "running", "size", "started", "work",
    )  # fmt: skip

    def __init__(self, work: Any, size: int) -> None:
        self.work = work
        self.size = size
        self.claim = Lock()
        """Taken by the copy whose bytes count."""
        self.attempts = 0
        """That have failed."""
        self.by_kind: dict[str, int] = {}
        self.running = 0
        """Copies under way."""
        self.hedges = 0
        self.started = -1.0
        """When the last copy went out."""
        self.deadline = -1.0
        self.is_done = False
        self.answer: Answer | None = None
        """The last failure."""


class Schedule:
    """Every request of one store. Not locked: see `storage.remote_engine`."""

    def __init__(self, options: RemoteOptions, uniform: Callable[[float, float], float]) -> None:
        """Begin with nothing to do.

        Args:
            options: Bounds.
            uniform: Returns a random number between two.
        """
        self._options = options
        self._uniform = uniform
        self._most = float(options.max_in_flight)
        self._least = float(max(options.max_in_flight // LEAST_SHARE, 1))
        self.limit = self._most
        """Requests at a time: halved when the store refuses, then grown."""
        self._threshold = self._most
        self._cut_at = -1.0
        self.in_flight = 0
        """Requests under way; copies of one count once, since the slow one is likely to be lost."""
        self.tokens = RETRY_TOKENS
        self._tokens_at: float | None = None
        self._hedge_tokens = HEDGE_BURST
        self._urgent: deque[Request] = deque()
        self._queue: deque[Request] = deque()
        self._retries: deque[Request] = deque()
        self._events: list[tuple[float, int, str, Request]] = []
        self._event_count = 0
        self._recent = (_Recent(), _Recent(), _Recent())
        self.expired: list[Request] = []
        """Requests whose time was over, for the engine to fail."""
        self.counts = {"requests": 0, "retries": 0, "hedges": 0, "throttled": 0}

    def add(self, requests: Iterable[Request], *, is_urgent: bool = False) -> None:
        """Queue requests; the urgent ones, for which somebody waits now, go before the others."""
        (self._urgent if is_urgent else self._queue).extend(requests)

    def clear(self) -> None:
        """Forget what has not gone out."""
        for queue in (self._urgent, self._queue, self._retries, self._events):
            queue.clear()

    def next(self, now: float) -> tuple[Request | None, float]:
        """Return the request to send now, else None and the seconds until it is worth asking again.

        Sooner, should a request be added or end.
        """
        if self._tokens_at is not None and now > self._tokens_at:
            self.tokens = min(self.tokens + (now - self._tokens_at) * TOKENS_A_SECOND, RETRY_TOKENS)
        self._tokens_at = now
        hedge = self._due(now)
        if hedge is not None:
            self.counts["hedges"] += 1
            return self._start(hedge, now), 0.0
        seconds = IDLE_SECONDS
        if self.in_flight < int(self.limit):
            waiting = self._next_waiting()
            if waiting is not None:
                if self.tokens >= 1.0:
                    return self._start(waiting.popleft(), now), 0.0
                seconds = (1.0 - self.tokens) / TOKENS_A_SECOND
        if self._events:
            seconds = min(seconds, max(self._events[0][0] - now, 0.0))
        return None, seconds

    def succeeded(self, request: Request, seconds: float) -> bool:
        """Take note that a copy came back whole; False if another one had done so before."""
        request.running -= 1
        if request.is_done:
            return False
        self._end(request)
        self._recent[_size_class(request.size)].add(seconds)
        self.tokens = min(self.tokens + TOKENS_A_SUCCESS, RETRY_TOKENS)
        if self.limit < self._most:
            grown = self.limit + (1.0 if self.limit < self._threshold else 1.0 / self.limit)
            self.limit = min(grown, self._most)
        return True

    def failed(self, request: Request, answer: Answer, now: float) -> bool:
        """Take note that a copy failed; True if the request is thereby lost, False if it is tried again."""
        request.running -= 1
        if answer.kind == "throttled":
            self.counts["throttled"] += 1
            if request.started > self._cut_at:  # what was sent before the last cut says nothing new
                self._cut_at = now
                self.limit = self._threshold = max(self.limit / 2, self._least)
        if request.is_done:
            return False
        request.answer = answer
        request.attempts += 1
        request.by_kind[answer.kind] = tried = request.by_kind.get(answer.kind, 0) + 1
        allowed = _ATTEMPTS.get(answer.kind, self._options.attempts)
        is_lost = answer.kind in _FINAL or tried >= allowed or request.attempts >= self._options.attempts
        if is_lost:
            self._end(request)
            return True
        if request.running:
            return False  # a copy may still make it
        self.in_flight -= 1
        longest = min(FIRST_BACKOFF_SECONDS * BACKOFF_FACTOR ** (request.attempts - 1), LONGEST_BACKOFF_SECONDS)
        self._at(now + self._uniform(0.0, longest), "retry", request)
        if request.attempts == 1:
            self._at(request.deadline, "deadline", request)
        return False

    def gave_way(self, request: Request) -> None:
        """Take note that a copy came back while another one's bytes were already being used."""
        request.running -= 1

    @property
    def has_more(self) -> bool:
        """Whether another request could go out at once, should somebody send it."""
        return self.in_flight < int(self.limit) and self.tokens >= 1.0 and self._next_waiting() is not None

    @property
    def next_event(self) -> float:
        """When something is due next; infinity for never."""
        return self._events[0][0] if self._events else float("inf")

    def drop(self, request: Request) -> None:
        """Let a request end without an answer: nobody waits for it any more."""
        if not request.is_done:
            if request.running:
                self.in_flight -= 1
            request.is_done = True

    def _end(self, request: Request) -> None:
        request.is_done = True
        self.in_flight -= 1

    def _next_waiting(self) -> deque[Request] | None:
        for queue in (self._retries, self._urgent, self._queue):
            while queue and queue[0].is_done:
                queue.popleft()
            if queue:
                return queue
        return None

    def _due(self, now: float) -> Request | None:
        """Let what is due happen; return a request that is to be sent once more although it is under way."""
        while self._events and self._events[0][0] <= now:
            _, _, kind, request = heapq.heappop(self._events)
            if request.is_done:
                continue
            if kind == "retry":
                self._retries.append(request)
            elif kind == "deadline":
                self.drop(request)
                self.expired.append(request)
            elif request.running and self._hedge_tokens >= 1.0:
                self._hedge_tokens -= 1.0
                request.hedges += 1
                return request
        return None

    def _start(self, request: Request, now: float) -> Request:
        self.counts["requests"] += 1
        if not request.running:
            self.in_flight += 1
            if request.answer is not None:
                self.counts["retries"] += 1
                self.tokens -= float(request.answer.kind not in _ATTEMPTS)
            else:
                request.deadline = now + self._options.total_seconds
                self._hedge_tokens = min(self._hedge_tokens + HEDGE_SHARE, HEDGE_BURST)
        request.running += 1
        request.started = now
        if self._options.hedge and request.hedges < HEDGES:
            patience = self._recent[_size_class(request.size)].patience
            if patience is not None:
                self._at(now + patience, "hedge", request)
        return request

    def _at(self, when: float, kind: str, request: Request) -> None:
        self._event_count += 1
        heapq.heappush(self._events, (when, self._event_count, kind, request))


def _size_class(size: int) -> int:
    """Return which requests it is compared with: small ones cost their latency, large ones the bandwidth."""
    return 0 if size <= 64 << 10 else 1 if size <= 1 << 20 else 2


class _Recent:
    """How long the last requests took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=SAMPLES)
        self._fresh = 0
        self.patience: float | None = None
        """After so many seconds a request is slow; None while too few were seen to know."""

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)
        self._fresh += 1
        if self._fresh >= SAMPLES // 8:
            self._fresh = 0
            ordered = sorted(self._seconds)
            usual = ordered[len(ordered) * 95 // 100]
            self.patience = max(HEDGE_FACTOR * usual, HEDGE_LEAST_SECONDS)
