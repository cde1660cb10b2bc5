"""Samplers whose order is arithmetic: no list of N numbers, instant start, exact state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any, Final

import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from shufflestore.errors import OptionError
from shufflestore.loader.course import Course, Plot, RecordProgress, Records, Reshuffle, order_named
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import Shuffle
from shufflestore.orders.partition import Remainder

__all__ = ["InOrder", "OrderSampler", "ShuffleSampler", "Shuffled", "records_of"]

_WINDOW_IDS: Final = 4096


def records_of(data: Any) -> Callable[[], Records]:
    """Return what asks any data set, or a number of records, what a state says of it."""
    return partial(_asked, data)


def _asked(data: Any) -> Records:
    try:
        length = data if isinstance(data, int) else len(data)
    except (TypeError, NotImplementedError):  # iterable data sets
        length = 0
    for name in ("identity", "_fingerprint"):
        identity = getattr(data, name, None)
        if isinstance(identity, str) and identity.isascii() and 0 < len(identity) <= 256:
            return Records(length, identity)
    return Records(length, f"{type(data).__qualname__}:{length}"[-256:].encode("ascii", "replace").decode())


class OrderSampler(Sampler[int]):
    """Gives out the record numbers of a course; the base of all samplers here."""

    course: Course

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's record numbers of one epoch, or of what is left of a loaded one.

        Epoch, position and rank are settled at the first `next`.
        """
        course = self.course
        progress = RecordProgress()
        course.begin(progress)
        order = course.bind(progress)
        partition = progress.partition
        assert partition is not None, "just bound"
        batch, step, steps = partition.batch_size, 0, max(1, 64 // partition.batch_size)
        while step < partition.step_count:
            last = min(step + steps, partition.step_count)
            positions, _ = partition.positions(step, last)
            course.watch(len(positions))
            for number in order.ids(positions).tolist():
                progress.delivered += 1
                yield number
            step, steps = last, max(1, min(2 * steps, _WINDOW_IDS // batch))
        progress.is_over = True

    def __len__(self) -> int:
        """Return this rank's records of a whole epoch."""
        return self.course.partition().record_count

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterator; see `DataLoader.set_epoch`."""
        self.course.set_epoch(epoch)

    def state_dict(self, delivered: int | None = None) -> dict[str, Any]:
        """Return where the newest iterator is: JSON, less than 1 KiB, O(1).

        Args:
            delivered: Of the records that the newest iterator gave out, those that arrived at the training
                loop on this rank. A loader with worker processes draws ahead, which a sampler cannot see:
                without `delivered`, records that were drawn count as delivered.

        Raises:
            OrderError: So many were not given out.
        """
        return self.course.cursor(delivered).to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator go on where a state was taken, at any world and batch size.

        Raises:
            StateError: Of another data set, order or version, another seed than was given, or damaged.
        """
        self.course.load(Cursor.from_dict(state))


class ShuffleSampler(OrderSampler, DistributedSampler[int]):
    """Stands for torch's RandomSampler and DistributedSampler: exact global shuffle in O(1) memory.

    Every epoch is another random order of all records, the same at any world size. Nothing is drawn from
    a global generator, nothing is stored: the first index comes at once, at any position and any length. Trainers
    take it for the DistributedSampler that it is, and leave it alone.

    Unlike torch's, it takes the next epoch by itself where `set_epoch` is not called.

    >>> sampler = ShuffleSampler(10, num_replicas=2, rank=0, seed=1)
    >>> len(sampler), sorted([*sampler, *ShuffleSampler(10, 2, 1, seed=1)]) == list(range(10))
    (5, True)
    """

    def __init__(
        self,
        dataset: Sized | int,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: Shuffle = True,
        seed: int | None = None,
        drop_last: bool = False,
        *,
        remainder: Remainder | None = None,
        batch_size: int = 1,
        reshuffle: Reshuffle = "each_epoch",
        block_records: int | None = None,
        open_blocks: int | None = None,
    ) -> None:
        """Prepare; nothing is computed before the first `next`.

        Args:
            dataset: With a length, or the number of records.
            num_replicas: Processes that share the epoch; None to find out from torch.distributed or the
                environment, at the first `next`.
            rank: Of this process; None likewise.
            shuffle: False for the order of the records; "blocks" for a random order in which few blocks of the data are
                in use at a time, which is no uniform one; see `DataLoader`.
            seed: Of the order, any integer; None means 0.
            drop_last: Without `remainder`: "drop".
            remainder: What becomes of records that fill no whole step of all ranks: "drop" leaves them out,
                "pad" repeats records of the head of the order, "uneven" does neither. None is "pad", as torch's.
            batch_size: Of the loader's batches, so that whole batches are padded or dropped. One record by default,
                as torch's.
            reshuffle: "once" keeps one order for all epochs.
            block_records: Of a block, with "blocks"; needed where the data set does not know its records' size.
            open_blocks: Blocks in use at a time, with "blocks"; None means 64.

        Raises:
            OptionError: By name and value; also "uneven" where ranks would get unequal numbers of batches.
        """
        is_number = isinstance(dataset, int) and not isinstance(dataset, bool) and dataset >= 0
        if not is_number and not hasattr(dataset, "__len__"):
            raise OptionError(f"dataset={dataset!r}; something with a length, or a number of records, is needed")
        self.dataset = dataset  # type: ignore[assignment]  # a number is enough
        self.shuffle, self.drop_last = bool(shuffle), drop_last
        if remainder is None:
            remainder = "drop" if drop_last else "pad"
        order = order_named(shuffle, reshuffle, block_records, open_blocks, dataset)
        plot = Plot(order, seed, batch_size, remainder, rank, num_replicas, blocks=(block_records, open_blocks))
        self.course = Course(records_of(dataset), plot)

    @classmethod
    def of(cls, course: Course, dataset: Sized) -> ShuffleSampler:
        """Return the sampler of a loader's course: both are always at the same place."""
        made = cls.__new__(cls)
        made.dataset = dataset  # type: ignore[assignment]
        made.shuffle, made.drop_last = course.plot.order != "sequential", course.plot.remainder == "drop"
        made.course = course
        return made

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's record numbers; see `OrderSampler`."""
        self._check_batches()
        return super().__iter__()

    def _check_batches(self) -> None:
        plot, world = self.course.plot, self.course.topology.world_size
        if plot.remainder != "uneven" or plot.batch_size == 1 or world == 1:
            return
        counts = {
            -(-self.course.apart(rank, world).partition().record_count // plot.batch_size) for rank in (0, world - 1)
        }
        if len(counts) > 1:
            raise OptionError(
                f"remainder='uneven': with {self.course.records().length:,} records on {world} ranks and batch_size="
                f"{plot.batch_size}, ranks get {min(counts)} or {max(counts)} batches, and a rank without its last batch would "
                "keep the others waiting; take 'pad' or 'drop', or shufflestore.DataLoader, which delivers an empty batch"
            )

    # The names that torch's class has.

    @property
    def seed(self) -> int:  # type: ignore[override]
        """Of the order."""
        return self.course.seed

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """Of the newest iterator, or of the next one where none has begun."""
        return self.course.epoch

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Processes that share the epoch."""
        return self.course.topology.world_size

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Of this process."""
        return self.course.topology.rank

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """This rank's records of a whole epoch."""
        return len(self)

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Records of a whole epoch over all ranks, padding included."""
        part = self.course.partition()
        return part.length if part.remainder == "uneven" else part.step_count * part.step_records


class Shuffled(OrderSampler, RandomSampler):
    """What `shuffle=True` means for a data set of torch's kind: trainers see a RandomSampler and may replace it."""

    def __init__(self, dataset: Sized, course: Course, generator: torch.Generator | None) -> None:
        """Take a loader's course."""
        RandomSampler.__init__(self, dataset, generator=generator)
        self.course = course


class InOrder(OrderSampler, SequentialSampler):
    """What `shuffle=False` means for a data set of torch's kind."""

    def __init__(self, dataset: Sized, course: Course) -> None:
        """Take a loader's course."""
        SequentialSampler.__init__(self, dataset)
        self.course = course
