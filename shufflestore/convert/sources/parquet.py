"""Parquet files; a piece is a run of row groups."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from shufflestore.convert.base import Piece
from shufflestore.convert.sources import FileSource, InputFile, conform, join_schemas, resolve_schema
from shufflestore.errors import SourceError
from shufflestore.lazy import lazy

__all__ = ["ParquetSource"]

_PIECE_BYTES: Final = 32 << 20
_LOOKERS: Final = 8
"""Threads that read footers: on network storage a footer costs round trips, not work."""
_MAX_ROWS: Final = 65_536
"""Rows a batch at most, pyarrow's own default: beyond it nothing gets faster."""


@dataclass(frozen=True)
class _Footer:
    schema: pa.Schema
    rows: tuple[int, ...]
    """Of each row group."""
    sizes: tuple[int, ...]
    """Uncompressed bytes of each row group."""


class ParquetSource(FileSource):
    """Parquet files. Types and metadata are as pyarrow reads them, extension types and features included."""

    kind = "parquet"

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records; holds one row group, compressed, and the batches read ahead."""
        path, start, stop = piece.key
        schema = self.schema()
        with _named(piece.name), pq.ParquetFile(path, pre_buffer=True) as file:
            groups = list(range(start, min(stop, file.num_row_groups)))
            if len(groups) < stop - start:
                raise SourceError(f"{piece.name}: the file has {file.num_row_groups:,} row groups now; it was changed")
            has = file.schema_arrow.names
            columns = [name for name in schema.names if name in has]
            batches = file.iter_batches(
                batch_size=self._batch_rows(file, groups),
                row_groups=groups,
                columns=None if len(columns) == len(has) else columns,
                use_threads=self._options.use_threads,
            )
            row = 0
            for batch in batches:
                yield conform(batch, schema, f"{piece.name} rows [{row:,}, {row + batch.num_rows:,}) of the piece")
                row += batch.num_rows

    def _batch_rows(self, file: pq.ParquetFile, groups: list[int]) -> int:
        metadata = [file.metadata.row_group(g) for g in groups]
        rows, size = sum(m.num_rows for m in metadata), sum(m.total_byte_size for m in metadata)
        return int(max(1, min(_MAX_ROWS, self._options.batch_bytes * rows // max(1, size))))

    @lazy
    def _footers(self) -> list[_Footer]:
        with ThreadPoolExecutor(_LOOKERS, "shufflestore-footers") as pool:
            return list(pool.map(_read_footer, self.files()))

    def _find_schema(self) -> pa.Schema:
        found = [(f.path, footer.schema) for f, footer in zip(self.files(), self._footers, strict=True)]
        schema = resolve_schema(join_schemas(found, self._options), self._options, self.where)
        if self._options.columns is None:
            self._refuse_partitions(schema)
        return schema

    def _refuse_partitions(self, schema: pa.Schema) -> None:
        for file in self.files():
            for part in file.name.split("/")[:-1]:
                column = part.partition("=")[0]
                if "=" in part and column not in schema.names:
                    raise SourceError(
                        f"{file.path}: the folder {part} says column {column!r}, which the file lacks and which is not "
                        "read from names; leave it out with columns=[...], or write it into the files"
                    )

    def _find_pieces(self) -> list[Piece]:
        limit = self._options.piece_bytes or _PIECE_BYTES
        pieces: list[Piece] = []
        for file, footer in zip(self.files(), self._footers, strict=True):
            start = 0
            while start < len(footer.rows):
                stop, size = start + 1, footer.sizes[start]
                while stop < len(footer.rows) and size + footer.sizes[stop] <= limit:
                    size += footer.sizes[stop]
                    stop += 1
                whole = start == 0 and stop == len(footer.rows)
                name = file.name if whole else f"{file.name}[row groups {start}:{stop}]"
                pieces.append(Piece(name, file.split, size, sum(footer.rows[start:stop]), (file.path, start, stop)))
                start = stop
        if not any(piece.record_count for piece in pieces):
            raise SourceError(f"{self.where} holds no records in {len(self.files()):,} Parquet files; check the path")
        return pieces


def _read_footer(file: InputFile) -> _Footer:
    with _named(file.path), pq.ParquetFile(file.path) as opened:
        metadata = opened.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return _Footer(opened.schema_arrow, tuple(g.num_rows for g in groups), tuple(g.total_byte_size for g in groups))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Give pyarrow's errors the name of the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as e:
        raise SourceError(f"{name} cannot be read as Parquet ({e}); it is damaged, cut short or not Parquet") from e
