"""The manifest: one committed snapshot of a data set, as a small JSON root and an Arrow table of shards."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore.errors import CorruptData, FormatError, OptionError, UnsupportedFeature
from shufflestore.format.arrowfile import scan
from shufflestore.format.layout import MAX_PAGE, MIN_PAGE
from shufflestore.format.narrow import FEATURE as NARROW
from shufflestore.format.schema import schema_digest
from shufflestore.lazy import lazy

__all__ = ["Manifest", "SHARD_TABLE", "Shards", "Split", "snapshot_name", "snapshot_number"]

FORMAT: Final = "shufflestore"
VERSION: Final = 1
FEATURES: Final[frozenset[str]] = frozenset({NARROW})
"""What a reader must know to read a snapshot, as far as this version knows it."""
ROOT_LIMIT: Final = 1 << 20
"""Bytes of a root; a larger one is refused before it is parsed."""
SHARD_LIMIT: Final = 10_000_000
RECORD_LIMIT: Final = 2**62
DEPTH_LIMIT: Final = 16
"""Of the JSON root; no version nests half as deep."""
_SNAPSHOT: Final = re.compile(r"snapshots/(\d{10})\.json")

SHARD_TABLE: Final = pa.schema(
    [
        pa.field("data", pa.string(), nullable=False),
        pa.field("index", pa.string(), nullable=False),
        pa.field("split", pa.uint16(), nullable=False),
        pa.field("record_count", pa.uint64(), nullable=False),
        pa.field("data_bytes", pa.uint64(), nullable=False),
        pa.field("index_bytes", pa.uint64(), nullable=False),
        pa.field("header_bytes", pa.uint32(), nullable=False),
        pa.field("header_sha256", pa.binary(32), nullable=False),
        pa.field("page_count", pa.uint32(), nullable=False),
        pa.field("page_bytes", pa.uint32(), nullable=False),
    ]
)
"""One row a shard, in the order of its records."""


def snapshot_name(number: int) -> str:
    """Return the name of a snapshot's root.

    >>> snapshot_name(3)
    'snapshots/0000000003.json'
    """
    return f"snapshots/{number:010d}.json"


def snapshot_number(name: str) -> int | None:
    """Return the number in the name of a root, None for any other name."""
    match = _SNAPSHOT.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True, eq=False)
class Shards:
    """The shard table, column by column; nothing in it is a Python object a shard."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """Return a number column, (shards,), without copying where it is one chunk."""
        # Not Arrow's to_numpy: where pandas is installed that imports it, and opening takes 0.4 s instead of 0.04.
        array = self.table.column(name).combine_chunks()
        kind = np.dtype(str(array.type))
        return np.frombuffer(array.buffers()[1] or b"", kind)[array.offset : array.offset + len(array)]

    def name(self, column: str, row: int) -> str:
        """Return the data or index name of one shard."""
        return str(self.table.column(column)[row].as_py())

    @lazy
    def digests(self) -> NDArray[np.uint8]:
        """(shards, 32) SHA-256 of each index header."""
        array = self.table.column("header_sha256").combine_chunks()
        data = np.frombuffer(array.buffers()[1], np.uint8) if len(array) else np.empty(0, np.uint8)
        return data[32 * array.offset : 32 * (array.offset + len(array))].reshape(-1, 32)

    def encode(self) -> bytes:
        """Return the table as an Arrow IPC file; the same rows give the same bytes."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SHARD_TABLE) as writer:
            writer.write_table(self.table.combine_chunks())
        return bytes(sink.getvalue())

    @classmethod
    def decode(cls, data: bytes, name: str) -> Shards:
        """Return the table from bytes of the right digest. Raises CorruptData if it is not one."""
        try:
            # Scanned first: what is compressed, or of other columns, is not even read.
            found = scan(lambda offset, size: data[offset : offset + size], len(data))
        except FormatError as cause:
            raise CorruptData(f"{name}: the shard table cannot be read: {cause}") from cause
        if found.is_stream or not found.schema.equals(SHARD_TABLE):
            raise CorruptData(f"{name}: the shard table has columns {found.schema.names}, expected {SHARD_TABLE.names}")
        if any(batch.codec for batch in found.batches):
            raise CorruptData(f"{name}: the shard table is compressed, which no version writes")
        if found.row_count > SHARD_LIMIT:
            raise UnsupportedFeature(
                f"{name}: {found.row_count:,} shards; this version reads up to {SHARD_LIMIT:,}: convert to larger shards"
            )
        try:
            table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError) as cause:
            raise CorruptData(f"{name}: the shard table cannot be read: {cause}") from cause
        # The footer has a schema of its own, and that is the one Arrow believes.
        if not table.schema.equals(SHARD_TABLE) or any(column.null_count for column in table.columns):
            raise CorruptData(f"{name}: the shard table has nulls, or two schemas")
        made = cls(table)
        made.check_claims(name)
        return made

    def check_claims(self, name: str) -> None:
        """Hold the numbers against each other, so that no sum of them overflows. Raises CorruptData."""
        pages, size = self.column("page_count").astype(np.int64), self.column("page_bytes").astype(np.int64)
        header, index, data = (self.column(c) for c in ("header_bytes", "index_bytes", "data_bytes"))
        records = self.column("record_count")
        wrong = (size < MIN_PAGE) | (size > MAX_PAGE) | (size & (size - 1) != 0)
        wrong |= (records > RECORD_LIMIT) | (data > RECORD_LIMIT) | (index > RECORD_LIMIT)
        wrong |= (header > index) | (pages * size > index)
        if wrong.any():
            raise CorruptData(
                f"{name}: the shard table claims lengths for shard {int(np.argmax(wrong))} that none can have"
            )
        # Sums as floats: wrong in the last digits, but they do not wrap.
        if max(float(column.astype(np.float64).sum()) for column in (records, data, index)) > 2.0**62:
            raise CorruptData(f"{name}: the shard table claims more than 2**62 records or bytes in all")


@dataclass(frozen=True)
class Split:
    """A named part of a data set: "train", "test"."""

    name: str
    record_count: int
    shard_count: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """One snapshot."""

    schema: pa.Schema
    splits: tuple[Split, ...]
    table_name: str
    table_bytes: int
    table_sha256: str
    snapshot: int = 1
    parent: str | None = None
    """Digest of the snapshot before it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was written; informative."""

    schema_text: str = ""
    """The schema as it stands in the root that was read; empty for a new one."""
    stated_digest: str = ""
    """The digest that stands in the root that was read, held against its bytes; empty for a new one."""

    features: tuple[str, ...] = ()
    """What a reader must know to read it, sorted."""

    @property
    def record_count(self) -> int:
        """Records of all splits."""
        return sum(split.record_count for split in self.splits)

    @property
    def shard_count(self) -> int:
        """Shards of all splits."""
        return sum(split.shard_count for split in self.splits)

    @lazy
    def digest(self) -> str:
        """SHA-256 of everything that is said here but the nonce, in hex: the snapshot's identity."""
        return self.stated_digest or hashlib.sha256(_canonical(self._value())).hexdigest()

    @lazy
    def identity(self) -> str:
        """What a resume state names: the digest of schema and shards, the same for a copy elsewhere."""
        first = schema_digest(self.schema) + bytes.fromhex(self.table_sha256)
        return hashlib.sha256(first).hexdigest()[:32]

    def _value(self) -> dict[str, Any]:
        return {
            "columns": {f.name: str(f.type) for f in self.schema},
            "features": list(self.features),
            "format": FORMAT,
            "options": dict(self.options),
            "parent": self.parent,
            "record_count": self.record_count,
            "schema": self.schema_text or base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "shard_count": self.shard_count,
            "shard_table": {"bytes": self.table_bytes, "name": self.table_name, "sha256": self.table_sha256},
            "snapshot": self.snapshot,
            "splits": [
                {"name": s.name, "record_count": s.record_count, "shard_count": s.shard_count} for s in self.splits
            ],
            "version": VERSION,
        }

    def encode(self, nonce: str) -> bytes:
        """Return the root's bytes.

        Args:
            nonce: Names the writer, so that it can tell its own commit from another's.
        """
        value = self._value() | {"digest": self.digest, "nonce": nonce, "seal": _seal(nonce, self.digest)}
        return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"

    def split(self, name: str | None) -> int:
        """Return the number of a split by its name; None for the only one.

        Raises:
            OptionError: No such split, or several and none named.
        """
        names = [split.name for split in self.splits]
        if name is None:
            if len(names) == 1:
                return 0
            raise OptionError(f"the data set has the splits {names}; say which, e.g. split={names[0]!r}")
        if name not in names:
            raise OptionError(f"no split {name!r}; the data set has {names}")
        return names.index(name)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Manifest:
        """Return a manifest after checking all of it.

        Args:
            data: The root's bytes.
            name: Of the root, for errors.

        Raises:
            UnsupportedFeature: Written by a newer version, or needs a feature that is unknown here.
            CorruptData: Damaged.
            FormatError: Not a manifest.
        """
        value = _parse(data, name)
        if value.get("format") != FORMAT:
            raise FormatError(f'{name}: not a shufflestore manifest: "format" is {value.get("format")!r}')
        version = value.get("version")
        if not isinstance(version, int) or not _is_count(version) or version < 1:
            raise CorruptData(f"{name}: version {version!r} is none")
        if version > VERSION:
            raise UnsupportedFeature(
                f"{name}: written in format version {version}, this shufflestore reads up to {VERSION}; upgrade it"
            )
        features = value.get("features")
        if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
            raise CorruptData(f'{name}: "features" must be a list of names, not {features!r}')
        unknown = sorted(set(features) - FEATURES)
        if unknown:
            raise UnsupportedFeature(f"{name}: needs the features {unknown}, unknown to this version; upgrade it")
        try:
            made = cls._from(value)
        except (KeyError, TypeError, ValueError, pa.ArrowException, OSError) as cause:
            raise CorruptData(f"{name}: the manifest is damaged ({type(cause).__name__}: {cause})") from cause
        plain = {key: v for key, v in value.items() if key not in ("nonce", "digest", "seal")}
        digest, nonce = value.get("digest"), value.get("nonce")
        sealed = isinstance(nonce, str) and value.get("seal") == _seal(nonce, str(digest))
        if hashlib.sha256(_canonical(plain)).hexdigest() != digest or not sealed:
            raise CorruptData(f"{name}: the manifest does not have the digest it claims; restore it or convert again")
        if not 0 <= made.record_count <= RECORD_LIMIT:
            raise CorruptData(f"{name}: {made.record_count} records, allowed are [0, 2**62]")
        return made

    @classmethod
    def _from(cls, value: dict[str, Any]) -> Manifest:
        table = value["shard_table"]
        splits = tuple(
            Split(_text(s["name"]), _count(s["record_count"]), _count(s["shard_count"])) for s in value["splits"]
        )
        if len({s.name for s in splits}) != len(splits) or not splits:
            raise ValueError("split names must differ and there must be one")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(_text(value["schema"]), validate=True)))
        made = cls(
            schema, splits, _text(table["name"]), _count(table["bytes"]), _text(table["sha256"]),
            _count(value["snapshot"]), value["parent"], dict(value["options"]), _text(value["schema"]), _text(value["digest"]),
            tuple(value["features"]),
        )  # fmt: skip
        if (_count(value["record_count"]), _count(value["shard_count"])) != (made.record_count, made.shard_count):
            raise ValueError("its counts do not add up")
        return made

    def check_table(self, data: bytes, name: str) -> Shards:
        """Return the shard table after holding it against this root. Raises CorruptData."""
        if len(data) != self.table_bytes or hashlib.sha256(data).hexdigest() != self.table_sha256:
            raise CorruptData(
                f"{name}: the shard table does not have the {self.table_bytes:,} bytes and the SHA-256 that the "
                "manifest names; restore it or convert again"
            )
        shards = Shards.decode(data, name)
        splits, counts = shards.column("split"), shards.column("record_count")
        if len(shards) and int(splits.max()) >= len(self.splits):
            raise CorruptData(f"{name}: a shard belongs to split {int(splits.max())}, there are {len(self.splits)}")
        for number, split in enumerate(self.splits):
            mine = splits == number
            if (int(counts[mine].sum()), int(mine.sum())) != (split.record_count, split.shard_count):
                raise CorruptData(f"{name}: the shards of split {split.name!r} do not add up to the manifest's counts")
        return shards


def _seal(nonce: str, digest: str) -> str:
    """What makes damage to the nonce show, which the digest leaves out."""
    return hashlib.sha256(f"{nonce}/{digest}".encode()).hexdigest()[:16]


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _parse(data: bytes, name: str) -> dict[str, Any]:
    """JSON without its traps: size, depth, duplicate keys, numbers that are none."""
    if len(data) > ROOT_LIMIT:
        raise CorruptData(f"{name}: {len(data):,} bytes; a manifest root has at most {ROOT_LIMIT:,}")

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no number of a manifest")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key stands twice")
        return made

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=refuse, parse_float=refuse)
        if _depth(value) > DEPTH_LIMIT:
            raise ValueError(f"it nests deeper than {DEPTH_LIMIT}")
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as cause:
        raise CorruptData(f"{name}: the manifest is not JSON ({cause}); restore it or convert again") from cause
    if not isinstance(value, dict):
        raise CorruptData(f"{name}: the manifest is a JSON {type(value).__name__}, not an object")
    return value


def _depth(value: object) -> int:
    """How deep a JSON value nests, level by level so that nothing overflows."""
    depth, level = 0, [value]
    while level and depth <= DEPTH_LIMIT:
        depth += 1
        inner = [v for v in level if isinstance(v, (dict, list))]
        level = [item for v in inner for item in (v.values() if isinstance(v, dict) else v)]
    return depth


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _count(value: object) -> int:
    if not isinstance(value, int) or not _is_count(value):
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
