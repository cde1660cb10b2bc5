"""Pieces to bundles, bundles to shards: in this process, or side by side in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Final

import pyarrow as pa

from shufflestore.convert.base import Piece, Source, SourceSpec, from_spec, schema_from_text, schema_to_text
from shufflestore.convert.journal import Journal
from shufflestore.convert.options import ConvertOptions
from shufflestore.convert.shards import ShardOptions, ShardWriter
from shufflestore.convert.snapshot import Entries
from shufflestore.errors import StorageError
from shufflestore.storage.target import Target

__all__ = ["Bundle", "bundled", "check_room", "write_bundles"]

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Bundle:
    """Consecutive pieces of one split that become a run of shards of their own."""

    number: int
    split: str
    pieces: tuple[int, ...]
    byte_count: int


_LEAST_BYTES: Final = 128 << 20
"""A bundle smaller than that is not worth a shard of its own."""
_MANY: Final = 16
"""Bundles that a small source is cut into, so that there is work for several processes."""


def bundled(pieces: Sequence[Piece], shard_bytes: int) -> list[Bundle]:
    """Group consecutive pieces of a split: a function of the pieces alone, so that the workers have no say in it.

    A bundle is closed when it fills a shard, or a sixteenth of the source if that is less.

    >>> [b.pieces for b in bundled([Piece(str(i), "train", 40 << 20, None, ()) for i in range(8)], 256 << 20)]
    [(0, 1, 2, 3), (4, 5, 6, 7)]
    >>> [b.pieces for b in bundled([Piece(str(i), "train", 1 << 20, None, ()) for i in range(90)], 2 << 20)][:2]
    [(0, 1), (2, 3)]
    """
    enough = min(shard_bytes, max(sum(piece.byte_count for piece in pieces) // _MANY, _LEAST_BYTES))
    made: list[Bundle] = []
    open_: dict[str, tuple[list[int], int]] = {}
    for number, piece in enumerate(pieces):
        members, size = open_.setdefault(piece.split, ([], 0))
        members.append(number)
        size += piece.byte_count
        open_[piece.split] = (members, size)
        if size >= enough:
            made.append(Bundle(0, piece.split, tuple(members), size))
            del open_[piece.split]
    made += [Bundle(0, split, tuple(members), size) for split, (members, size) in open_.items()]
    made.sort(key=lambda bundle: bundle.pieces)
    return [Bundle(i, b.split, b.pieces, b.byte_count) for i, b in enumerate(made)]


def check_room(target: Target, bundles: Sequence[Bundle]) -> None:
    """Raise OutOfSpace unless what these bundles will take is free."""
    target.check_room(sum(bundle.byte_count for bundle in bundles))


def write_bundles(
    source: Source,
    schema: pa.Schema,
    pieces: Sequence[Piece],
    bundles: Sequence[Bundle],
    target: Target,
    journal: Journal,
    options: ConvertOptions,
) -> tuple[Entries, int]:
    """Write every bundle that is not done yet; return all shards in order and how many were there."""
    with ThreadPoolExecutor(target.at_once, "shufflestore-notes") as pool:
        notes = list(pool.map(journal.done, [bundle.number for bundle in bundles]))
    made = {bundle.number: done for bundle, done in zip(bundles, notes, strict=True) if done is not None}
    resumed = sum(len(group) for group in made.values())
    todo = [bundle for bundle in bundles if bundle.number not in made]
    check_room(target, todo)
    spec = source.spec()
    workers = min(options.worker_count or len(os.sched_getaffinity(0)), len(todo))
    work = Work(target, schema_to_text(schema), tuple(pieces), options.shards)
    if spec is None or workers < 2:
        _alone(source, work, todo, journal, options, made)
    else:
        _together(spec, work, todo, journal, options, made, workers)
    return [(bundle.split, made[bundle.number]) for bundle in bundles], resumed


@dataclass(frozen=True)
class Work:
    """What a worker must know besides its bundle."""

    target: Target
    schema_text: str
    """Not a pa.Schema: pickling one loses the names and the nullability of the items of fixed_size_list."""
    pieces: tuple[Piece, ...]
    shards: ShardOptions


def write_bundle(source: Source, work: Work, bundle: Bundle, advance: Advance) -> ShardWriter:
    """Write one bundle's shards; the last of them may still be on its way."""
    prefix = f"{bundle.split}-{bundle.number:05d}"
    writer = ShardWriter(work.target, prefix, schema_from_text(work.schema_text), work.shards, advance)
    try:
        for number in bundle.pieces:
            if work.pieces[number].record_count == 0:
                continue
            for batch in source.read(work.pieces[number]):
                writer.add(batch)
        writer.end()
    except BaseException:
        writer.abandon()
        raise
    return writer


def finished(writer: ShardWriter) -> list[dict[str, Any]]:
    """Wait for a bundle's shards and return their rows of the shard table."""
    try:
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _alone(
    source: Source,
    work: Work,
    todo: Sequence[Bundle],
    journal: Journal,
    options: ConvertOptions,
    made: dict[int, list[dict[str, Any]]],
) -> None:
    totals = [0, 0, 0]
    all_bytes = sum(piece.byte_count for piece in work.pieces) or None
    last = 0.0

    def advance(records: int, size: int) -> None:
        nonlocal last
        totals[0] += records
        totals[1] += size
        if options.progress is not None and time.monotonic() - last > 0.1:
            last = time.monotonic()
            options.progress(totals[0], totals[1], totals[2], all_bytes)

    def settle() -> None:
        bundle, writer = waiting.popleft()
        made[bundle.number] = finished(writer)
        journal.note(bundle.number, made[bundle.number])
        totals[2] += bundle.byte_count

    waiting: deque[tuple[Bundle, ShardWriter]] = deque()
    try:
        for bundle in todo:
            waiting.append((bundle, write_bundle(source, work, bundle, advance)))
            while len(waiting) > work.target.behind:
                settle()
        while waiting:
            settle()
    finally:
        for _, writer in waiting:
            writer.abandon()
    if options.progress is not None:
        options.progress(totals[0], totals[1], totals[2], all_bytes)


class _ApartProcess(SpawnProcess):
    """A spawned process that does not run the user's script once more, which need not be guarded for that.

    Spawning tells the child where the parent's `__main__` is, and the child imports it. Workers need
    nothing of it: what they are given are values of this package.
    """

    @staticmethod
    def _Popen(process: Any) -> Any:
        script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            return SpawnContext.Process._Popen(process)
        finally:
            sys.modules["__main__"] = script


class _Apart(SpawnContext):
    """Spawned, not forked: this process may hold threads of torch, Arrow or the user."""

    Process = _ApartProcess


def _together(
    spec: SourceSpec,
    work: Work,
    todo: Sequence[Bundle],
    journal: Journal,
    options: ConvertOptions,
    made: dict[int, list[dict[str, Any]]],
    workers: int,
) -> None:
    context = _Apart()
    counters = context.Array("q", 3)  # records, bytes, and whether to stop
    all_bytes = sum(piece.byte_count for piece in work.pieces) or None
    source_bytes = 0
    with ProcessPoolExecutor(workers, context, _start_worker, (spec, work, counters)) as pool:
        # Workers inherit the mask: Ctrl-C reaches all of them, but the parent alone decides, and tells.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting = {pool.submit(_in_worker, bundle): bundle for bundle in todo}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    bundle = waiting.pop(future)
                    made[bundle.number] = future.result()  # no deadline: it is done
                    journal.note(bundle.number, made[bundle.number])
                    source_bytes += bundle.byte_count
                if options.progress is not None:
                    options.progress(counters[0], counters[1], source_bytes, all_bytes)
        except BrokenProcessPool as cause:
            raise StorageError(
                f"{work.target}: a converting process died (killed, or out of memory); what is finished is kept: "
                "go on with if_exists='resume', with fewer workers if memory was short"
            ) from cause
        finally:
            counters[2] = 1  # after an error or Ctrl-C nobody waits for what is left of other bundles
            for future in waiting:
                future.cancel()


_worker: tuple[Source, Work, Any] | None = None
"""In a worker process: its source, opened once."""


def _start_worker(spec: SourceSpec, work: Work, counters: Any) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, name="shufflestore-orphan", daemon=True).start()
    _worker = (from_spec(spec), work, counters)


def _die_with_parent() -> None:
    """A pool's workers wait for work for ever once its process was killed: they hold both ends of its pipes."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        parent.join(timeout=60.0)
    os._exit(1)


def _in_worker(bundle: Bundle) -> list[dict[str, Any]]:
    assert _worker is not None, "the initializer ran"
    source, work, counters = _worker

    def advance(records: int, size: int) -> None:
        with counters.get_lock():
            counters[0] += records
            counters[1] += size
        if counters[2]:
            raise KeyboardInterrupt

    return finished(write_bundle(source, work, bundle, advance))
