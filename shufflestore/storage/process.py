"""Locks and forks: at a fork, a lock may be held by a thread that the child does not have."""

from __future__ import annotations

import os
import threading

__all__ = ["ProcessLock", "briefly"]

briefly = threading.RLock()
"""For what takes microseconds and no I/O: a fork waits for it, so what it guards is whole in the child."""
os.register_at_fork(before=briefly.acquire, after_in_parent=briefly.release, after_in_child=briefly.release)


class ProcessLock:
    """A lock that may be held for long: each process has one of its own."""

    def __init__(self) -> None:
        """Make the lock of this process."""
        self._process = os.getpid()
        self._lock = threading.Lock()

    @property
    def here(self) -> threading.Lock:
        """The lock of this process, for `with`."""
        if self._process != os.getpid():
            with briefly:
                if self._process != os.getpid():
                    self._lock = threading.Lock()
                    self._process = os.getpid()
        return self._lock
