"""Which positions of an order a rank owns, batch by batch.

Ranks take positions in turn, so that any batch size cuts the same global steps: step g of W ranks
with batches of B is [start + g B W, start + (g + 1) B W). How many steps there are is arithmetic,
hence known before the first batch and equal on all ranks.
"""

from __future__ import annotations

__all__ = ["MAX_BATCH_SIZE", "Partition", "REMAINDERS", "Remainder", "Topology"]

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError, OrderError
from shufflestore.orders.keys import MAX_LENGTH

Remainder = Literal["drop", "pad", "uneven"]
REMAINDERS: tuple[str, ...] = get_args(Remainder)

MAX_BATCH_SIZE = 2**31 - 1
MAX_WORLD_SIZE = 2**31 - 1  # so that a padded position, below length + batch * world, fits int64


def _check(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise OptionError(f"{name} {value!r} is not an integer in [{least}, {most}]")


@dataclass(frozen=True, slots=True)
class Topology:
    """Who this process is among those that read together.

    Attributes:
        rank: In [0, world_size).
        world_size: Processes, in [1, 2**31).

    Raises:
        OptionError: One of them is not an integer in its range.

    >>> Topology(rank=1, world_size=4)
    Topology(rank=1, world_size=4)
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Check both."""
        _check("world_size", self.world_size, 1, MAX_WORLD_SIZE)
        _check("rank", self.rank, 0, self.world_size - 1)


@dataclass(frozen=True, slots=True)
class Partition:
    """What one rank delivers of one epoch, from position `start` to the end.

    Rank r of W owns start + r, start + r + W, start + r + 2W, ... and cuts them into batches of B.
    With 11 records, batches of 2 and 2 ranks, from the start:

        step          0          1          2
        rank 0     0   2      4   6      8  10
        rank 1     1   3      5   7      9 (11)

    Position 11 does not exist, and `remainder` says what becomes of the last step:

        "drop"    it is left out, with its records 8, 9 and 10: two steps
        "pad"     11 becomes 11 mod 11 = 0: the step is filled from the head of the order
        "uneven"  rank 1 gets one record less; shares differ by at most one and may be empty

    >>> for remainder in ("drop", "pad", "uneven"):
    ...     for rank in (0, 1):
    ...         part = Partition(11, 2, Topology(rank, 2), remainder)
    ...         positions, ends = part.positions(0, part.step_count)
    ...         print(f"{remainder:6} rank {rank}", [batch.tolist() for batch in np.split(positions, ends[:-1])])
    drop   rank 0 [[0, 2], [4, 6]]
    drop   rank 1 [[1, 3], [5, 7]]
    pad    rank 0 [[0, 2], [4, 6], [8, 10]]
    pad    rank 1 [[1, 3], [5, 7], [9, 0]]
    uneven rank 0 [[0, 2], [4, 6], [8, 10]]
    uneven rank 1 [[1, 3], [5, 7], [9]]

    Padding wraps at the length, to position 0 even if `start` is larger, and as often as it must when a
    step is larger than the data set. No records left means no steps, whatever `remainder` is.

    Attributes:
        length: Records in the order, in [0, 2**62].
        batch_size: Records a rank and step, in [1, 2**31).
        topology: Who delivers.
        remainder: What becomes of a last step that is not full: "drop", "pad" or "uneven".
        start: Where the epoch is taken up, in [0, length].

    Raises:
        OptionError: `batch_size` or `remainder` is out of range.
        OrderError: `length` or `start` is.

    Everything but `positions` is O(1).
    """

    length: int
    batch_size: int
    topology: Topology = Topology()
    remainder: Remainder = "drop"
    start: int = 0

    def __post_init__(self) -> None:
        """Check each field."""
        for name, value, most in (("length", self.length, MAX_LENGTH), ("start", self.start, self.length)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
                raise OrderError(f"{name} {value!r} is not an integer in [0, {most}]")
        _check("batch_size", self.batch_size, 1, MAX_BATCH_SIZE)
        if self.remainder not in REMAINDERS:
            names = ", ".join(repr(name) for name in REMAINDERS)
            raise OptionError(f"remainder {cast('object', self.remainder)!r} is not one of {names}")

    @property
    def step_records(self) -> int:
        """Records of a full step over all ranks."""
        return self.batch_size * self.topology.world_size

    @property
    def step_count(self) -> int:
        """Steps from `start` to the end: the same number on all ranks."""
        left = self.length - self.start
        return left // self.step_records if self.remainder == "drop" else -(-left // self.step_records)

    @property
    def record_count(self) -> int:
        """Records this rank delivers in those steps, padding included."""
        if self.remainder != "uneven":
            return self.step_count * self.batch_size
        left = self.length - self.start - self.topology.rank
        return max(0, -(-left // self.topology.world_size))

    @property
    def padded_count(self) -> int:
        """Records delivered a second time to fill the last step, over all ranks; 0 unless "pad"."""
        return (
            max(0, self.step_count * self.step_records - (self.length - self.start)) if self.remainder == "pad" else 0
        )

    @property
    def dropped_count(self) -> int:
        """Records left out at the end, over all ranks; 0 unless "drop"."""
        return self.length - self.start - self.step_count * self.step_records if self.remainder == "drop" else 0

    def positions(self, first_step: int, last_step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return this rank's positions of steps [first_step, last_step), batch after batch.

        Args:
            first_step: In [0, last_step].
            last_step: End, not included; at most `step_count`.

        Returns:
            (n,) int64 positions, each in [0, length), and (last_step - first_step,) int64 ends:
            batch i of the window is positions[ends[i - 1] : ends[i]], the first one positions[: ends[0]].

        Raises:
            OrderError: The steps are not a range within [0, step_count].

        O(n): one arange, and where the window is padded one modulo.

        >>> Partition(10, 2, Topology(1, 2)).positions(1, 2)
        (array([5, 7]), array([2]))
        """
        if not 0 <= first_step <= last_step <= self.step_count:
            raise OrderError(
                f"steps [{first_step}, {last_step}) are not within [0, {self.step_count}), the steps of this partition"
            )
        world, batch, records = self.topology.world_size, self.batch_size, self.record_count
        first = min(first_step * batch, records)
        count = min(last_step * batch, records) - first
        begin = self.start + self.topology.rank + first * world
        positions = np.arange(begin, begin + count * world, world, dtype=np.int64)
        if self.remainder == "pad" and last_step == self.step_count and self.padded_count:
            positions %= self.length
        ends = np.arange(1, last_step - first_step + 1, dtype=np.int64)
        ends *= batch
        return positions, np.minimum(ends, count, out=ends)

    def next_start(self, steps_delivered: int) -> int:
        """Return where an epoch goes on after so many steps: the position a saved state holds.

        It is `start` before the first step and `length` after the last one, also where records were
        dropped: that epoch is over, at any batch size and world size. All ranks agree on it.

        Args:
            steps_delivered: In [0, step_count].

        Raises:
            OrderError: There are not so many steps.

        >>> [Partition(11, 2, Topology(0, 2), "uneven").next_start(steps) for steps in range(4)]
        [0, 4, 8, 11]
        """
        if not 0 <= steps_delivered <= self.step_count:
            raise OrderError(f"{steps_delivered} delivered steps are outside [0, {self.step_count}] of this partition")
        if steps_delivered and steps_delivered == self.step_count:
            return self.length
        return self.start + steps_delivered * self.step_records

    def start_after(self, records_delivered: int) -> int:
        """Return where an epoch goes on after so many records of this rank, if all ranks are as far.

        A rank whose share is over has done the step that its last record is in.

        Args:
            records_delivered: In [0, record_count].

        Raises:
            OrderError: There are not so many records.

        >>> part = Partition(11, 2, Topology(0, 2), "uneven")
        >>> [part.start_after(records) for records in range(7)]
        [0, 2, 4, 6, 8, 10, 11]
        """
        if not 0 <= records_delivered <= self.record_count:
            raise OrderError(
                f"{records_delivered} delivered records are outside [0, {self.record_count}] of this partition"
            )
        if records_delivered == self.record_count:
            return self.next_start(-(-records_delivered // self.batch_size))
        return self.start + records_delivered * self.topology.world_size
