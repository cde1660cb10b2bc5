"""Which epoch, from where, for whom: what a loader, its sampler and their iterators agree on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np

from shufflestore.distributed import resolve
from shufflestore.errors import OptionError, StateError
from shufflestore.orders import kernels
from shufflestore.orders.blocks import block_order_parts
from shufflestore.orders.cursor import Cursor, Share
from shufflestore.orders.epoch import Order, Shuffle, make_order
from shufflestore.orders.epoch import order_named as named
from shufflestore.orders.holes import HoledOrder, Holes, merged
from shufflestore.orders.partition import Partition, Remainder, Topology

__all__ = ["Course", "Plot", "Progress", "RecordProgress", "Records", "Reshuffle", "order_named"]

_log = logging.getLogger("shufflestore")
_COMPILE_AFTER: Final = 50_000_000
"""Ids computed by the numpy twin, at 30 to 40 ns each, before compiling the kernel (one to three seconds) pays."""
_COMPILE_BLOCKS_AFTER: Final = 20_000_000
"""Likewise in the block order, at 170 to 470 ns each instead of 45, and nearly twice the time to compile."""


Reshuffle = Literal["each_epoch", "once"]


def order_named(
    shuffle: Shuffle,
    reshuffle: Reshuffle,
    block_records: int | None = None,
    open_blocks: int | None = None,
    data: object = None,
) -> str:
    """Return the name of the order that a loader's arguments ask for.

    Args:
        shuffle: See `orders.epoch.order_named`.
        reshuffle: Whether each epoch has an order of its own.
        block_records: For "blocks".
        open_blocks: For "blocks".
        data: The data set, asked for its `block_records` where nobody says them.

    Raises:
        OptionError: By name and value.
    """
    if reshuffle not in ("each_epoch", "once"):
        raise OptionError(f"reshuffle={reshuffle!r}; allowed are ['each_epoch', 'once']")
    usual = getattr(data, "block_records", None) if shuffle == "blocks" and block_records is None else None
    name = named(shuffle, block_records, open_blocks, usual)
    if reshuffle == "each_epoch" or not shuffle:
        return name
    if name != "global":
        raise OptionError("reshuffle='once' keeps one global order; with shuffle='blocks' each epoch has another")
    return "once"


class Records(NamedTuple):
    """What a state says of the data, so that it is not loaded into other data."""

    length: int
    identity: str
    snapshot: int | None = None


@dataclass(slots=True)
class Progress:
    """How far an iterator is. Outlives it, since a state is asked for after the loop too."""

    epoch: int = 0
    delivered: int = 0
    """Batches returned."""
    partition: Partition | None = None
    """Of the positions from which it began; None until the first `next`."""
    holes: Holes | None = None
    """Positions that a resumed epoch leaves out; then all others are counted without them."""

    @property
    def is_bound(self) -> bool:
        """Whether the first `next` has been asked for."""
        return self.partition is not None

    @property
    def start(self) -> int:
        """Global position at which it began."""
        return 0 if self.partition is None else self.partition.start

    @property
    def position(self) -> int:
        """Global position from which the epoch goes on after what was returned."""
        return 0 if self.partition is None else self.partition.next_start(self.delivered)


@dataclass(slots=True)
class RecordProgress(Progress):
    """Counts records, not batches: what a sampler gives out."""

    is_over: bool = False
    """Whether it was asked for more than there is: then the other ranks are at the end too."""

    @property
    def position(self) -> int:
        """Global position from which the epoch goes on."""
        if self.partition is None:
            return 0
        return self.partition.length if self.is_over else self.partition.start_after(self.delivered)


@dataclass(frozen=True, slots=True)
class Plot:
    """What a course follows, but for the data.

    Attributes:
        order: As `make_order` takes it.
        seed: Of the order; None means 0, and that a state may bring another.
        batch_size: Records a rank and step.
        remainder: What becomes of a last step that is not full.
        rank: Of this process; None to find out.
        world_size: Likewise.
        is_shared: Whether ranks that nobody named are found out at all; a data set that torch's loader would
            deliver whole to each process is not.
        draw_seed: Called once where `seed` is None.
        blocks: block_records and open_blocks as they were given; None means that a state may bring others.
    """

    order: str
    seed: int | None = None
    batch_size: int = 1
    remainder: Remainder = "uneven"
    rank: int | None = None
    world_size: int | None = None
    is_shared: bool = True
    draw_seed: Callable[[], int] | None = None
    blocks: tuple[int | None, int | None] = (None, None)

    def __post_init__(self) -> None:
        if self.remainder not in ("drop", "pad", "uneven"):
            raise OptionError(f"remainder={self.remainder!r}; allowed are [None, 'drop', 'pad', 'uneven']")
        if self.rank is not None or self.world_size is not None:
            resolve(self.rank, self.world_size)  # wrong ones are refused here, not at the first batch


class Course:
    """The epochs of one data set on one rank, and where the newest of its iterators is."""

    def __init__(self, records: Callable[[], Records], plot: Plot) -> None:
        """Prepare.

        Args:
            records: The data at hand; asked whenever it matters, since it may grow between epochs.
            plot: The rest.
        """
        self.records = records
        self.plot = plot
        self._seed = None if plot.seed is None else int(plot.seed)
        self._computed = 0
        """Ids of shuffled orders so far."""
        self._next_epoch: int | None = None
        self._loaded: Cursor | None = None
        self._progress: Progress | None = None
        """Of the newest iterator."""
        self._last: Progress | None = None
        """Of the iterator before the newest, if anything was asked of it."""
        self._topology: Topology | None = None

    @property
    def seed(self) -> int:
        """Of the order."""
        if self._seed is None:
            self._seed = 0 if self.plot.draw_seed is None else self.plot.draw_seed()
        return self._seed

    # -- who, how many -----------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """This process among those that share the epoch; found out when first needed.

        Raises:
            StateError: It changed after the first batch.
        """
        plot = self.plot
        now = resolve(plot.rank, plot.world_size) if plot.is_shared or plot.rank is not None else Topology()
        if self._topology is not None and now != self._topology:
            raise StateError(
                f"rank and world size changed from {self._topology} to {now} after the first batch; make a new loader and "
                "load the state into it"
            )
        return now

    @property
    def known_rank(self) -> int:
        """This process's rank as far as it was needed so far."""
        return self._topology.rank if self._topology is not None else 0

    def partition(self, start: int = 0) -> Partition:
        """Return this rank's share of an epoch from a position on."""
        return Partition(self.records().length, self.plot.batch_size, self.topology, self.plot.remainder, start)

    @property
    def remaining(self) -> Partition:
        """What is left from the position that the next (or present) iterator goes on from."""
        if self._loaded is not None:
            return self._resumed(self._loaded)[0]
        current = self._progress
        if current is None or current.partition is None:
            return self.partition()
        return replace(current.partition, start=current.position, topology=self.topology)

    def records_left(self, delivered: int | None) -> int:
        """Return this rank's records from where the next (or present) iterator of a sampler goes on.

        Args:
            delivered: Of what the present one gave out, those that arrived; None where there is none.
        """
        current = self._progress
        if self._loaded is not None or delivered is None or current is None or current.partition is None:
            return self.remaining.record_count
        return current.partition.record_count - delivered

    def _resumed(self, cursor: Cursor) -> tuple[Partition, Holes | None]:
        holes = Holes.of(cursor.finished) if cursor.finished else None
        whole = self.partition()
        return replace(whole, length=whole.length - (len(holes) if holes else 0), start=cursor.position), holes

    # -- epochs ------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Of the newest iterator or, if nothing was asked of it yet, of the next one."""
        if self._loaded is not None:
            return self._loaded.epoch
        if self._progress is not None and self._progress.is_bound and self._next_epoch is None:
            return self._progress.epoch
        return self._next_epoch if self._next_epoch is not None else self._epoch_after()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterator.

        A loaded position is kept if it is of this epoch, else dropped with a log line.

        Raises:
            OptionError: Negative, or no integer.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or epoch < 0:
            raise OptionError(f"epoch {epoch!r}; an integer of at least 0 is needed")
        if self._loaded is not None and self._loaded.epoch != epoch:
            is_over = self._loaded.position == self._loaded.length and self._loaded.epoch < epoch
            if not is_over:
                _log.warning(
                    "set_epoch(%d) drops the loaded position %d of epoch %d",
                    epoch,
                    self._loaded.position,
                    self._loaded.epoch,
                )
            self._loaded = None
        self._next_epoch = int(epoch)

    def _epoch_after(self) -> int:
        """The epoch of an iterator that nothing was said about."""
        last = self._last if self._progress is None or not self._progress.is_bound else self._progress
        if last is None:
            return 0
        # One that was resumed counts as having delivered: at the very end of an epoch nothing is left of it.
        return last.epoch + (1 if last.delivered or last.start else 0)

    # -- state -------------------------------------------------------------------------------------

    def cursor(self, delivered: int | None = None) -> Cursor:
        """Return where the newest iterator is.

        Args:
            delivered: Records of it that arrived where they were wanted; None for all that it gave out.
        """
        current = self._progress
        if self._loaded is not None or current is None or current.partition is None:
            return self.upcoming()
        position = current.position if delivered is None else current.partition.start_after(delivered)
        if current.holes is None:
            return self._cursor(current.epoch, position)
        if position == current.partition.length:
            return self._cursor(current.epoch, self.records().length)
        actual = int(current.holes.actual(np.array([position]))[0])
        return replace(self._cursor(current.epoch, actual), finished=current.holes.ranges(actual))

    def share(self, records: int, beyond: list[tuple[int, int]]) -> Cursor:
        """Return what this rank delivered out of order; where it is alone, where the epoch is.

        Args:
            records: Of this rank since the newest iterator began, all delivered.
            beyond: Ranges of this rank's records beyond them that were delivered too.
        """
        current = self._progress
        assert current is not None, "something was delivered"
        assert current.partition is not None, "likewise"
        who = current.partition.topology
        cursor = replace(
            self._cursor(current.epoch, current.partition.start),
            finished=current.holes.ranges() if current.holes else (),
            share=Share(who.rank, who.world_size, records, tuple(beyond)),
        )
        return merged([cursor]) if who.world_size == 1 else cursor

    def upcoming(self) -> Cursor:
        """Return where an iterator would begin that is made now."""
        if self._loaded is not None:
            return self._loaded
        return self._cursor(self._next_epoch if self._next_epoch is not None else self._epoch_after(), 0)

    def _cursor(self, epoch: int, position: int) -> Cursor:
        length, identity, snapshot = self.records()
        return Cursor(
            dataset=identity, snapshot=snapshot, order=self.plot.order, seed=self.seed % 2**64, epoch=epoch,
            position=position, length=length,
        )  # fmt: skip

    def load(self, cursor: Cursor) -> None:
        """Let the next iterator go on at a cursor.

        Raises:
            StateError: It is of another data set or order, or of another seed than was given.
        """
        if cursor.share is not None:
            raise StateError(
                f"the saved state is of rank {cursor.share.rank} of {cursor.share.world_size} alone, which delivered out of "
                "order; load what shufflestore.merge_states makes of the states of all ranks"
            )
        length, identity, _ = self.records()
        given = None if self.plot.seed is None else self.plot.seed % 2**64
        order = self._order_for(cursor)
        cursor.check(identity=identity, order=order, seed=given, length=length)
        self.plot = replace(self.plot, order=order)
        self._seed = cursor.seed
        self._loaded = cursor
        self._next_epoch = None

    def _order_for(self, cursor: Cursor) -> str:
        """Return the name of the order to go on with: the state's own block sizes, but those that were given."""
        theirs = block_order_parts(cursor.order)
        if theirs is None or block_order_parts(self.plot.order) is None:
            return self.plot.order
        fits = all(given in (None, found) for given, found in zip(self.plot.blocks, theirs, strict=True))
        return cursor.order if fits else self.plot.order

    # -- iterators ---------------------------------------------------------------------------------

    def begin(self, progress: Progress) -> None:
        """Take note of a new iterator, whose state is the state from now on."""
        if self._progress is not None and self._progress.is_bound:
            self._last = self._progress
        self._progress = progress

    def bind(self, progress: Progress) -> Order:
        """Settle an iterator's epoch, position and rank; a loaded state is used up.

        All or nothing: first everything that can be interrupted, then assignments.

        Returns:
            The order of its epoch.
        """
        topology = self.topology
        loaded, chosen = self._loaded, self._next_epoch
        epoch = loaded.epoch if loaded is not None else chosen if chosen is not None else self._epoch_after()
        partition, holes = (self.partition(), None) if loaded is None else self._resumed(loaded)
        order = make_order(self.plot.order, partition.length + (len(holes) if holes else 0), self.seed, epoch)
        progress.epoch, progress.partition, progress.holes = epoch, partition, holes
        self._topology = topology
        self._loaded = self._next_epoch = None
        return order if holes is None else HoledOrder(order, holes)

    def watch(self, ids: int) -> None:
        """Compile the order's kernel once enough ids were computed without it."""
        self._computed += ids
        is_blocks = block_order_parts(self.plot.order) is not None
        after = _COMPILE_BLOCKS_AFTER if is_blocks else _COMPILE_AFTER
        if self._computed > after and self.plot.order != "sequential":
            kernels.warm(families=is_blocks)

    def apart(self, rank: int, world_size: int) -> Course:
        """Return a course of the same plot for another rank, at its beginning."""
        return Course(self.records, replace(self.plot, rank=rank, world_size=world_size))
