"""Open a store, or data that stays where it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore.dataset.dataset import Dataset, Origin
from shufflestore.dataset.foreign import Foreign, discover
from shufflestore.dataset.inplace import (
    beside,
    beside_options,
    cache_folder,
    changed,
    index_into,
    refuse_changed,
    stamp,
)
from shufflestore.dataset.reading import Reading
from shufflestore.dataset.residency import RowIndexes
from shufflestore.errors import CorruptData, NotFound, OptionError, SchemaError
from shufflestore.format.manifest import Manifest, Shards, snapshot_name, snapshot_number
from shufflestore.format.rebuild import integer_array
from shufflestore.format.schema import tree_of
from shufflestore.storage.base import Store
from shufflestore.storage.cached import CachedStore
from shufflestore.storage.local import LocalStore
from shufflestore.storage.memory import Budget
from shufflestore.storage.uri import is_remote, local_path

__all__ = ["load_manifest", "open", "open_store", "snapshots_of", "splits_of"]

_log = logging.getLogger("shufflestore")
UNFINISHED: Final = ".convert/plan.json"
"""Stands in a store while a conversion runs, or waits to be resumed."""
_PROBED: Final = 64
"""Snapshots that are asked for at a time where a store cannot list them."""


def open(  # noqa: PLR0913  whatever a data set may be opened with
    path: str | os.PathLike[str],
    split: str | None = None,
    *,
    snapshot: int | None = None,
    verify: bool = True,
    engine: str = "auto",
    memory_limit: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_limit: int | None = None,
) -> Dataset:
    """Open a data set for reading in any order.

    A store that `convert` made, or Arrow data where it lies: a Hugging Face `save_to_disk` folder,
    a folder of Arrow files, one Arrow file. Foreign data without an index is indexed first, into
    the cache folder, which reads all of it once. A store may also lie in an object store or on an HTTP server.

    Args:
        path: A folder or file, or a URI: s3://, gs://, az://, http(s)://, hf://, file://.
        split: Its name; None if there is only one.
        snapshot: Number of a committed snapshot; None for the newest.
        verify: Check the CRC32C of every byte read. False is your own word that you do not mind.
        engine: "auto", "mmap", "pread", "io_uring" or "io_uring_direct", for local files.
        memory_limit: Bytes that look-ahead, row indexes and caches may take together, at least 32 MiB; None for a quarter
            of what this process may have. One batch is always read, however large.
        storage_options: Of an object store: endpoint, region, credentials, how hard it is asked; see
            docs/object_stores.md. What is not given comes from the environment.
        cache_dir: Folder where blocks of a remote store are kept as they are read, for this and later epochs and for every
            process of this machine; None keeps nothing.
        cache_limit: Bytes that the folder may keep, of all data sets; None for no limit.

    Raises:
        NotFound: Nothing is there. OptionError: No such split, snapshot, engine or storage option.
        CorruptData, UnsupportedFeature: The manifest or an index is damaged or too new.

    Costs a manifest; nothing grows with the number of records.
    """
    options: dict[str, Any] = {
        "snapshot": snapshot, "verify": verify, "engine": engine, "memory_limit": memory_limit,
        "storage_options": storage_options, "cache_dir": cache_dir, "cache_limit": cache_limit,
    }  # fmt: skip
    store, found = _store_at(path, engine, storage_options)
    if cache_dir is not None:
        store = _cached(store, path, cache_dir, cache_limit)
    elif cache_limit is not None:
        raise OptionError(f"{path}: cache_limit={cache_limit} is for a cache; name its folder too, with cache_dir=")
    if found is not None and snapshot is not None:
        raise OptionError(f"{path} is not a store, so it has no snapshot {snapshot}")
    manifest = load_manifest(store, snapshot)
    origin = Origin(_reopen, (str(path), split, options), lambda name: open(path, name, **options))
    opened = open_store(store, manifest, split, origin, verify, Budget.of(memory_limit))
    return opened if found is None else _as_saved(opened, found)


def splits_of(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Return the names of a data set's splits."""
    store, _ = _store_at(path, "auto", storage_options)
    names = [split.name for split in load_manifest(store, None).splits]
    store.close()
    return names


def _store_at(
    path: str | os.PathLike[str], engine: str, storage_options: Mapping[str, Any] | None
) -> tuple[Store, Foreign | None]:
    """The store at a path, and what foreign data it indexes, if it does; indexes it if nobody has yet."""
    if is_remote(path):
        if engine != "auto":
            raise OptionError(f"{path}: engine {engine!r} reads local files; leave it out for an object store")
        from shufflestore.storage.remote import RemoteStore  # obstore is an extra

        return RemoteStore(os.fspath(path), storage_options), None
    place = local_path(path)
    if storage_options:
        raise OptionError(f"{path}: storage_options are for object stores; leave them out for local files")
    if (place / "snapshots").is_dir():
        return LocalStore(str(place), engine=engine), None
    if (place / UNFINISHED).is_file():
        raise NotFound(
            f"{place}: a conversion was begun here and is not finished, so there is nothing to read yet; run it again with "
            "if_exists='resume'"
        )
    found = discover(place)
    folder = beside(place)
    if not (folder / "snapshots").is_dir():
        folder = cache_folder(place)
        _index_into_cache(place, folder, [found.folder / f for s in found.splits for f in s.files])
    store = LocalStore(str(folder), engine=engine, roots={"data": str(found.folder)})
    store.uri = str(place)
    return store, found


def _cached(
    store: Store, path: str | os.PathLike[str], folder: str | os.PathLike[str], limit: int | None
) -> CachedStore:
    """A remote store behind a cache. Raises OptionError for local files, which need none."""
    if not is_remote(path):
        raise OptionError(f"{path}: cache_dir is for object stores and HTTP; local files are read where they are")
    return CachedStore(store, folder, limit)


def _reopen(path: str, split: str | None, options: dict[str, Any]) -> Dataset:
    return open(path, split, **options)


def _index_into_cache(place: Path, folder: Path, files: list[Path]) -> None:
    """Index into the cache unless an index of exactly these files is there."""
    now = stamp(files)
    note = folder / "stamp"
    if (folder / "snapshots").is_dir() and note.is_file() and note.read_bytes() == now.encode():
        return
    total = sum(f.stat().st_size for f in files)
    _log.warning(
        "%s has no row index yet: reading its %s bytes once, into %s; `shufflestore index %s` would keep it beside the data",
        place, f"{total:,}", folder, place,
    )  # fmt: skip
    index_into(
        place, folder, progress=lambda name, done, all_: _log.info("indexed %s: %d of %d bytes", name, done, all_)
    )
    note.write_text(now, "utf-8")


def _as_saved(opened: Dataset, found: Foreign) -> Dataset:
    """Honour the indices mapping and the columns that a saved Hugging Face data set carries.

    Raises:
        CorruptData: A file is not as long as when it was indexed.
    """
    shards = opened.reading.indexes.shards
    sizes = shards.column("data_bytes").tolist()
    names = shards.table.column("data").to_pylist()
    complaint = changed([(found.folder / n.removeprefix("@data/"), s) for n, s in zip(names, sizes, strict=True)])
    if complaint:
        raise refuse_changed(found.folder / (found.single or ""), complaint)
    if opened.manifest.options.get("in_place") != beside_options(found):
        sentence = "splits, columns or indices are not those that were indexed"
        raise refuse_changed(found.folder / (found.single or ""), sentence)
    split = next(s for s in found.splits if s.name == opened.split_name)
    if split.indices:
        opened = opened.select(np.concatenate([_indices(found.folder / name) for name in split.indices]))
    return opened if split.columns is None else opened.project(split.columns)


def _indices(file: Path) -> NDArray[np.int64]:
    try:
        with pa.OSFile(str(file)) as source:
            table = pa.ipc.open_stream(source).read_all()
        table.validate(full=True)
        column = table.column("indices")
        if column.null_count or not pa.types.is_integer(column.type):
            raise CorruptData(f"{file}: the indices mapping holds {column.type} with {column.null_count} nulls")
        return np.asarray(column.to_numpy(), np.int64)
    except (pa.ArrowException, OSError, KeyError) as cause:
        raise CorruptData(f"{file}: the indices mapping cannot be read ({cause})") from cause


def snapshots_of(store: Store) -> list[int]:
    """Return the numbers of the committed snapshots, oldest first; see `_probed` for stores that cannot list."""
    if not getattr(store, "can_list", True):
        return _probed(store)
    return sorted(n for name in store.list("snapshots/") if (n := snapshot_number(name)) is not None)


def _probed(store: Any) -> list[int]:
    """Find snapshots by asking for their names, in runs of 64 until one of them is empty.

    Of data sets with more than 64 snapshots whose old ones were removed, none is found: ask for it by its number.
    """
    found: list[int] = []
    first = 1
    while True:
        numbers = range(first, first + _PROBED)
        sizes = store.sizes([snapshot_name(number) for number in numbers])
        there = [number for number, size in zip(numbers, sizes, strict=True) if size is not None]
        if not there:
            return found
        found += there
        first = numbers.stop


def load_manifest(store: Store, snapshot: int | None) -> Manifest:
    """Return a snapshot's manifest; the newest for None.

    Raises:
        NotFound: No snapshot was ever committed. OptionError: Not the one asked for.
    """
    can_list = getattr(store, "can_list", True)
    numbers = snapshots_of(store) if can_list or snapshot is None else [snapshot]
    if not numbers:
        raise NotFound(
            f"{store.uri}: no snapshot was committed here; if a conversion was interrupted, run it again with "
            "if_exists='resume'"
        )
    chosen = numbers[-1] if snapshot is None else snapshot
    if chosen not in numbers:
        raise OptionError(f"{store.uri}: no snapshot {chosen}; there are {numbers}")
    name = snapshot_name(chosen)
    manifest = Manifest.decode(store.read(name), f"{store.uri}: {name}")
    if manifest.snapshot != chosen:
        raise CorruptData(f"{store.uri}: {name} says that it is snapshot {manifest.snapshot}; restore the file")
    return manifest


def open_store(
    store: Store,
    manifest: Manifest,
    split: str | None,
    origin: Origin | None = None,
    verify: bool = True,
    budget: Budget | None = None,
) -> Dataset:
    """Open one split of a snapshot in any store.

    Args:
        store: Where it is.
        manifest: Of the snapshot.
        split: Its name; None if there is only one.
        origin: How another process opens it; None if none can.
        verify: Check every byte read.
        budget: Of memory; None for the usual one.
    """
    number = manifest.split(split)
    table = store.read(manifest.table_name)
    shards = manifest.check_table(table, f"{store.uri}: {manifest.table_name}")
    if len(manifest.splits) > 1:
        mine = shards.column("split") == number
        shards = Shards(shards.table.take(integer_array(np.flatnonzero(mine))))
    used = shards.column("record_count") > 0
    if not used.all():
        shards = Shards(shards.table.take(integer_array(np.flatnonzero(used))))
    tree = tree_of(manifest.schema)
    budget = budget or Budget.of(None)
    reading = Reading(RowIndexes(store, tree, shards, budget.index), verify, budget)

    def nowhere(*_: Any) -> Dataset:
        raise SchemaError(
            f"{store.uri} was opened over a store object; open it again by hand for another split or process"
        )

    return Dataset(reading, manifest, number, origin or Origin(nowhere, (), nowhere))
