"""Shards of MosaicML Streaming (MDS), plain or compressed; a piece is a shard."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from shufflestore.convert.base import Piece
from shufflestore.convert.sources import FileSource, InputFile, conform, join_schemas, resolve_schema
from shufflestore.convert.sources.mds.columns import Bytes, Column, Counts, array_of, divide, peek, type_of
from shufflestore.convert.sources.mds.index import Shard, find_shards
from shufflestore.errors import SourceError
from shufflestore.lazy import lazy

__all__ = ["MdsSource"]

_STEP_BYTES: Final = 16 << 20
_BATCH_BYTES: Final = 1 << 30


class MdsSource(FileSource):
    """What MDSWriter wrote. Numbers, text, bytes and ndarrays have their Arrow types; images stay encoded.

    `json` and numbers in decimal text are strings. An ndarray is a list, or a tensor where its encoding says
    the shape; of how many dimensions others are is seen in the first record.
    """

    kind = "mds"

    def __init__(self, *args: Any) -> None:
        """See `FileSource`."""
        super().__init__(*args)
        self._open_columns: dict[Column, Column] = {}

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records. A plain shard is mapped, a compressed one unpacked into memory as a whole."""
        path, compression, raw_bytes, samples, told = piece.key
        schema = self.schema()
        columns = [Column(*one) for one in told]
        data = _load(path, compression, raw_bytes)
        offsets = _offsets(data, samples, path)
        limit = min(self._options.batch_bytes, _BATCH_BYTES)
        start = 0
        while start < samples:
            stop = int(np.searchsorted(offsets, offsets[start] + limit, side="right")) - 1
            stop = min(samples, max(start + 1, stop))
            slices = divide(data, offsets[start : stop + 1], columns, path, start)
            chosen = [column for column in columns if column.name in schema.names]
            arrays = [array_of(column, slices[column.name]) for column in chosen]
            if not arrays:
                arrays, chosen = [pa.nulls(stop - start)], [Column("", "", None)]
            batch = pa.RecordBatch.from_arrays(arrays, names=[column.name for column in chosen])
            yield conform(batch, schema, f"{path} records [{start:,}, {stop:,})")
            start = stop

    def files(self) -> list[InputFile]:
        """Return indexes and shards; see `FileSource.files`."""
        if self._listed is None:
            shards = self._shards
            named = {shard.index: ("index.json", shard.split) for shard in shards}
            named |= {shard.path: (shard.name, shard.split) for shard in shards}
            stats = [(path, *told, Path(path).stat()) for path, told in named.items()]
            self._listed = [InputFile(p, name, split, s.st_size, s.st_mtime_ns) for p, name, split, s in stats]
        return self._listed

    @lazy
    def _shards(self) -> list[Shard]:
        return find_shards(self._location)

    def _find_schema(self) -> pa.Schema:
        found: dict[tuple[Column, ...], Shard] = {}
        for shard in self._shards:
            found.setdefault(shard.columns, shard)
        given = self._options.schema
        asked = self._options.columns or (given.names if isinstance(given, pa.Schema) else None)
        schemas = []
        for columns, shard in found.items():
            wanted = [c for c in columns if asked is None or c.name in asked]
            types = [(c.name, type_of(self._closed(c), shard.path)) for c in wanted]
            schemas.append((shard.path, pa.schema(types)))
        if not any(shard.samples for shard in self._shards):
            raise SourceError(f"{self.where} holds no records in {len(self._shards):,} shards; check the path")
        return resolve_schema(join_schemas(schemas, self._options), self._options, self.where)

    def _find_pieces(self) -> list[Piece]:
        names = self.schema().names
        pieces = []
        for shard in self._shards:
            columns = [list(astuple(self._closed(c) if c.name in names else c)) for c in shard.columns]
            key = (shard.path, shard.compression, shard.raw_bytes, shard.samples, columns)
            pieces.append(Piece(shard.name, shard.split, shard.raw_bytes, shard.samples, key))
        return pieces

    def _closed(self, column: Column) -> Column:
        """Return a column with what its encoding leaves open, as the first record that has it shows."""
        if not column.is_open:
            return column
        if column not in self._open_columns:
            shard = next((s for s in self._shards if column in s.columns and s.samples), None)
            if shard is None:
                return column
            slices = divide(*_first_sample(shard), shard.columns, shard.path, 0)
            self._open_columns[column] = peek(column, slices[column.name])
        return self._open_columns[column]


def _first_sample(shard: Shard) -> tuple[Bytes, Counts]:
    """Return a shard's first sample and its offsets in what is returned."""
    with _named(shard.path), _open(shard.path, shard.compression) as file:
        count = int.from_bytes(file.read(4), "little")
        first, second = np.frombuffer(file.read(8), "<u4").tolist()
        if count != shard.samples or not 12 <= first <= second <= shard.raw_bytes:
            raise SourceError(f"{shard.path} does not begin as a shard of {shard.samples:,} samples; it is damaged")
        skipped = 12
        while skipped < first:
            skipped += len(file.read(min(_STEP_BYTES, first - skipped))) or first
        data = file.read(second - first)
    return np.frombuffer(data, np.uint8), np.array([0, len(data)], np.int64)


def _load(path: str, compression: str | None, size: int) -> Bytes:
    """Return a shard's bytes."""
    with _named(path):
        if compression is None:
            data: Bytes = np.memmap(path, np.uint8, "r")
        else:
            parts: list[bytes] = []
            with _open(path, compression) as file:
                while sum(map(len, parts)) <= size and (part := file.read(_STEP_BYTES)):
                    parts.append(part)
            data = np.frombuffer(b"".join(parts), np.uint8)
    if data.size != size:
        has = f"{data.size:,}" if data.size < size else f"more than {size:,}"
        raise SourceError(f"{path} has {has} bytes, unpacked, {size:,} by its index.json; it is damaged or was changed")
    return data


def _offsets(data: Bytes, samples: int, path: str) -> Counts:
    """Return where samples begin, and the end of the last."""
    table = 4 * (samples + 2)
    if data.size >= table and int.from_bytes(data[:4].tobytes(), "little") == samples:
        offsets: Counts = data[4:table].view("<u4").astype(np.int64)
        if offsets[0] >= table and offsets[-1] == data.size and not (np.diff(offsets) < 0).any():
            return offsets
    raise SourceError(
        f"{path}: its first {table:,} bytes are no offsets of {samples:,} samples in {data.size:,} bytes; it is damaged, or "
        "not described by its index.json"
    )


def _open(path: str, compression: str | None) -> BinaryIO:
    if compression is None:
        return Path(path).open("rb")
    return io.BufferedReader(pa.input_stream(path, compression=compression), 1 << 20)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Give the system's and pyarrow's errors the name of the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as e:
        if isinstance(e, SourceError):
            raise
        raise SourceError(f"{path} cannot be read ({e}); it is damaged, cut short or changed") from e
