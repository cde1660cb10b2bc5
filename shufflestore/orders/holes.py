"""Positions that were delivered before their turn: what resuming from unordered delivery has to leave out.

Where batches come as workers finish them, a state is a *frontier* (all positions below it were delivered) and the few
positions beyond it that were delivered too, as many as were in flight at most. The rest of the epoch is then an
order of its own: position v of what is left stands for the v-th position that was not delivered.
"""

from __future__ import annotations

__all__ = ["HoledOrder", "Holes", "merged"]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import StateError
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import Order

Ranges = tuple[tuple[int, int, int], ...]
"""(first, stop, stride) each."""


class Holes:
    """A sorted set of positions, kept as numbers; meant for thousands, not for millions.

    >>> holes = Holes.of([(5, 7, 1), (9, 14, 2)])
    >>> holes.positions.tolist()
    [5, 6, 9, 11, 13]
    >>> holes.actual(np.arange(4, 10)).tolist()
    [4, 7, 8, 10, 12, 14]
    """

    def __init__(self, positions: NDArray[np.int64]) -> None:
        """Take (n,) int64 positions in any order, also repeated."""
        self.positions = np.unique(positions)
        self._before = self.positions - np.arange(len(self.positions))
        """Positions that are no holes before each."""

    @classmethod
    def of(cls, ranges: Iterable[Sequence[int]]) -> Holes:
        """Return the positions of ranges (first, stop, stride)."""
        parts = [np.arange(first, stop, stride, dtype=np.int64) for first, stop, stride in ranges]
        return cls(np.concatenate([np.empty(0, np.int64), *parts]))

    def __len__(self) -> int:
        return len(self.positions)

    def actual(self, virtual: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions that (n,) positions of what is left stand for. O(n log holes)."""
        return virtual + np.searchsorted(self._before, virtual, side="right")

    def ranges(self, after: int = -1) -> Ranges:
        """Return those beyond a position as few ranges: maximal runs of one stride, greedily."""
        left = self.positions[self.positions > after].tolist()
        found: list[tuple[int, int, int]] = []
        begin = 0
        while begin < len(left):
            end = begin + 1
            stride = left[end] - left[begin] if end < len(left) else 1
            while end < len(left) and left[end] - left[end - 1] == stride:
                end += 1
            if end - begin == 2 and stride > 1:  # two alone are no run: the second may begin a better one
                end, stride = begin + 1, 1
            found.append((left[begin], left[end - 1] + 1, stride))
            begin = end
        return tuple(found)


@dataclass(frozen=True, slots=True)
class HoledOrder:
    """What is left of an order: `Order` over the positions that are no holes."""

    order: Order
    holes: Holes

    @property
    def length(self) -> int:
        """Records that are left, those before the frontier counted."""
        return self.order.length - len(self.holes)

    @property
    def name(self) -> str:
        """Of the whole order."""
        return self.order.name

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the record ids at positions of what is left; see `Order.ids`."""
        return self.order.ids(self.holes.actual(positions))

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where records stand in what is left; of one that is a hole, where the next stands."""
        found = self.order.positions(ids)
        return found - np.searchsorted(self.holes.positions, found)


def merged(cursors: Sequence[Cursor]) -> Cursor:
    """Return one cursor for what all ranks delivered of an epoch, each as far as it was.

    Args:
        cursors: One a rank, taken at the same moment or not, all of one iteration.

    Raises:
        StateError: They are not the shares of all ranks of one iteration; the difference is named.
    """
    if not cursors:
        raise StateError("there is no state to merge; give the states of all ranks")
    shares = [cursor.share for cursor in cursors]
    plain = [replace(cursor, share=None) for cursor in cursors]
    for rank, cursor in enumerate(plain):
        if cursor != plain[0]:
            raise StateError(f"states 0 and {rank} are not of one iteration: {plain[0]} and {cursor}")
    if len(cursors) == 1 and shares[0] is None:
        return cursors[0]
    world = len(cursors)
    if any(share is None or share.world_size != world for share in shares) or sorted(
        share.rank for share in shares if share is not None
    ) != list(range(world)):
        said = [None if share is None else (share.rank, share.world_size) for share in shares]
        raise StateError(f"the states of all ranks are needed, once each; these are of (rank, world size) {said}")
    base, holes = plain[0], Holes.of(plain[0].finished)
    length = (base.length or 0) - len(holes)
    least = min(share.records for share in shares if share is not None)
    parts = []
    for share in shares:
        assert share is not None, "checked above"
        for first, stop in ((least, share.records), *share.beyond):
            parts.append(base.position + share.rank + np.arange(first, stop, dtype=np.int64) * world)
    done = Holes(np.concatenate([part[part < length] for part in parts]))
    frontier = min(base.position + least * world, length)
    left = done.positions[done.positions >= frontier]
    # As far as they follow without a gap, they are no holes.
    frontier += int(np.argmin(np.append(left == frontier + np.arange(len(left)), [False])))
    if frontier >= length:
        return replace(base, position=base.length or 0, finished=())
    position = int(holes.actual(np.array([frontier]))[0])
    both = Holes(np.concatenate([holes.positions, holes.actual(left)]))
    return replace(base, position=position, finished=both.ranges(position))
