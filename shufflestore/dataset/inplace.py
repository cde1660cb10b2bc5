"""Row indexes for data that stays where it is: not a byte of it is rewritten."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.dataset.foreign import Foreign, discover
from shufflestore.errors import CorruptData, FormatError, NotFound, OptionError, SchemaError, ShuffleStoreError
from shufflestore.format.arrowfile import scan
from shufflestore.format.encode import BuiltIndex, build_index
from shufflestore.format.manifest import SHARD_TABLE, Manifest, Shards, Split, snapshot_name, snapshot_number
from shufflestore.format.schema import Tree, build_tree
from shufflestore.storage.commit import make_folder, publish, remove
from shufflestore.storage.target import Target
from shufflestore.storage.targets import target_at
from shufflestore.storage.uri import is_remote, local_path

__all__ = ["BESIDE", "cache_folder", "index", "index_into", "shard_entry", "write_snapshot"]

BESIDE: Final = ".shufflestore"
"""Folder of the row indexes within an indexed folder; a file's stand in `<file>.shufflestore`."""
Progress = Callable[[str, int, int], None]
"""progress(file, bytes done, bytes in all)"""


def cache_folder(path: Path) -> Path:
    """Return where the indexes of data that may not be written beside are kept.

    `$SHUFFLESTORE_CACHE`, else `$XDG_CACHE_HOME/shufflestore`, else `~/.cache/shufflestore`.
    """
    base = os.environ.get("SHUFFLESTORE_CACHE")
    if not base:
        base = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shufflestore")
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
    return Path(base) / "indexes" / key


def beside(path: Path) -> Path:
    """Return the folder of the indexes that `index` writes for a path."""
    return path.with_name(path.name + BESIDE) if path.is_file() else path / BESIDE


def index(path: str | os.PathLike[str], checksums: bool = True, progress: Progress | None = None) -> Path:
    """Write row indexes beside Arrow data, so that it can be read in any order where it lies.

    Takes a Hugging Face `save_to_disk` folder, a folder of Arrow files, or one Arrow file or
    stream. Indexing again replaces the index if the data changed.

    Args:
        path: The data.
        checksums: Read all of it once and keep a CRC32C for each buffer of each record. Without,
            only offsets and small columns are read, and damage goes unnoticed later.
        progress: Called as files are done.

    Returns:
        The folder that was written.

    Raises:
        NotFound, SourceError, FormatError, CorruptData, SchemaError: Naming the file.
    """
    if is_remote(path):
        raise OptionError(
            f"{path}: data is indexed where it lies on a disk; download it, or convert it: `shufflestore convert SOURCE {path}`"
        )
    place = local_path(path)
    target = beside(place)
    index_into(place, target, checksums, progress)
    return target


def index_into(path: Path, target: Path, checksums: bool = True, progress: Progress | None = None) -> None:
    """Write row indexes of the data at `path` into the folder `target`."""
    found = discover(path)
    make_folder(target / "rows")
    total = sum((found.folder / f).stat().st_size for split in found.splits for f in split.files)
    done = 0
    schema: pa.Schema | None = None
    tree: Tree | None = None
    rows: list[dict[str, Any]] = []
    counts = [[0, 0] for _ in found.splits]
    for number, split in enumerate(found.splits):
        for name in split.files:
            file = found.folder / name
            data = mapped(file)
            scanned = _named(file, partial(scan, fetcher(data), len(data)))
            if schema is None or tree is None:
                schema, first = scanned.schema, file
                tree = build_tree(schema)
            elif not scanned.schema.equals(schema):
                raise SchemaError(f"{first} and {file} have different columns: {difference(schema, scanned.schema)}")
            built = _named(file, partial(build_index, data, scanned, tree, checksums))
            rows.append(publish_index(target, f"@data/{name}", number, built))
            counts[number][0] += built.header.row_count
            counts[number][1] += 1
            done += len(data)
            if progress is not None:
                progress(name, done, total)
    assert schema is not None, "discover names at least one file"
    splits = tuple(Split(s.name, *c) for s, c in zip(found.splits, counts, strict=True))
    options = {"in_place": beside_options(found), "checksums": checksums}
    write_snapshot(target, schema, splits, rows, options, replace=True)


def beside_options(found: Foreign) -> dict[str, Any]:
    """Return what a reader must honour beside the records: columns, and indices mappings with their checksums."""
    return {
        split.name: {
            "columns": None if split.columns is None else list(split.columns),
            "indices": [{"crc32c": _checksum(found.folder / name), "name": name} for name in split.indices],
        }
        for split in found.splits
    }


def _checksum(file: Path) -> int:
    try:
        return _native.crc32c(mapped(file).data)
    except OSError as cause:
        raise NotFound(f"{file}: an indices mapping that state.json names cannot be read: {cause.strerror}") from cause


def mapped(file: Path) -> NDArray[np.uint8]:
    """Return a file's bytes, mapped; an empty file has none."""
    if file.stat().st_size == 0:
        raise FormatError(f"{file}: empty; an Arrow file has at least a schema")
    return np.asarray(np.memmap(file, np.uint8, "r"))


def fetcher(data: NDArray[np.uint8]) -> Callable[[int, int], bytes]:
    """Return a `fetch` over bytes at hand."""
    return lambda offset, size: data[offset : offset + size].tobytes()


def _named(file: Path, work: Callable[[], Any]) -> Any:
    """Do some work on a file and put its name before any error."""
    try:
        return work()
    except FormatError as error:
        raise type(error)(f"{file}: {error}") from error


def difference(left: pa.Schema, right: pa.Schema) -> str:
    """Return the first disagreement of two schemas in words."""
    for name in [*left.names, *right.names]:
        if name not in right.names:
            return f"only the first has {name!r}"
        if name not in left.names:
            return f"only the second has {name!r}"
        if left.field(name).type != right.field(name).type:
            return f"{name!r} is {left.field(name).type} in the first, {right.field(name).type} in the second"
    return f"the order is {left.names} in the first, {right.names} in the second"


def publish_index(target: Path, data_name: str, split: int, built: BuiltIndex) -> dict[str, Any]:
    """Publish one row index and return its row of the shard table."""
    header = built.header
    digest = built.digest
    stem = Path(data_name).stem
    name = f"rows/{stem[:80]}-{digest.hex()[:16]}.rows"
    _publish_afresh(target / name, built.parts)
    return shard_entry(data_name, name, split, built, digest) | {"data_bytes": header.shard_bytes}


def _publish_afresh(path: Path, parts: Sequence[Any]) -> None:
    """Publish a file whose name is taken from its content; one of that name with other bytes is damaged and goes."""
    if publish(path, parts, renews=True):
        return
    with path.open("rb") as file:
        same = all(file.read(memoryview(part).nbytes) == bytes(memoryview(part)) for part in parts)
        same = same and not file.read(1)
    if not same:
        remove(path)
        publish(path, parts)


def shard_entry(data: str, name: str, split: int, built: BuiltIndex, digest: bytes) -> dict[str, Any]:
    """Return a shard's row of the shard table, and the features that it needs."""
    header = built.header
    return {
        "data": data,
        "index": name,
        "split": split,
        "record_count": header.row_count,
        "data_bytes": header.shard_bytes,
        "index_bytes": header.index_bytes,
        "header_bytes": header.header_bytes,
        "header_sha256": digest,
        "page_count": header.page_count,
        "page_bytes": header.layout.page_bytes,
        "features": header.layout.features,  # no column of the table: `write_snapshot` is told what they add up to
    }


def write_snapshot(
    place: Path | Target,
    schema: pa.Schema,
    splits: tuple[Split, ...],
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    parent: Manifest | None = None,
    replace: bool = False,
    features: Sequence[str] = (),
) -> Manifest | None:
    """Publish a shard table and then the root that names it: the commit.

    Args:
        place: Of the manifest.
        schema: Of the data set.
        splits: With their counts.
        rows: Of the shard table, all of them.
        options: Kept in the root.
        parent: The snapshot this one follows; None for the first.
        replace: Follow whatever snapshot is the newest (indexes of data in place have no history); in a folder.
        features: What a reader of the shards must know, sorted.

    Returns:
        The manifest, or None if another writer took the number first.
    """
    table = Shards(pa.Table.from_pylist(rows, schema=SHARD_TABLE)).encode()
    digest = hashlib.sha256(table).hexdigest()
    name = f"snapshots/{digest[:16]}.shards"
    target = target_at(place)
    target.make("snapshots")
    number = 1 if parent is None else parent.snapshot + 1
    if replace:
        _publish_afresh(Path(target.uri, name), [table])
        number = max((snapshot_number(one.name) or 0 for one in target.files("snapshots")), default=0) + 1
    else:
        target.publish(name, table, renews=True)
    made = Manifest(
        schema, splits, name, len(table), digest, number, parent.digest if parent else None, options,
        features=tuple(features),
    )  # fmt: skip
    nonce = secrets.token_hex(8)
    return made if target.publish(snapshot_name(number), made.encode(nonce)) else None


def changed(files: list[tuple[Path, int]]) -> str | None:
    """Return a sentence on the first file that is not as long as its index says, None if all are."""
    for file, size in files:
        try:
            now = file.stat().st_size
        except OSError:
            return f"{file} is gone"
        if now != size:
            return f"{file} has {now:,} bytes, {size:,} when it was indexed"
    return None


def stamp(files: list[Path]) -> str:
    """Return a text that changes when a file does: lengths and times of change."""
    parts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def refuse_changed(folder: Path, sentence: str) -> ShuffleStoreError:
    """Return the error for data that no longer fits its index."""
    return CorruptData(f"{folder}: {sentence}; index it again: `shufflestore index {folder}`")
