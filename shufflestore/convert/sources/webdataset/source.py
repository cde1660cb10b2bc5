"""WebDataset tar files; a piece is a run of records."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from shufflestore.convert.base import Piece
from shufflestore.convert.sources import FileSource, InputFile, conform, join_schemas, resolve_schema
from shufflestore.convert.sources.webdataset.tar import Member, Tar, is_packed, open_tar
from shufflestore.errors import SchemaError, SourceError
from shufflestore.lazy import lazy

__all__ = ["WebDatasetSource"]

_PIECE_BYTES: Final = 128 << 20
_LOOKERS: Final = 8
"""Threads that scan headers: on network storage a header costs a round trip, not work."""
_KEY: Final = "__key__"
_TEXTS: Final = ("txt", "json")
_INTEGERS: Final = ("cls",)
_MANY_COLUMNS: Final = 256
_BYTES_A_MEMBER: Final = 64
"""What a member counts besides its bytes, so that batches of tiny ones end, too."""
_LARGE_BYTES: Final = 1 << 30
"""A column with a member of that size has 64-bit offsets; batches of others stay under 2 GiB."""


@dataclass
class _Outline:
    """What a tar holds, by its headers."""

    sizes: dict[str, int] = field(default_factory=dict)
    """The largest member of each extension, in the order of their first members."""
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    """(start, stop, records) of each piece."""


class WebDatasetSource(FileSource):
    """Tar files in which consecutive members of one key make a record; see `split_name` for what a key is.

    Columns are `__key__` and one an extension: `txt` and `json` string, `cls` int64, all else binary. Nothing is decoded.
    A record without a member of an extension has null there.
    """

    kind = "webdataset"

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records; holds one batch of members. Members of columns left out are not read."""
        path, start, stop = piece.key
        schema = self.schema()
        limit = min(self._options.batch_bytes, _LARGE_BYTES)
        rows: list[dict[str, Any]] = []
        done = held = 0
        with open_tar(path) as tar:
            for key, extension, member in _members(path, tar, start, stop):
                if not rows or rows[-1][_KEY] != key:
                    if held >= limit:
                        yield _batch(rows, schema, path)
                        done, rows, held = done + len(rows), [], 0
                    rows.append({_KEY: key})
                if extension in schema.names:
                    rows[-1][extension] = tar.read(member)
                    held += member.size
                held += _BYTES_A_MEMBER
        if rows:
            yield _batch(rows, schema, path)
        if done + len(rows) != piece.record_count:
            raise SourceError(
                f"{piece.name} holds {done + len(rows):,} records, not {piece.record_count:,}; it was changed"
            )

    @lazy
    def _outlines(self) -> list[_Outline]:
        limit = self._options.piece_bytes or _PIECE_BYTES
        with ThreadPoolExecutor(_LOOKERS, "shufflestore-headers") as pool:
            return list(pool.map(lambda file: _outline(file, limit), self.files()))

    def _find_schema(self) -> pa.Schema:
        found = []
        for file, outline in zip(self.files(), self._outlines, strict=True):
            fields = [(extension, _type(extension, size)) for extension, size in outline.sizes.items()]
            found.append((file.path, pa.schema([(_KEY, pa.string()), *fields])))
        return resolve_schema(join_schemas(found, self._options, is_loose=True), self._options, self.where)

    def _find_pieces(self) -> list[Piece]:
        pieces = []
        for file, outline in zip(self.files(), self._outlines, strict=True):
            for start, stop, records in outline.runs:
                name = file.name if len(outline.runs) == 1 else f"{file.name}[bytes {start}:{stop}]"
                pieces.append(Piece(name, file.split, stop - start, records, (file.path, start, stop)))
        if not pieces:
            raise SourceError(
                f"{self.where} holds no records: no member of its {len(self.files()):,} tar files is named KEY.EXTENSION"
            )
        return pieces


def split_name(name: str) -> tuple[str, str] | None:
    """Return (key, extension) of a member, divided at the first dot of its base name, the extension in lower case.

    Return None for what is no part of a record: base names without a dot or beginning with one, and
    WebDataset's own `__name__`.

    >>> split_name("train/0001.seg.PNG")
    ('train/0001', 'seg.png')
    >>> split_name("v1.0/README"), split_name("train/.0001.png"), split_name("__meta__/a.txt")
    (None, None, None)
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    top = name.split("/")[0]
    is_meta = len(top) >= 4 and top.startswith("__") and top.endswith("__")
    if not stem or not dot or is_meta:
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def _members(path: str, tar: Tar, start: int, stop: int | None) -> Iterator[tuple[str, str, Member]]:
    """Yield (key, extension, member); refuse an extension twice in one record."""
    key, seen = None, {_KEY}
    for member in tar.members(start, stop):
        named = split_name(member.name)
        if named is None:
            continue
        if named[0] != key:
            key, seen = named[0], {_KEY}
        if named[1] in seen:
            raise SourceError(
                f"{path} byte {member.start:,}: {member.name} is the second member of record {key!r} with extension "
                f"{named[1]!r} (in lower case); rename it, or pack the tar again"
            )
        seen.add(named[1])
        yield (*named, member)


def _outline(file: InputFile, limit: int) -> _Outline:
    """Scan a file's headers, and cut it where a record begins."""
    found = _Outline()
    last_key, start, records = None, 0, 0
    with open_tar(file.path) as tar:
        for key, extension, member in _members(file.path, tar, 0, None):
            if key != last_key:
                if records and member.start - start >= limit and not is_packed(file.path):
                    found.runs.append((start, member.start, records))
                    start, records = member.start, 0
                last_key, records = key, records + 1
            found.sizes[extension] = max(member.size, found.sizes.get(extension, 0))
            if len(found.sizes) > _MANY_COLUMNS:
                raise SourceError(
                    f"{file.path} has more than {_MANY_COLUMNS} extensions, such as {extension!r} of {member.name}; each "
                    "becomes a column: what tells records from each other stands before the first dot"
                )
        if records:
            found.runs.append((start, tar.reached, records))
    return found


def _type(extension: str, size: int) -> pa.DataType:
    if extension in _INTEGERS:
        return pa.int64()
    if extension in _TEXTS:
        return pa.string() if size < _LARGE_BYTES else pa.large_string()
    return pa.binary() if size < _LARGE_BYTES else pa.large_binary()


def _batch(rows: list[dict[str, Any]], schema: pa.Schema, path: str) -> pa.RecordBatch:
    arrays = []
    for field_ in schema:
        values = [row.get(field_.name) for row in rows]
        if field_.name == _KEY:
            arrays.append(pa.array(values, pa.string()))
        elif any(value is not None for value in values):
            arrays.append(_column(values, field_, rows, path))
        else:
            arrays.append(pa.nulls(len(rows), field_.type))
    batch = pa.RecordBatch.from_arrays(arrays, names=schema.names)
    return conform(batch, schema, f"{path} records {rows[0][_KEY]!r} to {rows[-1][_KEY]!r}")


def _column(values: list[bytes | None], field_: pa.Field, rows: list[dict[str, Any]], path: str) -> pa.Array:
    """Return members as they are, or as text for columns of any other type than bytes."""
    array = pa.array(values, pa.large_binary())
    if any(is_type(field_.type) for is_type in (pt.is_binary, pt.is_large_binary, pt.is_fixed_size_binary)):
        return array
    try:
        array = array.cast(pa.large_string())
    except pa.ArrowInvalid:
        for row, value in zip(rows, values, strict=True):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as e:
                raise SchemaError(
                    f"{path}: {row[_KEY]}.{field_.name} is not UTF-8 at its byte {e.start:,}; keep the bytes with "
                    f"schema={{{field_.name!r}: 'binary'}}"
                ) from None
        raise
    is_string = pt.is_string(field_.type) or pt.is_large_string(field_.type)
    return array if is_string else pc.utf8_trim_whitespace(array)
