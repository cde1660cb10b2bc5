"""Batches of a data set that the core reads: no process but this one reads, threads read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data.dataloader import _DatasetKind

from shufflestore.collate.tables import Assemble, assembler, records_of
from shufflestore.collate.tensors import WIDENED, tensor
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.stream import Plan, Stream, Traffic, planned
from shufflestore.errors import CorruptData, NotFound, OptionError, ShardTruncated
from shufflestore.format.decode import Column
from shufflestore.loader.course import Records
from shufflestore.loader.fetch import BadRow, FetchOptions, OnError
from shufflestore.loader.huggingface import Served
from shufflestore.loader.iterators import Instead, MultiProcess, Tally
from shufflestore.loader.options import LoaderOptions
from shufflestore.loader.records import FromRecords
from shufflestore.loader.telemetry import next_in_range
from shufflestore.loader.transform import Transformed
from shufflestore.orders.epoch import Order
from shufflestore.orders.partition import Partition

__all__ = ["ColumnCollate", "Listed", "Native", "Tallied"]

_UNREADABLE: Final = (CorruptData, ShardTruncated, NotFound)
"""What a bad row raises."""
_TRIES: Final = 1000
"""Records that `fill` looks at for one that can be read."""


class ColumnCollate:
    """Stands where torch keeps a collate function: batches are put together from columns, never from records."""

    def __call__(self, records: Any) -> Any:
        """Refuse: nothing here makes records first."""
        raise OptionError(
            "this loader's batches are columns, put together while they are read; its collate_fn cannot be called "
            "with records. Pass a collate_fn of your own to get records. A trainer that skips batches (accelerate's "
            "skip_first_batches, transformers' resume without ignore_data_skip=True) need not: load_state_dict does"
        )

    def __repr__(self) -> str:
        return "columns"


class Native:
    """What is delivered of a data set, and how it comes."""

    def __init__(
        self,
        dataset: Dataset,
        options: LoaderOptions,
        collate_fn: Callable[[Any], Any] | None,
        on_error: OnError,
        served: Served | None = None,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            dataset: Whose records.
            options: How columns become batches.
            collate_fn: A user's own, of records; None for columns.
            on_error: What becomes of a record that cannot be read.
            served: The Hugging Face data set whose files these are, which then says how batches look.

        Raises:
            OptionError, SchemaError: By name and value.
        """
        self.options = options
        self.collate_fn = collate_fn
        self.on_error = on_error
        self.bad: list[BadRow] = []
        """Rows that were skipped or replaced, in the order in which they were met."""
        self.traffic = Traffic()
        self._served = served
        self._widen = WIDENED if options.format == "torch" and collate_fn is None else {}
        if served is not None:
            self._widen = served.widen
        self.open(dataset)

    def open(self, dataset: Dataset) -> None:
        """Take another snapshot of the same data set."""
        self.dataset = dataset
        self.projection = dataset.projection(self.options.columns, self._widen)
        self.finish = self._assembler()

    def records(self) -> Records:
        """Return what a state says of the data."""
        return Records(len(self.dataset), self.dataset.identity, self.dataset.manifest.snapshot)

    def _assembler(self) -> Assemble:
        """What puts batches together."""
        options, schema, served = self.options, self.dataset.manifest.schema, self._served
        if served is not None:
            return served.collate if self.collate_fn is None else FromRecords(self.collate_fn, served.records)
        if self.collate_fn is not None:
            return FromRecords(self.collate_fn, partial(records_of, schema))
        return assembler(
            schema, self.projection.names, "arrow" if options.format == "arrow" else "arrays", options.layout,
            options.fill_nulls, tensor if options.format == "torch" else None, options.return_ids,
        )  # fmt: skip

    def read(self, rest: Partition, order: Order, loader: Any, watch: Callable[[int], None]) -> Iterator[Any]:
        """Return an iterator over the batches of a partition.

        Args:
            rest: What is left of the epoch.
            order: Of the epoch.
            loader: Whose processes, if it has any, run the transform.
            watch: Called with the number of ids before they are computed.
        """
        selection = self.dataset.selection

        def batches(first_step: int, finish: Assemble) -> Iterator[Any]:
            plan = planned(rest, order, selection, watch, first_step)
            return Stream(
                self.dataset.reading, self.projection, plan, finish, self.options.prefetch_bytes, self.traffic
            )

        if self.on_error == "raise":
            return self._transformed(lambda finish: batches(0, finish), loader)

        def careful(finish: Assemble) -> Iterator[Any]:
            def patch(step: int) -> Any:
                return self._patched(order.ids(rest.positions(step, step + 1)[0]), finish)

            return _Careful(lambda step: batches(step, finish), patch)

        return self._transformed(careful, loader)

    def read_listed(self, plan: Plan, loader: Any) -> Iterator[Any]:
        """Return an iterator over the batches of a plan that somebody else made, of record numbers of the view."""
        dataset = self.dataset

        def selected(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
            planned = plan(count)
            return None if planned is None else (dataset.selection.ids(planned[0]), planned[1])

        def batches(finish: Assemble) -> Iterator[Any]:
            return Stream(dataset.reading, self.projection, selected, finish, self.options.prefetch_bytes, self.traffic)

        return self._transformed(batches, loader)

    def _transformed(self, batches: Callable[[Assemble], Iterator[Any]], loader: Any) -> Iterator[Any]:
        """Put the user's own work behind the reading: in this process's threads, or in worker processes."""
        options, pin = self.options, _pinner(loader)
        is_users = self.collate_fn is not None or (self._served is not None and self._served.runs_user_code)
        if loader.num_workers > 0 and is_users:
            return _InProcesses(batches(_kept), _Collated(self.finish, options.transform), loader)
        if loader.num_workers > 0 and options.transform is not None:
            return _InProcesses(batches(self.finish), options.transform, loader)
        items = batches(self.finish)
        if options.transform is not None and pin is not None:
            transform = options.transform
            return Transformed(items, lambda batch: pin(transform(batch)), options.transform_threads)
        work = options.transform or pin
        return items if work is None else Transformed(items, work, options.transform_threads)

    # -- rows that cannot be read ------------------------------------------------------------------

    def _patched(self, numbers: NDArray[np.int64], finish: Assemble) -> Any:
        """Read one batch record by record; leave out or replace what cannot be read."""
        ids = []
        for number in numbers.tolist():
            found = self._readable(number)
            if found is not None:
                ids.append(found)
        kept = np.array(ids, np.int64)
        return finish(kept, self.dataset.columns_at(kept, self.projection))

    def _readable(self, number: int) -> int | None:
        """Return the id of a record of the view, or of what stands for it; None if it is left out."""
        length, select = len(self.dataset), self.dataset.selection.ids
        record = int(select(np.array([number]))[0])
        cause = self._trouble(record)
        if cause is None:
            return record
        if self.on_error == "skip":
            self.bad.append(BadRow(record, cause))
            return None
        for step in range(1, min(length, _TRIES)):
            other = int(select(np.array([(number + step) % length]))[0])
            if self._trouble(other) is None:
                self.bad.append(BadRow(record, cause, other))
                return other
        raise CorruptData(
            f"{cause}; on_error='fill' looked at the {min(length, _TRIES) - 1} records behind it, and none of them can be "
            "read either: run `shufflestore verify`"
        )

    def _trouble(self, record: int) -> str | None:
        try:
            self.dataset.columns_at(np.array([record]), self.projection)
        except _UNREADABLE as error:
            return str(error)
        return None


class _Careful(Iterator[Any]):
    """Batches where some cannot be read: such a one is patched, and reading goes on behind it."""

    def __init__(self, begin: Callable[[int], Iterator[Any]], patch: Callable[[int], Any]) -> None:
        self._begin, self._patch = begin, patch
        self._step = 0
        self._items = begin(0)

    def __next__(self) -> Any:
        try:
            batch = next(self._items)
        except _UNREADABLE:
            self.close()
            batch = self._patch(self._step)
            self._items = self._begin(self._step + 1)
        self._step += 1
        return batch

    def close(self) -> None:
        """Stop reading ahead. Idempotent."""
        self._items.close()  # type: ignore[attr-defined]


# -- worker processes for the user's own code ------------------------------------------------------


class _Collated:
    """What a worker does with a batch of columns."""

    def __init__(self, finish: Assemble, transform: Callable[[Any], Any] | None) -> None:
        self._finish, self._transform = finish, transform

    def __call__(self, batch: tuple[NDArray[np.int64], dict[str, Column]]) -> Any:
        made = self._finish(*batch)
        return made if self._transform is None else self._transform(made)


def _kept(ids: NDArray[np.int64], columns: dict[str, Column]) -> tuple[NDArray[np.int64], dict[str, Column]]:
    return ids, columns


class _Applied:
    """A data set to torch's workers: its "indices" are batches, its records what becomes of them."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __getitem__(self, batch: Any) -> Any:
        return self._work(batch)


def _same(batch: Any) -> Any:
    return batch


class _InProcesses(Iterator[Any]):
    """An iterator over `work(batch)`, made by a loader's worker processes, in order."""

    def __init__(self, batches: Iterator[Any], work: Callable[[Any], Any], loader: Any) -> None:
        self._batches = batches
        seen = Instead(
            loader, dataset=_Applied(work), _dataset_kind=_DatasetKind.Map, _auto_collation=False, collate_fn=_same,
            _index_sampler=_Once(batches), drop_last=False, persistent_workers=False, in_order=True,
            _IterableDataset_len_called=None,
        )  # fmt: skip
        self._items = MultiProcess(seen, FetchOptions(), Tally, is_lazy=False, has_data=True)

    def __next__(self) -> Any:
        return next(self._items)

    def close(self) -> None:
        """Stop reading ahead and end the workers. Idempotent."""
        self._items._shutdown_workers()
        self._batches.close()  # type: ignore[attr-defined]


class _Once:
    """An iterator that torch's iterators may take twice while nothing was drawn of it."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items

    def __len__(self) -> int:
        return 0


def _pinner(loader: Any) -> Callable[[Any], Any] | None:
    """Return what puts a batch into page-locked memory, if that was asked for and there is a device for it."""
    if not loader.pin_memory or loader.num_workers > 0:
        return None
    if not torch.cuda.is_available() and not (hasattr(torch, "accelerator") and torch.accelerator.is_available()):
        return None
    from torch.utils.data._utils.pin_memory import pin_memory

    return pin_memory


class Tallied(Iterator[Any]):
    """Batches of a listed plan, counted as torch's iterators count theirs."""

    def __init__(self, items: Iterator[Any], plan: Listed, tally: Tally, steps: int) -> None:
        self._items, self._plan, self._tally, self._steps = items, plan, tally, steps

    def __len__(self) -> int:
        return self._steps

    def __next__(self) -> Any:
        tally = self._tally
        tally.is_begun = True
        tally.ask()
        batch = next_in_range(self._items)
        tally.send(self._plan.sizes.popleft())
        tally.arrive(batch)
        return batch

    def close(self) -> None:
        """Stop reading ahead. Idempotent."""
        self._items.close()  # type: ignore[attr-defined]


class Listed:
    """The plan of a user's own sampler."""

    def __init__(self, batches: Iterator[Any], length: int, is_batched: bool) -> None:
        """Prepare.

        Args:
            batches: Lists of record numbers, or single ones.
            length: Records that there are.
            is_batched: Whether they are lists.
        """
        self._batches, self._length, self._is_batched = batches, length, is_batched
        self.sizes: deque[int] = deque()
        """Records of the batches that were planned and not taken off here."""

    def __call__(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return ids and ends of at most so many further batches; see `dataset.stream.Plan`.

        Raises:
            OptionError: A number is no integer in [0, length).
        """
        numbers: list[Any] = []
        ends: list[int] = []
        for batch in self._batches:
            numbers.extend(batch if self._is_batched else [batch])
            ends.append(len(numbers))
            self.sizes.append(ends[-1] - (ends[-2] if len(ends) > 1 else 0))
            if len(ends) == count:
                break
        if not ends:
            return None
        ids, length = np.array(numbers), self._length
        if len(ids) and (ids.dtype.kind not in "iu" or int(ids.min()) < 0 or int(ids.max()) >= length):
            wrong = next(n for n in numbers if not isinstance(n, (int, np.integer)) or not 0 <= n < length)
            raise OptionError(f"the sampler gave {wrong!r}; records are numbered by integers in [0, {length})")
        return ids.astype(np.int64), np.array(ends, np.int64)
