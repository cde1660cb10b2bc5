"""The loader: torch's, with exact global shuffle, records fetched together, and exact state."""

from __future__ import annotations

import inspect
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, cast

import torch
import torch.utils.data
from torch.utils.data import BatchSampler, IterableDataset, Sampler, default_collate
from typing_extensions import TypeVar

from shufflestore.collate.layouts import Layout, Nulls
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.errors import OptionError, StateError, StorageError
from shufflestore.loader.course import Course, Plot, Progress, Reshuffle, order_named
from shufflestore.loader.epoch import EpochIterator, Read
from shufflestore.loader.fetch import BadRow, FetchOptions, OnError
from shufflestore.loader.huggingface import recognise
from shufflestore.loader.iterators import MultiProcess, SingleProcess, Tally
from shufflestore.loader.kinds import fetch_threads_for
from shufflestore.loader.live import Live
from shufflestore.loader.metrics import Stats
from shufflestore.loader.native import ColumnCollate, Listed, Native, Tallied
from shufflestore.loader.options import DATA_ONLY, Format, LoaderOptions, check_foreign, check_native
from shufflestore.loader.replay import Replay, Skipping
from shufflestore.loader.sampler import InOrder, OrderSampler, Shuffled, ShuffleSampler, records_of
from shufflestore.loader.telemetry import Meter, Pulled
from shufflestore.loader.trainers import accompany
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import Shuffle
from shufflestore.orders.holes import merged
from shufflestore.orders.partition import Remainder, Topology

__all__ = ["DataLoader", "merge_states"]

_log = logging.getLogger("shufflestore")
Reading = TypeVar("Reading", EpochIterator, Tallied)
T_co = TypeVar("T_co", covariant=True, default=Any)


class DataLoader(torch.utils.data.DataLoader[T_co], Generic[T_co]):
    """A `torch.utils.data.DataLoader` in exact global shuffle, resumable anywhere, at any world size.

    Of a path or `shufflestore.open(...)` it delivers dicts of columns, read by the native core. Of any other data
    set it delivers what torch's loader would, with the same data set, sampler, collate function and workers;
    the records of a batch, and of the batches behind it, are fetched together where the data set allows.

    Each epoch delivers every record exactly once over all ranks, in an order that depends on
    (records, seed, epoch) alone: not on batch size, world size, workers or how the data is stored.

    >>> import shufflestore as ss, tempfile
    >>> folder = tempfile.mkdtemp() + "/store"
    >>> _ = ss.convert([{"x": i} for i in range(10)], folder)
    >>> loader = ss.DataLoader(folder, batch_size=4, shuffle=True, seed=1)
    >>> sorted(x for batch in loader for x in batch["x"].tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> sorted(x for batch in ss.DataLoader(range(10), batch_size=4, shuffle=True) for x in batch.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: Shuffle = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        seed: int | None = None,
        columns: Sequence[str] | None = None,
        format: Format = "torch",
        layout: Layout = "jagged",
        transform: Callable[[Any], Any] | None = None,
        transform_threads: int = 1,
        prefetch_bytes: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: Remainder | None = None,
        reshuffle: Reshuffle = "each_epoch",
        fill_nulls: Nulls = None,
        return_ids: bool = False,
        split: str | None = None,
        fetch_threads: int | str = "auto",
        completion_order: bool = False,
        on_error: OnError = "raise",
        seed_records: bool = False,
        block_records: int | None = None,
        open_blocks: int | None = None,
    ) -> None:
        """Prepare; nothing is read before the first `next`.

        The arguments up to `in_order` are torch's, with torch's defaults, exclusions and errors. On our own data
        `num_workers` counts processes that run `transform` or `collate_fn`; no process but this one reads.

        Args:
            dataset: A path as for `shufflestore.open`, what it returned, or any data set that torch's loader takes.
            batch_size: Records a batch on this rank; None for single records.
            shuffle: True for the exact global shuffle; "blocks" for a random order, exact too, in which few blocks of the
                data are in use at a time, for stores where reading all over the data is too dear: no uniform order, see
                docs; else in order.
            sampler: Supplies record numbers instead; then nothing here divides them among ranks.
            batch_sampler: Likewise, by the batch.
            num_workers: Worker processes.
            collate_fn: Called with a list of records. On our own data: of record dicts; slow.
            pin_memory: Deliver in page-locked memory, if there is a device.
            drop_last: Without `remainder`: drop the last, smaller global step.
            timeout: Seconds to wait for a worker's batch; 0 waits for ever.
            worker_init_fn: Called in each worker with its number.
            multiprocessing_context: How workers start: "fork", "spawn", "forkserver" or a context.
            generator: Of the workers' seeds, and of `seed` where none is given.
            prefetch_factor: Batches a worker is ahead; 2 where there are workers.
            persistent_workers: Keep workers between epochs.
            pin_memory_device: Deprecated by torch.
            in_order: False delivers batches as workers finish them.
            seed: Of the order, any integer; None means 0. Never drawn from a global generator.
            columns: Names of the columns to read; None for all.
            format: "torch" for tensors, "numpy" for arrays, "arrow" for tables.
            layout: Of variable-length numbers: "jagged" (values, offsets), "padded", "list", "nested" or "packed".
            transform: Called with each assembled batch, in threads, `transform_threads` at once, or in workers.
            transform_threads: More than one need a transform that may run beside itself.
            prefetch_bytes: Look-ahead; None for what suits the store. Delivered batches do not count.
            rank: Of this process; None to find out from torch.distributed or the environment. Data sets that
                are not ours are divided only if rank and world size are given.
            world_size: Processes that share the epoch; None likewise.
            remainder: What becomes of records that fill no whole global step: "uneven" (last batches
                differ by at most one record and may be empty), "drop", or "pad" from the epoch's head.
            reshuffle: "once" keeps one order for all epochs, which can harm training; see docs.
            fill_nulls: What stands for null numbers, for all columns or by name; None refuses them.
            return_ids: Add "record_id", int64, the records' numbers in their split.
            split: Of a path that has several.
            fetch_threads: Records of a foreign data set fetched at once in each process; "auto" is 16 for kinds that
                are known to allow it or say `thread_safe = True`, else 1.
            completion_order: Records stand in a batch as they were finished, not the same from run to run.
            on_error: Of a record that cannot be read: "raise", "skip" it (a shorter batch, possibly empty), or "fill"
                its place with the next one that can. See `quarantine`.
            seed_records: Seed python's, numpy's and torch's generators for each record from (seed, epoch, record), so
                that a data set's random augmentation is the same for any workers.
            block_records: Of a block, with shuffle="blocks"; None for about 1 MiB of our own data, else needed.
            open_blocks: Blocks in use at a time, with shuffle="blocks"; None means 64.

        Raises:
            OptionError, NotFound, CorruptData, SchemaError: By name and value.
            ValueError, TypeError: As torch does.
        """
        given = {name: value for name, value in locals().items() if name in DATA_ONLY}
        self._opened = (dataset, split) if isinstance(dataset, (str, os.PathLike)) else None
        dataset = _opened(dataset, split)
        if isinstance(collate_fn, ColumnCollate):
            collate_fn = None  # a trainer made this loader anew from another one's attributes
        is_ours = isinstance(dataset, Dataset) and (batch_size is not None or batch_sampler is not None)
        rest = remainder if remainder is not None else "drop" if drop_last else "uneven"
        order = order_named(shuffle, reshuffle, block_records, open_blocks, dataset)
        plot = Plot(
            order, seed, 1 if batch_size is None else batch_size, rest, rank, world_size, is_ours,
            None if generator is None else lambda: _drawn(generator), (block_records, open_blocks),
        )  # fmt: skip
        self._native: Native | None = None
        if is_ours:
            options = LoaderOptions(
                1 if batch_size is None else batch_size, columns, format, layout, transform, transform_threads, fill_nulls,
                prefetch_bytes, return_ids,
            )  # fmt: skip
            self._native = Native(dataset, options, collate_fn, on_error)
            check_native(format, collate_fn, seed_records, completion_order)
        else:
            check_foreign(given)
        self._records = records_of(dataset) if self._native is None else self._native.records
        self._course: Course | None = None
        self._is_own_sampler = sampler is None and batch_sampler is None and not isinstance(dataset, IterableDataset)
        made, torch_shuffle = sampler, None if shuffle is None else bool(shuffle)
        if self._is_own_sampler:
            self._course = Course(self._records, plot)
            made, torch_shuffle = self._own_sampler(dataset, plot, generator), None
        torch_collate = ColumnCollate() if is_ours and collate_fn is None else collate_fn
        super().__init__(
            dataset, batch_size, torch_shuffle, made, batch_sampler, num_workers, torch_collate,
            pin_memory, drop_last, timeout, worker_init_fn, multiprocessing_context, generator,
            prefetch_factor=prefetch_factor, persistent_workers=persistent_workers, pin_memory_device=pin_memory_device,
            in_order=in_order,
        )  # fmt: skip
        self.shuffle, self.seed, self.rank, self.world_size, self.remainder = shuffle, seed, rank, world_size, remainder
        self.columns, self.format, self.layout, self.fill_nulls = columns, format, layout, fill_nulls
        self.transform, self.transform_threads, self.prefetch_bytes = transform, transform_threads, prefetch_bytes
        self.reshuffle, self.return_ids, self.split = reshuffle, return_ids, None
        self.fetch_threads, self.completion_order, self.on_error = fetch_threads, completion_order, on_error
        self.seed_records, self.block_records, self.open_blocks = seed_records, block_records, open_blocks
        if not self._is_own_sampler:
            self._adopt()
        self._is_prepared = False
        self._replay = None if self._course is not None else Replay(self._records, self._order_of())
        self._fetch = FetchOptions()
        if not is_ours and not isinstance(dataset, IterableDataset):
            threads = fetch_threads_for(dataset, 1 if seed_records and fetch_threads == "auto" else fetch_threads)
            record_seed = self._order_seed if seed_records else None
            self._fetch = FetchOptions(threads, completion_order, on_error, record_seed)
        self._bad: list[BadRow] = [] if self._native is None else self._native.bad
        self._counts = _Counts(self._native, self._course, self._replay, self._bad)
        self._meter = Meter(self._counts)
        is_batched = self._auto_collation and not (seed_records or completion_order or worker_init_fn)
        self._served = recognise(dataset) if is_batched and fetch_threads == "auto" else None
        self._tally: Tally | None = None
        """Of the newest iterator over a foreign data set."""
        self._reading: weakref.ref[Any] | None = None
        """The newest iterator over our own. It belongs to the caller: what it read ahead goes when he drops it."""

    def _own_sampler(self, dataset: Any, plot: Plot, generator: torch.Generator | None) -> Sampler[int]:
        """Return the sampler of a loader that was given none."""
        course = self._course
        assert course is not None, "just made"
        if plot.is_shared or plot.rank is not None:
            return ShuffleSampler.of(course, dataset)
        if plot.order == "sequential":
            return InOrder(dataset, course)
        return Shuffled(dataset, course, generator)

    def _adopt(self) -> None:
        """Go by the course of a sampler of ours, also one that stands in a user's or a trainer's batch sampler."""
        plain = type(self.batch_sampler) is BatchSampler or self.batch_sampler is None
        found = getattr(self.batch_sampler, "sampler", None) if self.batch_sampler is not None else self.sampler
        if not plain or not isinstance(found, OrderSampler):
            return
        self._course = course = found.course
        size = getattr(self.batch_sampler, "batch_size", 1)
        remainder: Remainder = "drop" if getattr(self.batch_sampler, "drop_last", False) else course.plot.remainder
        if self._native is not None:
            course.plot = replace(course.plot, batch_size=size, remainder=remainder)
            course.records = self._records

    def _order_of(self) -> str:
        what = self.batch_sampler if self.batch_sampler is not None else self.sampler
        if isinstance(self.dataset, IterableDataset):
            what = self.dataset
        elif type(what) is BatchSampler:
            what = what.sampler
        return f"a {type(what).__qualname__}"

    @property
    def _order_seed(self) -> int:
        return self._course.seed if self._course is not None else int(self.seed or 0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes, and be copied, as the arguments and the place in the epoch; workers and look-ahead stay."""
        given = {
            name: getattr(self, name) for name in inspect.signature(DataLoader.__init__).parameters if name != "self"
        }
        if self._is_own_sampler:
            given["sampler"] = given["batch_sampler"] = None
        elif self.batch_size is None and self.batch_sampler is not None:
            given |= {"sampler": None, "batch_size": 1, "drop_last": False, "shuffle": None}
        else:
            given["batch_sampler"] = None
        return _remade, (type(self), given, self.state_dict())

    # -- who, how many -----------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """This process among those that share the epoch; found out when first needed.

        Raises:
            StateError: It changed after the first batch.
        """
        return Topology() if self._course is None else self._course.topology

    @property
    def quarantine(self) -> list[BadRow]:
        """Records that could not be read and were skipped or replaced, with the cause, in the order they were met."""
        return list(self._bad)

    def stats(self) -> Stats:
        """Return what was delivered so far, how long it was waited for, and what was read. Tens of microseconds."""
        return self._meter.stats()

    def live(self) -> Live:
        """Return a live line on stderr, kept up to date while the loader is iterated over; to be closed, or for `with`."""
        return Live(self._meter)

    def __len__(self) -> int:
        """Return this rank's batches of a whole epoch, also after a state was loaded."""
        if self._native is not None and self._course is not None:
            return self._course.partition().step_count
        return super().__len__()

    @property
    def remaining(self) -> int:
        """This rank's batches from the position that the next (or present) iterator goes on from.

        Raises:
            StateError: The sampler is not ours, so nobody can know.
        """
        if self._course is None:
            raise StateError(f"what is left of the epoch is known to {self._order_of()} alone")
        if self._native is not None:
            return self._course.remaining.step_count
        tally = self._tally
        return self._batches_of(
            self._course.records_left(None if tally is None or not tally.is_begun else tally.records)
        )

    def _batches_of(self, records: int) -> int:
        """Batches that torch's batch sampler makes of so many records."""
        size = getattr(self.batch_sampler, "batch_size", 1)
        return records // size if getattr(self.batch_sampler, "drop_last", False) else -(-records // size)

    # -- epochs and state --------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterator.

        A loaded position is kept if it is of this epoch, else dropped with a log line.

        Raises:
            OptionError: Negative, or no integer.
        """
        if self._course is not None:
            self._course.set_epoch(epoch)
            return
        cast(Replay, self._replay).set_epoch(epoch)
        for who in (self.sampler, self.batch_sampler, getattr(self.batch_sampler, "sampler", None), self.dataset):
            setter = getattr(who, "set_epoch", None)
            if setter is not None:
                setter(epoch)
                return

    def state_dict(self) -> dict[str, Any]:
        """Return where the newest iterator is: JSON, less than 1 KiB, O(1).

        It counts batches that `next` has returned, not those read ahead. Any rank's state serves all
        ranks, at any world size and batch size, if all have returned as many batches.

        With `in_order=False` it holds what was delivered before its turn, too; on several ranks, what this one
        delivered: load what `shufflestore.merge_states` makes of all of them.

        Over an iterable data set or somebody else's sampler it is the number of batches; on resume those are drawn
        again (of a sampler) or made again (of an iterable data set), and left out.
        """
        course, tally = self._course, self._tally
        if course is None:
            return cast(Replay, self._replay).state_dict()
        if self._native is not None or tally is None:
            return course.cursor().to_dict()
        if not tally.is_begun:
            return course.upcoming().to_dict()
        if self.in_order or self.num_workers == 0:
            return course.cursor(tally.records).to_dict()
        return course.share(tally.records, tally.beyond()).to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator go on where a state was taken.

        Where the data set was given by its path and has been appended to since, the state's own snapshot
        is opened again, so that the epoch ends as it began.

        Raises:
            StateError: Of another data set, order or version, another seed than was given here, or damaged.
        """
        if self._course is None:
            if not isinstance(state, dict):
                raise StateError(
                    f"a saved state is a dict, not {type(state).__name__}; pass what state_dict() returned"
                )
            cast(Replay, self._replay).load_state_dict(state)
            return
        cursor = Cursor.from_dict(state)
        self._return_to(cursor)
        self._course.load(cursor)

    def _return_to(self, cursor: Cursor) -> None:
        """Open the snapshot that a state was taken from, if it is an older one of the same path."""
        if self._opened is None or self._native is None or cursor.snapshot is None:
            return
        data = self._native.dataset
        now = data.manifest.snapshot
        if cursor.snapshot >= now or cursor.dataset == data.identity:
            return
        try:
            older = open_dataset(*self._opened, snapshot=cursor.snapshot)
        except OptionError:
            return  # not there (any more): the check that follows says that the data set is another
        if older.identity == cursor.dataset:
            _log.info(
                "%s: going back to snapshot %d of %d, which the state was taken from", older.uri, cursor.snapshot, now
            )
            self._native.open(older)
            self.__dict__["dataset"] = older  # torch forbids setting it from outside

    # -- accelerate --------------------------------------------------------------------------------

    use_stateful_dataloader = True
    """By this accelerate sees that `save_state` is to keep our state, and `load_state` to load it."""

    @property
    def _is_accelerate_prepared(self) -> bool:
        """Asked by `Accelerator.prepare`, and by nothing else: whether it must leave this loader as it is."""
        self._is_prepared = self._is_divided
        return self._is_prepared

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, value: bool) -> None:
        self._is_prepared = value

    @property
    def _is_divided(self) -> bool:
        """Whether a sampler of ours gives each rank its share, so that a trainer must not do so again."""
        return isinstance(getattr(self.batch_sampler, "sampler", self.sampler), ShuffleSampler)

    def _accompanied(self, batches: Iterator[Any], steps: Callable[[], int]) -> Iterator[Any]:
        """Do what accelerate does not do for a loader that says it is prepared."""
        if not self._is_prepared:
            return batches
        is_padded = self._course is not None and self._course.plot.remainder == "pad"
        is_placed = self.rank is not None or (self._course is not None and self._course.plot.rank is not None)
        return accompany(batches, steps, is_pinned=self.pin_memory, is_padded=is_padded, is_placed=is_placed)

    def _foreign_steps(self) -> int:
        """Batches that a new iterator over a foreign data set will give."""
        course = self._course
        if course is None:
            return len(self) - cast(Replay, self._replay).to_skip
        return len(self) if course.upcoming().position == 0 else self._batches_of(course.remaining.record_count)

    # -- iteration ---------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        """Return an iterator over one epoch, or what is left of a loaded one.

        Epoch, position and rank are settled at its first `next`. The state is that of the newest iterator.
        """
        native, course = self._native or self._serving(), self._course
        if native is None:
            return self._foreign_iterator()
        self.close()
        if course is None or not (native is self._native or self._is_own_sampler):
            return self._accompanied(self._noted(self._listed_iterator(native)), self._foreign_steps)
        progress = Progress()
        course.begin(progress)

        def bind() -> Read:
            order = course.bind(progress)
            return lambda rest: self._accompanied(native.read(rest, order, self, course.watch), lambda: rest.step_count)

        return self._noted(EpochIterator(progress, bind, self.__len__, self._meter))

    def _noted(self, iterator: Reading) -> Reading:
        self._reading = weakref.ref(iterator)
        return iterator

    def _listed_iterator(self, native: Native) -> Tallied:
        """Iterate over the numbers that somebody's sampler gives, over data that the core reads."""
        plan = Listed(iter(self._index_sampler), len(native.dataset), self._auto_collation)
        return Tallied(native.read_listed(plan, self), plan, self._new_tally(), len(self))

    def _serving(self) -> Native | None:
        """Return what reads a Hugging Face data set from its own files; None where `datasets` has to."""
        if self._served is not None and not self._served.is_current:  # its format was set in place
            self._served, self._counts.native = recognise(self.dataset), None
        if self._served is None or self._counts.native is not None:
            return self._counts.native
        collate_fn = None if self.collate_fn is default_collate else self.collate_fn
        options = LoaderOptions(1, prefetch_bytes=self.prefetch_bytes)
        try:
            native = Native(self._served.dataset, options, collate_fn, self.on_error, self._served)
        except StorageError as cause:
            _log.info("the Hugging Face data set is read by datasets itself: its files cannot be indexed: %s", cause)
            self._served = None
            return None
        native.bad = self._bad
        self._counts.native = native
        return native

    def _foreign_iterator(self) -> Iterator[Any]:
        """Iterate as torch does."""
        iterator: Iterator[Any] = super().__iter__()
        if isinstance(self.dataset, IterableDataset):
            for _ in range(
                cast(Replay, self._replay).begin(are_made=True)
            ):  # what was delivered is made again, and left out
                next(iterator, None)
        return self._accompanied(iterator, self._foreign_steps)

    @property
    def _index_sampler(self) -> Any:
        """What torch's iterators draw from."""
        inner = super()._index_sampler
        if self._replay is None or isinstance(self.dataset, IterableDataset):
            return inner
        return Skipping(inner, self._replay.begin)

    def _new_tally(self) -> Tally:
        course, replay = self._course, self._replay
        if course is not None:
            self._tally = Tally(lambda: course.epoch, self._bad, self._meter)
        else:
            assert replay is not None, "one of the two"
            tally = self._tally = Tally(lambda: replay.epoch, self._bad, self._meter)
            replay.watch(lambda: tally.batches)
        return self._tally

    def _get_iterator(self) -> Any:
        """Return a new iterator of torch's kind; called by torch's `__iter__`."""
        if self.num_workers == 0:
            return SingleProcess(self, self._fetch, self._new_tally())
        self.check_worker_number_rationality()
        new_tally = weakref.WeakMethod(self._new_tally)  # persistent workers' iterator is kept by the loader itself
        return MultiProcess(self, self._fetch, lambda: (new_tally() or Tally)(), is_lazy=self._course is not None)

    def close(self) -> None:
        """Stop reading ahead. Idempotent; the loader can be iterated over again."""
        iterator = self._reading() if self._reading is not None else None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> DataLoader[T_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remade(kind: type[DataLoader[Any]], given: dict[str, Any], state: dict[str, Any]) -> DataLoader[Any]:
    made = kind(**given)
    made.load_state_dict(state)
    return made


class _Counts:
    """What a loader's meter asks for. Knows no loader, which would keep itself alive through it."""

    def __init__(self, native: Native | None, course: Course | None, replay: Replay | None, bad: list[BadRow]) -> None:
        self.native, self._course, self._replay, self._bad = native, course, replay, bad

    def __call__(self) -> Pulled:
        course, native = self._course, self.native
        epoch = course.epoch if course is not None else cast(Replay, self._replay).epoch
        rank = 0 if course is None else course.known_rank
        if native is None:
            return Pulled("torch", quarantined=len(self._bad), epoch=epoch, rank=rank)
        store, traffic = native.dataset.reading.store, native.traffic
        engine = getattr(store, "engine", None)
        counters: dict[str, int] = getattr(store, "counters", dict)()
        return Pulled(
            str(engine or "plain"),
            counters.get("bytes_read"),
            traffic.used_bytes,
            traffic.ahead,
            len(self._bad),
            epoch,
            rank,
        )


def _opened(dataset: Any, split: str | None) -> Any:
    if isinstance(dataset, (str, os.PathLike)):
        return open_dataset(dataset, split)
    if split is not None:
        raise OptionError(f"split={split!r} goes with a path; for an open data set say dataset.split({split!r})")
    return dataset


def _drawn(generator: torch.Generator) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one state for all ranks, where each delivered batches out of order (`in_order=False`).

    Args:
        states: What `state_dict` returned on each rank, in any order, of one iteration.

    Raises:
        StateError: One is damaged, or they are not of all ranks of one iteration.
    """
    return merged([Cursor.from_dict(state) for state in states]).to_dict()
