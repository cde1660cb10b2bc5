"""Batches that a user's collate function puts together, from records."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflestore.format.decode import Column

__all__ = ["FromRecords"]


class FromRecords:
    """Makes a batch's records and has a user's function put them together; pickles if both do.

    Python's collector of cycles waits meanwhile. A batch of 256 dicts of tensors is more objects than it lets come
    without a search for cycles, at a tenth of the batch's time, and they are gone at its end, by their counts.
    """

    def __init__(
        self,
        collate_fn: Callable[[Any], Any],
        records: Callable[[NDArray[np.int64], dict[str, Column]], list[dict[str, Any]]],
    ) -> None:
        """Keep both.

        Args:
            collate_fn: Given the list of a batch's records.
            records: records(ids, columns) -> that list.
        """
        self._collate_fn, self._records = collate_fn, records

    def __call__(self, ids: NDArray[np.int64], columns: dict[str, Column]) -> Any:
        """Return what the function makes of the records; raises what it raises."""
        with _uncollected():
            return self._collate_fn(self._records(ids, columns))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector of cycles from running, unless it was off before."""
    was_on = gc.isenabled()
    try:
        if was_on:
            _waits.append(None)
            gc.disable()
        yield
    finally:
        if was_on:
            gc.enable()
            _waits.pop()


_waits: list[None] = []
"""One for each thread that has turned the collector off for a batch."""


def _go_on_in_child() -> None:
    """A process forked meanwhile has not the thread that would turn it on again."""
    if _waits:
        gc.enable()


os.register_at_fork(after_in_child=_go_on_in_child)
