"""Convert: read a source's pieces, write shards side by side, commit once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from shufflestore.convert.base import (
    Piece,
    Source,
    SourceOptions,
    SourceSpec,
    detect,
    from_spec,
    schema_from_text,
    schema_to_text,
)
from shufflestore.convert.journal import Journal
from shufflestore.convert.shards import ShardOptions, ShardWriter
from shufflestore.dataset.inplace import difference, write_snapshot
from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.errors import AlreadyExists, OptionError, OutOfSpace, SchemaError, SourceError, StorageError
from shufflestore.format.manifest import Manifest, Split
from shufflestore.format.schema import schema_digest
from shufflestore.storage.commit import make_folder, sweep, sync_folder
from shufflestore.storage.local import LocalStore

__all__ = ["ConvertOptions", "ConvertReport", "IfExists", "commit", "convert", "prepare"]

IfExists = Literal["error", "resume", "append", "overwrite"]
_IF_EXISTS: Final = ("error", "resume", "append", "overwrite")
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class ConvertOptions:
    """How `convert` works; what to convert stands in its own arguments."""

    kind: str | None = None
    """Of the source, e.g. "parquet"; None to detect it."""
    worker_count: int | None = None
    """Processes; None for one a processor. The result does not depend on it."""
    shards: ShardOptions = field(default_factory=ShardOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    progress: Callable[[int, int, int, int | None], None] | None = None
    """Called some ten times a second with (records, bytes written, source bytes done, source bytes in all)."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion wrote."""

    path: str
    snapshot: int
    record_count: int
    """Records that this conversion added."""
    shard_count: int
    byte_count: int
    """Of shards and row indexes."""
    resumed_shard_count: int
    """Shards that an interrupted conversion had written already."""
    duration_seconds: float
    splits: dict[str, int]
    """Records of each split, in the whole data set."""


@dataclass(frozen=True)
class Bundle:
    """Consecutive pieces of one split that become a run of shards of their own."""

    number: int
    split: str
    pieces: tuple[int, ...]
    byte_count: int


def convert(
    source: Any,
    target: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    if_exists: IfExists = "error",
    options: ConvertOptions | None = None,
) -> ConvertReport:
    """Write a data set that can be read in any order.

    Args:
        source: A path, folder or glob (Parquet, JSONL, Arrow, Hugging Face folders, token files),
            a datasets.Dataset or DatasetDict, or any iterable of dicts.
        target: A folder, new or empty unless `if_exists` says otherwise.
        columns: Names of the columns to keep; None for all.
        schema: To cast to; None for the source's own.
        if_exists: "error"; "resume" an interrupted conversion of the same source to the same bytes;
            "append" as a new snapshot; "overwrite" with a new snapshot (`gc` frees the old one).
        options: Sizes, workers, progress.

    Returns:
        What was written. Nothing is visible to readers until all of it is.

    Raises:
        AlreadyExists: Something is at the target. SourceError, SchemaError: The input, by file and row.
        OutOfSpace: Before it starts or on the way; resume when there is room.
    """
    started = time.monotonic()
    chosen = options or ConvertOptions()
    opened = detect(source, chosen.kind, _source_options(chosen.source, columns, schema))
    folder = Path(target)
    if chosen.worker_count is not None and chosen.worker_count < 1:
        raise OptionError(f"worker_count={chosen.worker_count}; at least 1 is needed")
    journal = Journal(folder)
    unfinished = journal.plan()  # before the snapshots: a conversion commits, then ends its journal
    parent = prepare(folder, if_exists)
    if unfinished is not None and _committed(folder, parent, unfinished) is not None:
        sync_folder(folder / "snapshots")  # who committed it may have died before it was durable
        journal.end()
        unfinished = None
    if unfinished is not None and if_exists == "resume" and not opened.is_replayable:
        raise SourceError(
            "an iterator cannot be read again from its start; resume with what made it (a list, a function)"
        )
    pieces = list(opened.pieces())
    bundles = bundled(pieces, chosen.shards.shard_bytes)
    found = opened.schema()
    plan = _plan(opened, chosen, bundles, parent, if_exists)
    if if_exists == "resume":
        if unfinished is None and parent is not None:
            sweep(folder)
            journal.tidy()
            return _finished(folder, parent, plan, started)
        # How it joins what was there is what was said when it began.
        plan |= {key: unfinished[key] for key in ("base_snapshot", "mode") if unfinished and key in unfinished}
    appends = plan["mode"] == "append"
    if parent is not None and appends:
        if not found.equals(parent.schema):
            raise SchemaError(
                f"{folder}: cannot append other columns: {difference(parent.schema, found)}; give schema="
            )
        found = parent.schema  # equal schemas may still name the items of lists otherwise, and row indexes tell
    if if_exists == "overwrite":
        journal.end()
        unfinished = None
    if unfinished is None:
        _check_room(folder, bundles)
    journal.begin(plan, resume=if_exists == "resume")
    sweep(folder)
    entries, resumed = _write(opened, found, pieces, bundles, folder, journal, chosen)
    try:
        made = commit(folder, found, entries, parent, plan, appends=appends, is_once=True)
    except AlreadyExists:
        journal.end()  # what is left to do is another conversion
        raise
    journal.end()
    mine = [entry for _, group in entries for entry in group]
    return ConvertReport(
        str(target), made.snapshot, sum(e["record_count"] for e in mine), len(mine),
        sum(e["data_bytes"] + e["index_bytes"] for e in mine), resumed, time.monotonic() - started,
        {split.name: split.record_count for split in made.splits},
    )  # fmt: skip


def _source_options(given: SourceOptions, columns: Sequence[str] | None, schema: pa.Schema | None) -> SourceOptions:
    if isinstance(columns, str):
        raise OptionError(f"columns must be a list of names, not the string {columns!r}: write columns=[{columns!r}]")
    changes: dict[str, Any] = {}
    if columns is not None:
        changes["columns"] = tuple(columns)
    if schema is not None:
        changes["schema"] = schema
    return replace(given, **changes)


def prepare(folder: Path, if_exists: IfExists) -> Manifest | None:
    """Make sure that a folder may be written to; return its newest snapshot, if it has one.

    Raises:
        OptionError: `if_exists` is none of its four. AlreadyExists: Something is there and must not be.
    """
    if if_exists not in _IF_EXISTS:
        raise OptionError(f"if_exists={if_exists!r}; allowed are {list(_IF_EXISTS)}")
    if folder.exists() and not folder.is_dir():
        raise AlreadyExists(f"{folder} is a file; give a folder")
    make_folder(folder)
    held = {p.name for p in folder.iterdir()}
    store = LocalStore(str(folder))
    parent = load_manifest(store, None) if "snapshots" in held and snapshots_of(store) else None
    store.close()
    if parent is not None and if_exists == "error":
        raise AlreadyExists(
            f"{folder}: a data set of {parent.record_count:,} records is here; choose another target, or say "
            "if_exists='append' or 'overwrite'"
        )
    strangers = sorted(held - {"snapshots", "shards", ".convert"})
    if strangers and parent is None:
        raise AlreadyExists(
            f"{folder} holds {strangers[0]!r}, which is no part of a data set; give a new or empty folder"
        )
    return parent


def bundled(pieces: Sequence[Piece], shard_bytes: int) -> list[Bundle]:
    """Group consecutive pieces of a split until they fill a shard: a function of the pieces alone.

    >>> [b.pieces for b in bundled([Piece(str(i), "train", 40, None, ()) for i in range(5)], 100)]
    [(0, 1, 2), (3, 4)]
    """
    made: list[Bundle] = []
    open_: dict[str, tuple[list[int], int]] = {}
    for number, piece in enumerate(pieces):
        members, size = open_.setdefault(piece.split, ([], 0))
        members.append(number)
        size += piece.byte_count
        open_[piece.split] = (members, size)
        if size >= shard_bytes:
            made.append(Bundle(0, piece.split, tuple(members), size))
            del open_[piece.split]
    made += [Bundle(0, split, tuple(members), size) for split, (members, size) in open_.items()]
    made.sort(key=lambda bundle: bundle.pieces)
    return [Bundle(i, b.split, b.pieces, b.byte_count) for i, b in enumerate(made)]


def _plan(
    source: Source, options: ConvertOptions, bundles: Sequence[Bundle], parent: Manifest | None, if_exists: IfExists
) -> dict[str, Any]:
    """All that decides the output's bytes, as JSON."""
    mode = "append" if if_exists == "append" else "replace"
    return {
        "mode": mode,
        "base_snapshot": 0 if parent is None else parent.snapshot,
        "bundles": len(bundles),
        "fingerprint": source.fingerprint(),
        "kind": source.kind,
        "schema": source.schema().to_string(show_schema_metadata=False),
        "shards": asdict(options.shards),
    }


def _committed(folder: Path, parent: Manifest | None, plan: dict[str, Any]) -> Manifest | None:
    """Return the snapshot that a plan became; None if it did not."""
    if parent is None or not isinstance(plan.get("base_snapshot"), int):
        return None
    store = LocalStore(str(folder))
    try:
        for number in snapshots_of(store):
            if number > plan["base_snapshot"]:
                found = load_manifest(store, number)
                if dict(found.options) == plan:
                    return found
    finally:
        store.close()
    return None


def _finished(folder: Path, parent: Manifest, plan: dict[str, Any], started: float) -> ConvertReport:
    """Resuming what was committed already is no work, if it was the same conversion."""
    if parent.options.get("fingerprint") != plan["fingerprint"]:
        raise AlreadyExists(
            f"{folder}: nothing is unfinished here, and the data set comes from another source; say if_exists='append' "
            "or 'overwrite'"
        )
    counts = {split.name: split.record_count for split in parent.splits}
    return ConvertReport(str(folder), parent.snapshot, 0, 0, 0, parent.shard_count, time.monotonic() - started, counts)


def _check_room(folder: Path, bundles: Sequence[Bundle]) -> None:
    wanted = sum(bundle.byte_count for bundle in bundles)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OutOfSpace(
            f"{folder}: about {wanted:,} bytes are to be written, {free:,} are free there; make room or choose another target"
        )


# -- writing ---------------------------------------------------------------------------------------

Entries = list[tuple[str, list[dict[str, Any]]]]


def _write(
    source: Source,
    schema: pa.Schema,
    pieces: Sequence[Piece],
    bundles: Sequence[Bundle],
    folder: Path,
    journal: Journal,
    options: ConvertOptions,
) -> tuple[Entries, int]:
    """Write every bundle that is not done yet; return all shards in order and how many were there."""
    made: dict[int, list[dict[str, Any]]] = {}
    for bundle in bundles:
        done = journal.done(bundle.number)
        if done is not None:
            made[bundle.number] = done
    resumed = sum(len(group) for group in made.values())
    todo = [bundle for bundle in bundles if bundle.number not in made]
    _check_room(folder, todo)
    spec = source.spec()
    workers = min(options.worker_count or len(os.sched_getaffinity(0)), len(todo))
    work = Work(str(folder), schema_to_text(schema), tuple(pieces), options.shards)
    if spec is None or workers < 2:
        _alone(source, work, todo, journal, options, made)
    else:
        _together(spec, work, todo, journal, options, made, workers)
    return [(bundle.split, made[bundle.number]) for bundle in bundles], resumed


@dataclass(frozen=True)
class Work:
    """What a worker must know besides its bundle."""

    folder: str
    schema_text: str
    """Not a pa.Schema: pickling one loses the names and the nullability of the items of fixed_size_list."""
    pieces: tuple[Piece, ...]
    shards: ShardOptions


def write_bundle(source: Source, work: Work, bundle: Bundle, advance: Advance) -> list[dict[str, Any]]:
    """Write one bundle's shards and return their rows of the shard table."""
    prefix = f"{bundle.split}-{bundle.number:05d}"
    writer = ShardWriter(Path(work.folder), prefix, schema_from_text(work.schema_text), work.shards, advance)
    try:
        for number in bundle.pieces:
            if work.pieces[number].record_count == 0:
                continue
            for batch in source.read(work.pieces[number]):
                writer.add(batch)
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

    for bundle in todo:
        made[bundle.number] = write_bundle(source, work, bundle, advance)
        journal.note(bundle.number, made[bundle.number])
        totals[2] += bundle.byte_count
    if options.progress is not None:
        options.progress(totals[0], totals[1], totals[2], all_bytes)


def _together(
    spec: SourceSpec,
    work: Work,
    todo: Sequence[Bundle],
    journal: Journal,
    options: ConvertOptions,
    made: dict[int, list[dict[str, Any]]],
    workers: int,
) -> None:
    # Spawned, not forked: this process may hold threads of torch, Arrow or the user.
    context = multiprocessing.get_context("spawn")
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
                f"{work.folder}: a converting process died (killed, or out of memory); what is finished is kept: "
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

    return write_bundle(source, work, bundle, advance)


# -- the commit ------------------------------------------------------------------------------------


def commit(
    folder: Path,
    schema: pa.Schema,
    entries: Entries,
    parent: Manifest | None,
    options: dict[str, Any],
    *,
    appends: bool,
    is_once: bool,
) -> Manifest:
    """Publish a snapshot that names these shards.

    Args:
        folder: Of the store.
        schema: Of the data set.
        entries: (split, shards' rows of the shard table), in order.
        parent: The newest snapshot when the work began; None if there was none.
        options: Kept in the root.
        appends: Put them behind the shards of the newest snapshot.
        is_once: A snapshot with these options is this very one, from a process that resumed the same work.

    Raises:
        AlreadyExists: Another writer committed a snapshot meanwhile, and this is no append.
        StorageError: A shard is gone that was written here.
    """
    _check_there(folder, entries)
    if is_once and not appends and (parent.snapshot if parent else 0) != options["base_snapshot"]:
        raise _overtaken(folder, parent)
    base = parent if appends else None
    while True:
        names = [split.name for split in base.splits] if base else []
        for name, _ in entries:
            if name not in names:
                names.append(name)
        rows = base_rows(folder, base)
        rows += [{**entry, "split": names.index(name)} for name, group in entries for entry in group]
        counts = [[0, 0] for _ in names]
        for row in rows:
            counts[row["split"]][0] += row["record_count"]
            counts[row["split"]][1] += 1
        splits = tuple(Split(name, *count) for name, count in zip(names, counts, strict=True))
        made = write_snapshot(folder, schema, splits or (Split("train", 0, 0),), rows, options, parent)
        if made is not None:
            return made
        store = LocalStore(str(folder))
        newest = load_manifest(store, None)
        store.close()
        same = _committed(folder, newest, options) if is_once else None
        if same is not None:
            return same
        if not appends or not same_schema(newest.schema, schema):
            raise _overtaken(folder, newest)
        base = parent = newest  # appends commute: go behind the one that was faster


def _overtaken(folder: Path, newest: Manifest | None) -> AlreadyExists:
    return AlreadyExists(
        f"{folder}: another writer committed snapshot {newest.snapshot if newest else 0} meanwhile; nothing was committed "
        "here: do it again with if_exists='append' to add behind it, or 'overwrite'"
    )


def same_schema(left: pa.Schema, right: pa.Schema) -> bool:
    """Whether shards of two schemas can stand in one data set; `pa.Schema.equals` overlooks the names of list items."""
    return schema_digest(left) == schema_digest(right)


def _check_there(folder: Path, entries: Entries) -> None:
    """A commit must not name what somebody removed, such as `gc` with too short a grace."""
    for _, group in entries:
        for entry in group:
            for kind in ("data", "index"):
                file = folder / entry[kind]
                if not file.is_file() or file.stat().st_size != entry[f"{kind}_bytes"]:
                    raise StorageError(
                        f"{file} is no longer as it was written here ({entry[f'{kind}_bytes']:,} bytes): somebody removed "
                        "it, perhaps `shufflestore gc` with too short a grace; nothing was committed: run it again"
                    )


def base_rows(folder: Path, base: Manifest | None) -> list[dict[str, Any]]:
    """Return the shard table's rows of a snapshot; none for None."""
    if base is None:
        return []
    store = LocalStore(str(folder))
    rows: list[dict[str, Any]] = base.check_table(store.read(base.table_name), base.table_name).table.to_pylist()
    store.close()
    return rows
