"""torch's own iterators, with records fetched together and with a count of what arrived.

torch's machinery of worker processes (queues, signals, pinning, time-outs, persistence) is kept as it is.
A worker differs in three things: what turns indices into data, that it looks at the batches behind the one it is
asked for, and the memory in which its batches cross to the parent.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import _utils
from torch.utils.data.dataloader import _DatasetKind, _MultiProcessingDataLoaderIter, _SingleProcessDataLoaderIter

from shufflestore.loader.fetch import BadRow, Delivered, Fetcher, FetchOptions, Task
from shufflestore.loader.messages import ResultQueue, SegmentQueue
from shufflestore.loader.segments import SegmentPool, SegmentTable
from shufflestore.loader.telemetry import Meter, batch_bytes

__all__ = ["Instead", "MultiProcess", "SingleProcess", "Tally"]


class Tally:
    """What an iterator gave out and what of it arrived, in steps and in records of this rank."""

    def __init__(
        self, epoch: Callable[[], int] = int, bad: list[BadRow] | None = None, meter: Meter | None = None
    ) -> None:
        """Prepare.

        Args:
            epoch: Says which, once something was drawn.
            bad: Where rows that could not be read are noted.
            meter: Told of each batch.
        """
        self.epoch = epoch
        self.meter = meter
        self.batches = 0
        """Returned by `next`."""
        self.records = 0
        """In all steps before the first that has not arrived."""
        self.is_begun = False
        self.bad: list[BadRow] = [] if bad is None else bad
        self._sizes: deque[int] = deque()
        """Of the steps from the frontier on."""
        self._frontier = 0
        self._sent = 0
        self._early: set[int] = set()
        self._failed = 0

    def send(self, size: int) -> int:
        """Note a step that is to be fetched. Returns its number."""
        self._sizes.append(size)
        self._sent += 1
        return self._sent - 1

    def ask(self) -> None:
        """Note that a step is waited for."""
        if self.meter is not None:
            self.meter.wait_began()

    def arrive(self, data: Any, step: int | None = None) -> None:
        """Note a step that was returned, the next one in order if none is named, and its data."""
        while self._failed:  # whoever asks for a further batch has done with the one that raised
            self._failed -= 1
            self._advance()
        self.batches += 1
        if self.meter is not None:
            at = 0 if step is None else step - self._frontier
            self.meter.delivered(self._sizes[at] if 0 <= at < len(self._sizes) else 1, batch_bytes(data))
        if step is None or step == self._frontier:
            self._advance()
            while self._frontier in self._early:
                self._early.remove(self._frontier)
                self._advance()
        elif step > self._frontier:
            self._early.add(step)

    def _advance(self) -> None:
        if self._sizes:
            self.records += self._sizes.popleft()
            self._frontier += 1

    def fail(self) -> None:
        """Note that the next step raised."""
        self._failed += 1

    def beyond(self) -> list[tuple[int, int]]:
        """Return what arrived before its turn: ranges of this rank's records, counted from the start."""
        found: list[tuple[int, int]] = []
        at = self.records
        for step, size in enumerate(self._sizes, self._frontier):
            if step in self._early and size:
                first = found.pop()[0] if found and found[-1][1] == at else at
                found.append((first, at + size))
            at += size
        return found


class Instead:
    """A loader as torch's iterators see it, with some attributes of its own."""

    def __init__(self, loader: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class SingleProcess(_SingleProcessDataLoaderIter):
    """Fetches in this process; with several threads, one batch ahead."""

    def __init__(self, loader: Any, options: FetchOptions, tally: Tally) -> None:
        super().__init__(loader)
        self.tally = tally
        self._is_map = self._dataset_kind == _DatasetKind.Map
        self._fetcher: Fetcher | None = None
        if self._is_map and not options.is_plain:
            self._fetcher = Fetcher(self._dataset, self._auto_collation, self._collate_fn, options)
        self._ahead: deque[Any] = deque()
        self._depth = 2 if options.threads > 1 else 1

    def _next_index(self) -> Any:
        index = super()._next_index()
        self.tally.is_begun = True
        step = self.tally.send(len(index) if self._auto_collation and self._is_map else 1)
        return index if self._fetcher is None else Task(step, self.tally.epoch(), index)

    def _next_data(self) -> Any:
        self.tally.ask()
        try:
            data = super()._next_data() if self._fetcher is None else self._fetched(self._fetcher)
        except StopIteration:
            raise
        except Exception:
            self.tally.fail()
            raise
        self.tally.arrive(data)
        return data

    def _fetched(self, fetcher: Fetcher) -> Any:
        while len(self._ahead) < self._depth:
            try:
                task = self._next_index()
            except StopIteration:
                break
            self._ahead.append(fetcher.start(task) if self._depth > 1 else task)
        if not self._ahead:
            fetcher.close()
            raise StopIteration
        delivered = fetcher.fetch(self._ahead.popleft())
        self.tally.bad += delivered.bad
        if self._pin_memory:
            return _utils.pin_memory.pin_memory(delivered.data, self._pin_memory_device)
        return delivered.data

    def __del__(self) -> None:
        fetcher = getattr(self, "_fetcher", None)
        if fetcher is not None:
            fetcher.close()


class MultiProcess(_MultiProcessingDataLoaderIter):
    """Fetches in worker processes."""

    def __init__(
        self, loader: Any, options: FetchOptions, new_tally: Callable[[], Tally], is_lazy: bool, has_data: bool = False
    ) -> None:
        """Start the workers.

        Args:
            loader: torch's.
            options: How workers fetch.
            new_tally: Called for each epoch.
            is_lazy: Nothing is drawn from the sampler before the first `next`.
            has_data: What the sampler gives is data, not numbers of records.
        """
        self._options = options
        self._new_tally = new_tally
        self.tally = Tally()
        self._is_lazy, self._has_data = is_lazy, has_data
        self._is_primed = False
        self._is_map = loader._dataset_kind == _DatasetKind.Map
        self._is_ours = self._is_map and not (options.is_plain and loader.in_order)
        self._segments = SegmentTable()
        context = _Context(
            loader.multiprocessing_context or torch.multiprocessing, self._segments, options if self._is_ours else None
        )
        super().__init__(Instead(loader, multiprocessing_context=context))

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self.tally = self._new_tally()
        self._is_primed = not self._is_lazy
        if first_iter and self._has_data:
            number = self._segments.number
            self._index_queues[:] = [SegmentQueue(each, SegmentPool(number)) for each in self._index_queues]  # type: ignore[misc]
        super()._reset(loader, first_iter)

    def _next_index(self) -> Any:
        index = super()._next_index()
        step = self.tally.send(len(index) if self._auto_collation and self._is_map else 1)
        return Task(step, self.tally.epoch(), index) if self._is_ours else index

    def _try_put_index(self) -> None:
        if self._is_primed:
            super()._try_put_index()

    def _next_data(self) -> Any:
        self.tally.is_begun = True
        self.tally.ask()
        if not self._is_primed:
            self._is_primed = True
            for _ in range(self._prefetch_factor * self._num_workers):
                super()._try_put_index()
        try:
            data = super()._next_data()
        except StopIteration:
            raise
        except Exception:
            self.tally.fail()
            raise
        if isinstance(data, Delivered):
            self.tally.bad += data.bad
            self.tally.arrive(data.data, None if self._in_order else data.step)
            return data.data
        self.tally.arrive(data)
        return data


class _Context:
    """A multiprocessing context whose processes run `_work`."""

    def __init__(self, context: Any, segments: SegmentTable, options: FetchOptions | None) -> None:
        self._context, self._given = context, (options, segments.number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> Any:  # as in multiprocessing
        return self._context.Process(target=_work, args=(self._given, target, *args))


def _work(
    given: tuple[FetchOptions | None, int],
    loop: Callable[..., None],
    kind: Any,
    dataset: Any,
    tasks: Any,
    results: Any,
    *rest: Any,
) -> None:
    """Run torch's worker loop in a worker process: data goes through segments, and records come from our fetcher."""
    options, number = given
    pool, table = SegmentPool(number), SegmentTable(number)
    pool.serve_default_collate()
    if options is not None:
        tasks = _with_fetcher(options, tasks)
    try:
        loop(kind, dataset, tasks, ResultQueue(results, pool), *rest)
    finally:
        pool.close()
        del table


def _with_fetcher(options: FetchOptions, tasks: Any) -> Any:
    """Let torch's worker loop fetch with our fetcher. Returns its queue of tasks, with eyes for the batches behind."""
    made: list[Fetcher] = []

    def fetcher(dataset: Any, auto_collation: bool, collate_fn: Callable[[Any], Any], drop_last: bool) -> Fetcher:
        del drop_last
        if not made:  # once more for each epoch of persistent workers
            made.append(Fetcher(dataset, auto_collation, collate_fn, options))
        return made[0]

    _utils.fetch._MapDatasetFetcher = fetcher  # type: ignore[misc,assignment]  # this process is ours alone
    return _Tasks(tasks, made) if options.threads > 1 else tasks


class _Tasks:
    """A worker's queue of tasks. Those that are waiting are begun, so that their records come together."""

    def __init__(self, tasks: Any, fetchers: list[Fetcher]) -> None:
        self._tasks, self._fetchers = tasks, fetchers
        self._waiting: deque[Any] = deque()

    def get(self, timeout: float) -> Any:
        if not self._waiting:
            self._waiting.append(self._begun(self._tasks.get(timeout=timeout)))
        for item in self._there():
            self._waiting.append(self._begun(item))
        return self._waiting.popleft()

    def _there(self) -> Iterator[Any]:
        try:
            while True:
                yield self._tasks.get_nowait()
        except queue.Empty:
            return

    def _begun(self, item: Any) -> Any:
        if self._fetchers and isinstance(item, tuple) and isinstance(item[1], Task):
            return item[0], self._fetchers[0].start(item[1])
        return item
