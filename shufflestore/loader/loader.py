"""The loader: batches of a data set in exact global order, resumable anywhere, at any world size."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np

from shufflestore.collate.layouts import Layout, Nulls
from shufflestore.collate.tables import Assemble, assembler, records_of
from shufflestore.collate.tensors import WIDENED, tensor
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.stream import Stream, planned
from shufflestore.distributed import resolve
from shufflestore.errors import OptionError, StateError
from shufflestore.loader.epoch import EpochIterator, Progress, Read
from shufflestore.loader.options import Format, LoaderOptions
from shufflestore.loader.transform import Transformed
from shufflestore.orders import kernels
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import OrderName, make_order
from shufflestore.orders.partition import Partition, Remainder, Topology

__all__ = ["DataLoader"]

_log = logging.getLogger("shufflestore")
_COMPILE_AFTER: Final = 50_000_000
"""Ids computed by the numpy twin, at 30 to 40 ns each, before compiling the kernel (one to three seconds) pays."""
Reshuffle = Literal["each_epoch", "once"]


class DataLoader:
    """Iterates over a data set in batches, in exact global shuffle if asked for.

    Each epoch delivers every record exactly once over all ranks, in an order that depends on
    (records, seed, epoch) alone: not on batch size, world size, threads or how the data is stored.

    >>> import shufflestore as ss, tempfile
    >>> folder = tempfile.mkdtemp() + "/store"
    >>> _ = ss.convert([{"x": i} for i in range(10)], folder)
    >>> loader = ss.DataLoader(folder, batch_size=4, shuffle=True, seed=1)
    >>> sorted(x for batch in loader for x in batch["x"].tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str] | Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        seed: int | None = None,
        columns: Sequence[str] | None = None,
        format: Format = "torch",
        layout: Layout = "jagged",
        transform: Callable[[Any], Any] | None = None,
        transform_threads: int = 1,
        collate_fn: Callable[[list[dict[str, Any]]], Any] | None = None,
        drop_last: bool = False,
        prefetch_bytes: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: Remainder | None = None,
        reshuffle: Reshuffle = "each_epoch",
        fill_nulls: Nulls = None,
        return_ids: bool = False,
        split: str | None = None,
    ) -> None:
        """Prepare; nothing is read before the first `next`.

        Args:
            dataset: A path as for `shufflestore.open`, or what it returned.
            batch_size: Records a batch on this rank.
            shuffle: Exact global shuffle; else in order.
            seed: Of the order, any integer; None means 0. Never drawn from a global generator.
            columns: Names of the columns to read; None for all.
            format: "torch" for tensors, "numpy" for arrays, "arrow" for tables.
            layout: Of variable-length numbers: "jagged" (values, offsets), "padded" or "list".
            transform: Called with each assembled batch, in threads, `transform_threads` at once.
            transform_threads: More than one need a transform that may run beside itself.
            collate_fn: Called with a list of record dicts instead of the column path; slow.
            drop_last: Without `remainder`: drop the last, smaller global step.
            prefetch_bytes: Look-ahead; None for what suits the store. Delivered batches do not count.
            rank: Of this process; None to find out from torch.distributed or the environment.
            world_size: Processes that share the epoch; None likewise.
            remainder: What becomes of records that fill no whole global step: "uneven" (last batches
                differ by at most one record and may be empty), "drop", or "pad" from the epoch's head.
            reshuffle: "once" keeps one order for all epochs, which can harm training; see docs.
            fill_nulls: What stands for null numbers, for all columns or by name; None refuses them.
            return_ids: Add "record_id", int64, the records' numbers in their split.
            split: Of a path that has several.

        Raises:
            OptionError, NotFound, CorruptData, SchemaError: By name and value.
        """
        self.options = LoaderOptions(
            batch_size, columns, format, layout, transform, transform_threads, fill_nulls, prefetch_bytes, return_ids
        )  # fmt: skip
        self._opened = None if isinstance(dataset, Dataset) else (dataset, split)
        if not isinstance(dataset, Dataset):
            dataset = open_dataset(dataset, split)
        elif split is not None:
            raise OptionError(f"split={split!r} goes with a path; for an open data set say dataset.split({split!r})")
        self.dataset = dataset
        if collate_fn is not None and format != "torch":
            raise OptionError(f"collate_fn builds the batch itself, so format={format!r} has no say; leave one out")
        if reshuffle not in ("each_epoch", "once"):
            raise OptionError(f"reshuffle={reshuffle!r}; allowed are ['each_epoch', 'once']")
        if remainder not in (None, "drop", "pad", "uneven"):
            raise OptionError(f"remainder={remainder!r}; allowed are [None, 'drop', 'pad', 'uneven']")
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.seed = 0 if seed is None else int(seed)
        self._seed_is_given = seed is not None
        self.remainder: Remainder = remainder or ("drop" if drop_last else "uneven")
        self.order_name: OrderName = ("once" if reshuffle == "once" else "global") if shuffle else "sequential"
        self._given = (rank, world_size)
        if rank is not None or world_size is not None:
            resolve(rank, world_size)  # wrong ones are refused here, not at the first batch
        self._widen = WIDENED if format == "torch" and collate_fn is None else {}
        self._projection = dataset.projection(columns, self._widen)
        self._finish = self._assembler()
        self._computed = 0
        """Ids of shuffled orders so far."""
        self._next_epoch: int | None = None
        self._loaded: Cursor | None = None
        self._progress: Progress | None = None
        """Of the newest iterator. That one itself belongs to the caller: what it read ahead goes when he drops it."""
        self._iterator: weakref.ref[EpochIterator] | None = None
        self._last: Progress | None = None
        """Of the iterator before the newest, if anything was asked of it."""
        self._topology: Topology | None = None
        if collate_fn is not None:
            _log.info("collate_fn gets a list of record dicts: the slow path; a transform of the whole batch is faster")

    # -- who, how many -----------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """This process among those that share the epoch; found out when first needed.

        Raises:
            StateError: It changed after the first batch.
        """
        now = resolve(*self._given)
        if self._topology is not None and now != self._topology:
            raise StateError(
                f"rank and world size changed from {self._topology} to {now} after the first batch; make a new loader and "
                "load the state into it"
            )
        return now

    def _partition(self, start: int) -> Partition:
        return Partition(len(self.dataset), self.batch_size, self.topology, self.remainder, start)

    def __len__(self) -> int:
        """Return this rank's batches of a whole epoch, also after a state was loaded."""
        return self._partition(0).step_count

    @property
    def remaining(self) -> int:
        """This rank's batches from the position that the next (or present) iterator goes on from."""
        position = self._loaded.position if self._loaded else self._progress.position if self._progress else 0
        return self._partition(position).step_count

    # -- epochs and state --------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterator.

        A loaded position is kept if it is of this epoch, else dropped with a log line.

        Raises:
            OptionError: Negative, or no integer.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or epoch < 0:
            raise OptionError(f"epoch {epoch!r}; an integer of at least 0 is needed")
        if self._loaded is not None and self._loaded.epoch != epoch:
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

    def state_dict(self) -> dict[str, Any]:
        """Return where the newest iterator is: JSON, less than 1 KiB, O(1).

        It counts batches that `next` has returned, not those read ahead. Any rank's state serves all
        ranks, at any world size and batch size, if all have returned as many batches.
        """
        current = self._progress
        if self._loaded is not None:
            cursor = self._loaded
        elif current is not None and current.is_bound:
            cursor = self._cursor(current.epoch, current.position)
        else:
            cursor = self._cursor(self._next_epoch if self._next_epoch is not None else self._epoch_after(), 0)
        return cursor.to_dict()

    def _cursor(self, epoch: int, position: int) -> Cursor:
        data = self.dataset
        return Cursor(
            dataset=data.identity, snapshot=data.manifest.snapshot, order=self.order_name, seed=self.seed % 2**64,
            epoch=epoch, position=position, length=len(data),
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator go on where a state was taken.

        Where the data set was given by its path and has been appended to since, the state's own snapshot
        is opened again, so that the epoch ends as it began.

        Raises:
            StateError: Of another data set, order or version, another seed than was given here, or damaged.
        """
        cursor = Cursor.from_dict(state)
        self._return_to(cursor)
        cursor.check(
            identity=self.dataset.identity, order=self.order_name, seed=self.seed % 2**64 if self._seed_is_given else None,
            length=len(self.dataset),
        )  # fmt: skip
        self.seed = cursor.seed
        self._loaded = cursor
        self._next_epoch = None

    def _return_to(self, cursor: Cursor) -> None:
        """Open the snapshot that a state was taken from, if it is an older one of the same path."""
        now = self.dataset.manifest.snapshot
        if self._opened is None or cursor.snapshot is None or cursor.snapshot >= now:
            return
        if cursor.dataset == self.dataset.identity:
            return
        try:
            older = open_dataset(*self._opened, snapshot=cursor.snapshot)
        except OptionError:
            return  # not there (any more): the check that follows says that the data set is another
        if older.identity == cursor.dataset:
            _log.info(
                "%s: going back to snapshot %d of %d, which the state was taken from", older.uri, cursor.snapshot, now
            )
            self.dataset = older
            self._projection = older.projection(self.options.columns, self._widen)
            self._finish = self._assembler()

    # -- iteration ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over one epoch, or what is left of a loaded one.

        Epoch, position and rank are settled at its first `next`. The state is that of the newest iterator.
        """
        self.close()
        if self._progress is not None and self._progress.is_bound:
            self._last = self._progress
        progress = self._progress = Progress()
        iterator = EpochIterator(progress, lambda: self._bind(progress), self.__len__)
        self._iterator = weakref.ref(iterator)
        return iterator

    def close(self) -> None:
        """Stop reading ahead. Idempotent; the loader can be iterated over again."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bind(self, progress: Progress) -> Read:
        """Settle an iterator's epoch, position and rank; a loaded state is used up.

        All or nothing: first everything that can be interrupted, then assignments.
        """
        topology = self.topology
        loaded, chosen = self._loaded, self._next_epoch
        epoch = loaded.epoch if loaded is not None else chosen if chosen is not None else self._epoch_after()
        partition = self._partition(loaded.position if loaded is not None else 0)
        dataset, projection, finish = self.dataset, self._projection, self._finish
        order = make_order(self.order_name, len(dataset), self.seed, epoch)

        def read(rest: Partition) -> Iterator[Any]:
            plan = planned(rest, order, dataset.selection, self._watch)
            stream = Stream(dataset.reading, projection, plan, finish, self.options.prefetch_bytes)
            if self.options.transform is None:
                return stream
            return Transformed(stream, self.options.transform, self.options.transform_threads)

        progress.epoch, progress.partition = epoch, partition
        self._topology = topology
        self._loaded = self._next_epoch = None
        return read

    def _watch(self, ids: int) -> None:
        """Compile the order's kernel once enough ids were computed without it."""
        self._computed += ids
        if self._computed > _COMPILE_AFTER and self.order_name != "sequential":
            kernels.warm()

    def _assembler(self) -> Assemble:
        """What puts batches together."""
        options, schema = self.options, self.dataset.manifest.schema
        collate_fn = self.collate_fn
        if collate_fn is not None:
            return lambda ids, columns: collate_fn(records_of(columns, len(ids), schema))
        return assembler(
            schema, self._projection.names, "arrow" if options.format == "arrow" else "arrays", options.layout,
            options.fill_nulls, tensor if options.format == "torch" else None, options.return_ids,
        )  # fmt: skip
