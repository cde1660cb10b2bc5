"""Commit: a snapshot that names shards which are all on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from shufflestore.dataset.inplace import write_snapshot
from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.errors import AlreadyExists, StorageError
from shufflestore.format.manifest import Manifest, Split
from shufflestore.format.schema import schema_digest
from shufflestore.storage.local import LocalStore

__all__ = ["Entries", "base_rows", "commit", "committed", "same_schema"]

Entries = list[tuple[str, list[dict[str, Any]]]]
"""(split, its shards' rows of the shard table), in order."""


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
        same = committed(folder, newest, options) if is_once else None
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


def committed(folder: Path, parent: Manifest | None, plan: dict[str, Any]) -> Manifest | None:
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
