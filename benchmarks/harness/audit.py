"""Whether what was delivered is right: every batch outside the clock, ids and a sample within it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.workload import ids_of, lengths_of, tokens_of

__all__ = ["Opened", "Wrong", "check_batch", "check_ids"]


class Wrong(AssertionError):
    """A loader delivered something else than the records it was asked for."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A batch in the form that it is checked in; anything numpy can view."""

    labels: Any
    values: Any
    offsets: Any


def check_batch(
    batch: Opened, record_count: int, lengths_of: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lengths_of
) -> NDArray[np.int64]:
    """Hold every token of a batch against what its ids say; return the ids.

    Args:
        batch: What was delivered.
        record_count: Of the data set.
        lengths_of: Tokens of each record.

    Raises:
        Wrong: Naming the first bad record.
    """
    ids = ids_of(np.asarray(batch.labels, np.int64))
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= record_count):
        raise Wrong(f"a label names a record outside [0, {record_count:,})")
    offsets, values = np.asarray(batch.offsets), np.asarray(batch.values)
    lengths = lengths_of(ids)
    if offsets[0] != 0 or not np.array_equal(np.diff(offsets), lengths) or len(values) != int(lengths.sum()):
        raise Wrong(f"lengths differ from those of records {ids[:4].tolist()}...")
    same = values == tokens_of(ids, lengths)
    if not same.all():
        record = int(np.searchsorted(offsets, int(np.argmin(same)), side="right")) - 1
        raise Wrong(f"record {ids[record]:,}: its tokens differ")
    return ids


def check_ids(ids: Sequence[NDArray[np.int64]], record_count: int, is_whole: bool) -> None:
    """Hold the ids of an epoch, or of its beginning, against "each exactly once".

    Args:
        ids: Of each batch.
        record_count: Of the data set.
        is_whole: Whether the epoch ended; else only repetition is wrong.

    Raises:
        Wrong: An id is missing, foreign or comes twice.
    """
    joined = np.concatenate(ids) if ids else np.empty(0, np.int64)
    if len(joined) and (int(joined.min()) < 0 or int(joined.max()) >= record_count):
        raise Wrong(f"an id lies outside [0, {record_count:,})")
    counts = np.bincount(joined, minlength=record_count)
    if (counts > 1).any():
        raise Wrong(f"record {int(np.argmax(counts > 1)):,} came {int(counts.max())} times")
    if is_whole and not counts.all():
        raise Wrong(f"{int((counts == 0).sum()):,} records never came, record {int(np.argmin(counts)):,} for one")
