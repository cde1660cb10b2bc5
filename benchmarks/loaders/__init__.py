"""One file a rival, all behind one contract; adding one touches no other file.

A module here has a function `rivals()` that returns what it offers.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, Protocol

from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload

__all__ = ["Rival", "Triples", "all_rivals", "rate_of"]


class Rival(Protocol):
    """A way to get shuffled batches."""

    name: str
    is_slow: bool
    """Whether an epoch takes so long that only its beginning is measured."""
    is_reused: bool
    """Whether a batch is overwritten by the next one, so that only the last can be checked afterwards."""

    def prepare(self, workload: Workload) -> None:
        """Build or open the data; outside the clock."""
        ...

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return an iterator over an epoch's batches. What is done before the first `next` is not timed."""
        ...

    def labels(self, batch: Any) -> Any:
        """Return a batch's labels; called within the clock, so it must cost nothing."""
        ...

    def opened(self, batch: Any) -> Opened:
        """Return a batch to be checked; called outside the clock."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Triples:
    """The part of rivals whose batches are (labels, values, offsets)."""

    is_reused = False

    def labels(self, batch: Any) -> Any:
        """Return the labels."""
        return batch[0]

    def opened(self, batch: Any) -> Opened:
        """Return the tensors."""
        return Opened(*batch)


def rate_of(batches: Iterator[Any], seconds: float, labels: Callable[[Any], Any] = itemgetter(0)) -> float:
    """Return the records a second of an epoch's beginning, from the second batch on: for finding the best settings."""
    next(batches)
    records, start = 0, time.perf_counter()
    for batch in batches:
        records += len(labels(batch))
        if time.perf_counter() - start > seconds:
            break
    return records / (time.perf_counter() - start)


def all_rivals() -> dict[str, Rival]:
    """Return every rival by its name, not prepared."""
    made: dict[str, Rival] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for rival in importlib.import_module(f"{__name__}.{module}").rivals():
            made[rival.name] = rival
    return made
