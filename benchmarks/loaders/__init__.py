"""One file a rival, all behind one contract; adding one touches no other file.

A module here has a function `rivals()` that returns what it offers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, Protocol

from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload

__all__ = ["Rival", "all_rivals"]


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


def all_rivals() -> dict[str, Rival]:
    """Return every rival by its name, not prepared."""
    made: dict[str, Rival] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for rival in importlib.import_module(f"{__name__}.{module}").rivals():
            made[rival.name] = rival
    return made
