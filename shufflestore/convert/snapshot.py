"""Commit: a snapshot that names shards which are all there."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pyarrow as pa

from shufflestore.dataset.inplace import write_snapshot
from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.errors import AlreadyExists, StorageError
from shufflestore.format.manifest import Manifest, Split, snapshot_name
from shufflestore.format.schema import schema_digest
from shufflestore.storage.target import Target

__all__ = ["Entries", "base_rows", "commit", "committed", "same_schema"]

Entries = list[tuple[str, list[dict[str, Any]]]]
"""(split, its shards' rows of the shard table), in order."""


def commit(
    target: Target,
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
        target: Where the store is.
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
    _check_there(target, entries)
    if is_once and not appends and (parent.snapshot if parent else 0) != options["base_snapshot"]:
        raise _overtaken(target, parent)
    base = parent if appends else None
    while True:
        names = [split.name for split in base.splits] if base else []
        for name, _ in entries:
            if name not in names:
                names.append(name)
        rows = base_rows(target, base)
        rows += [{**entry, "split": names.index(name)} for name, group in entries for entry in group]
        counts = [[0, 0] for _ in names]
        for row in rows:
            counts[row["split"]][0] += row["record_count"]
            counts[row["split"]][1] += 1
        splits = tuple(Split(name, *count) for name, count in zip(names, counts, strict=True))
        features = {name for row in rows for name in row.get("features", ())} | set(base.features if base else ())
        made = write_snapshot(
            target, schema, splits or (Split("train", 0, 0),), rows, options, parent, features=sorted(features)
        )
        if made is not None:
            return made
        newest = _newest(target, 1 if parent is None else parent.snapshot + 1)
        same = committed(target, newest, options) if is_once else None
        if same is not None:
            return same
        if not appends or not same_schema(newest.schema, schema):
            raise _overtaken(target, newest)
        base = parent = newest  # appends commute: go behind the one that was faster


def _newest(target: Target, taken: int) -> Manifest:
    """Return the newest snapshot, at least the one that is known to be there: an object store's listing may lag."""
    with closing(target.store()) as store:
        if max(snapshots_of(store), default=0) >= taken:
            return load_manifest(store, None)
        name = snapshot_name(taken)
        return Manifest.decode(store.read(name), f"{store.uri}: {name}")


def _overtaken(target: Target, newest: Manifest | None) -> AlreadyExists:
    return AlreadyExists(
        f"{target}: another writer committed snapshot {newest.snapshot if newest else 0} meanwhile; nothing was committed "
        "here: do it again with if_exists='append' to add behind it, or 'overwrite'"
    )


def same_schema(left: pa.Schema, right: pa.Schema) -> bool:
    """Whether shards of two schemas can stand in one data set; `pa.Schema.equals` overlooks the names of list items."""
    return schema_digest(left) == schema_digest(right)


def _check_there(target: Target, entries: Entries) -> None:
    """A commit must not name what somebody removed, such as `gc` with too short a grace."""
    mine = [entry for _, group in entries for entry in group]
    wanted = [(entry[kind], entry[f"{kind}_bytes"]) for entry in mine for kind in ("data", "index")]
    for (name, size), found in zip(wanted, target.find([name for name, _ in wanted]), strict=True):
        if found is None or found.size != size:
            raise StorageError(
                f"{target}/{name} is no longer as it was written here ({size:,} bytes): somebody removed it, perhaps "
                "`shufflestore gc` with too short a grace; nothing was committed: run it again"
            )


def base_rows(target: Target, base: Manifest | None) -> list[dict[str, Any]]:
    """Return the shard table's rows of a snapshot; none for None."""
    if base is None:
        return []
    with closing(target.store()) as store:
        rows: list[dict[str, Any]] = base.check_table(store.read(base.table_name), base.table_name).table.to_pylist()
    return rows


def committed(target: Target, parent: Manifest | None, plan: dict[str, Any]) -> Manifest | None:
    """Return the snapshot that a plan became; None if it did not."""
    if parent is None or not isinstance(plan.get("base_snapshot"), int):
        return None
    if dict(parent.options) == plan:
        return parent
    with closing(target.store()) as store:
        for number in snapshots_of(store):
            if number > plan["base_snapshot"]:
                found = load_manifest(store, number)
                if dict(found.options) == plan:
                    return found
    return None
