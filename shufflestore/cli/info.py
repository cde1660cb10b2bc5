"""`shufflestore info`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, _SubParsersAction

from shufflestore.cli.sizes import readable
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.opening import splits_of
from shufflestore.format.narrow import FEATURE as NARROW

__all__ = ["register", "run"]


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore info`."""
    p = commands.add_parser("info", help="say what a data set holds")
    p.add_argument("path", help="a store, or Arrow data where it lies")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print schema, splits, sizes and identity."""
    data = open_dataset(args.path, splits_of(args.path)[0])
    manifest = data.manifest
    sizes = {"data_bytes": 0, "index_bytes": 0}
    for split in manifest.splits:
        shards = (data if split.name == data.split_name else data.split(split.name)).reading.indexes.shards
        for key in sizes:
            sizes[key] += int(shards.column(key).sum())
    told = {
        "path": args.path,
        "record_count": manifest.record_count,
        "shard_count": manifest.shard_count,
        **sizes,
        "snapshot": manifest.snapshot,
        "identity": manifest.identity,
        "splits": {split.name: split.record_count for split in manifest.splits},
        "columns": {field.name: str(field.type) for field in manifest.schema},
        "features": list(manifest.features),
    }
    if args.json:
        print(json.dumps(told))
        return 0
    print(
        f"{args.path}: {manifest.record_count:,} records in {manifest.shard_count:,} shards, snapshot {manifest.snapshot}"
    )
    print(
        f"  data {readable(sizes['data_bytes'])}, row index {readable(sizes['index_bytes'])}, identity {manifest.identity}"
    )
    for split in manifest.splits:
        print(f"  split {split.name}: {split.record_count:,} records")
    for field in manifest.schema:
        print(f"  column {field.name}: {field.type}")
    if NARROW in manifest.features:
        print("  narrow: some shards store integers of lists in fewer bytes than their columns say")
    return 0
