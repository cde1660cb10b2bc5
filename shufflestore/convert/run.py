"""Convert: read a source's pieces, write shards side by side, commit once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Final, Literal

import pyarrow as pa

from shufflestore.convert.base import Source, SourceOptions, detect
from shufflestore.convert.bundles import Bundle, bundled, check_room, write_bundles
from shufflestore.convert.journal import Journal
from shufflestore.convert.options import ConvertOptions, ConvertReport
from shufflestore.convert.snapshot import commit, committed
from shufflestore.dataset.inplace import difference
from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.errors import AlreadyExists, OptionError, SchemaError, SourceError
from shufflestore.format.manifest import Manifest
from shufflestore.storage.target import Target
from shufflestore.storage.targets import target_at

__all__ = ["ConvertOptions", "ConvertReport", "IfExists", "convert", "prepare"]

IfExists = Literal["error", "resume", "append", "overwrite"]
_IF_EXISTS: Final = ("error", "resume", "append", "overwrite")


def convert(
    source: Any,
    target: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    if_exists: IfExists = "error",
    options: ConvertOptions | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ConvertReport:
    """Write a data set that can be read in any order.

    Args:
        source: A path, folder or glob (Parquet, JSONL, CSV, Arrow, WebDataset, MDS, Hugging Face, folders of images,
            token files), a datasets.Dataset or DatasetDict, or any iterable of dicts.
        target: A folder, or a prefix in an object store such as "s3://bucket/data", new or empty unless `if_exists` says
            otherwise.
        columns: Names of the columns to keep; None for all.
        schema: To cast to; None for the source's own.
        if_exists: "error"; "resume" an interrupted conversion of the same source to the same bytes;
            "append" as a new snapshot; "overwrite" with a new snapshot (`gc` frees the old one).
        options: Sizes, workers, progress.
        storage_options: Of the object store: region, endpoint, credentials, as for `open`.

    Returns:
        What was written. Nothing is visible to readers until all of it is.

    Raises:
        AlreadyExists: Something is at the target. SourceError, SchemaError: The input, by file and row.
        OutOfSpace: Before it starts or on the way; resume when there is room.
        StorageError: The target cannot be reached or written to; before the source is read where that shows at once.
    """
    started = time.monotonic()
    chosen = options or ConvertOptions()
    place = target_at(target, storage_options, chosen.staging_folder)
    place.reach()
    opened = detect(source, chosen.kind, _source_options(chosen.source, columns, schema))
    if chosen.worker_count is not None and chosen.worker_count < 1:
        raise OptionError(f"worker_count={chosen.worker_count}; at least 1 is needed")
    journal = Journal(place)
    unfinished = journal.plan()  # before the snapshots: a conversion commits, then ends its journal
    parent = prepare(place, if_exists)
    if unfinished is not None and committed(place, parent, unfinished) is not None:
        place.settle("snapshots")  # who committed it may have died before it was durable
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
            place.sweep()
            journal.tidy()
            return _finished(place, parent, plan, started)
        # How it joins what was there is what was said when it began.
        plan |= {key: unfinished[key] for key in ("base_snapshot", "mode") if unfinished and key in unfinished}
    appends = plan["mode"] == "append"
    if parent is not None and appends:
        if not found.equals(parent.schema):
            raise SchemaError(f"{place}: cannot append other columns: {difference(parent.schema, found)}; give schema=")
        found = parent.schema  # equal schemas may still name the items of lists otherwise, and row indexes tell
    if if_exists == "overwrite":
        journal.end()
        unfinished = None
    if unfinished is None:
        check_room(place, bundles)
    journal.begin(plan, resume=if_exists == "resume")
    place.sweep()
    entries, resumed = write_bundles(opened, found, pieces, bundles, place, journal, chosen)
    try:
        made = commit(place, found, entries, parent, plan, appends=appends, is_once=True)
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


def prepare(target: Target, if_exists: IfExists) -> Manifest | None:
    """Make sure that a place may be written to; return its newest snapshot, if it has one.

    Raises:
        OptionError: `if_exists` is none of its four. AlreadyExists: Something is there and must not be.
    """
    if if_exists not in _IF_EXISTS:
        raise OptionError(f"if_exists={if_exists!r}; allowed are {list(_IF_EXISTS)}")
    target.make()
    held = target.top()
    with closing(target.store()) as store:
        parent = load_manifest(store, None) if "snapshots" in held and snapshots_of(store) else None
    if parent is not None and if_exists == "error":
        raise AlreadyExists(
            f"{target}: a data set of {parent.record_count:,} records is here; choose another target, or say "
            "if_exists='append' or 'overwrite'"
        )
    strangers = sorted(held - {"snapshots", "shards", ".convert"})
    if strangers and parent is None:
        raise AlreadyExists(
            f"{target} holds {strangers[0]!r}, which is no part of a data set; give a new or empty folder"
        )
    target.probe()
    return parent


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


def _finished(target: Target, parent: Manifest, plan: dict[str, Any], started: float) -> ConvertReport:
    """Resuming what was committed already is no work, if it was the same conversion."""
    if parent.options.get("fingerprint") != plan["fingerprint"]:
        raise AlreadyExists(
            f"{target}: nothing is unfinished here, and the data set comes from another source; say if_exists='append' "
            "or 'overwrite'"
        )
    counts = {split.name: split.record_count for split in parent.splits}
    return ConvertReport(str(target), parent.snapshot, 0, 0, 0, parent.shard_count, time.monotonic() - started, counts)
