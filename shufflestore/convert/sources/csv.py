"""CSV and TSV, plain or gzipped; a piece is a range of bytes and holds the records that start in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.types as pt

from shufflestore.convert.base import Piece
from shufflestore.convert.sources import FileSource, InputFile, conform, join_schemas, resolve_schema
from shufflestore.errors import SourceError
from shufflestore.lazy import lazy

__all__ = ["CsvSource"]

_PIECE_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 1 << 20
"""The least that is parsed at once; a record must fit."""
_NULLS: Final = ("", "NA", "N/A", "NULL", "null", "NaN", "nan")
"""What is null in columns of numbers and booleans. In text columns nothing is."""
_INTEGER: Final = r"^[ \t]*-?(0|[1-9][0-9]*)[ \t]*$"
_NUMBER: Final = r"^[ \t]*-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?[ \t]*$"
_BOOLEAN: Final = r"^(true|True|TRUE|false|False|FALSE)$"
_TYPES: Final = {"int64": pa.int64(), "uint64": pa.uint64(), "float64": pa.float64(), "bool": pa.bool_()}
"""What values may be taken for, the first that fits all of a column; else they are text."""


@dataclass
class _Outline:
    """What a file holds, by a reading of all of it."""

    types: dict[str, set[str] | None] = field(default_factory=dict)
    """Which of _TYPES fit all values of each column; None where all are null."""
    records: int = 0
    is_one_a_line: bool = False
    """Whether no value holds the end of a line, so that the file can be cut at any."""

    def schema(self, common: Mapping[str, set[str]]) -> pa.Schema:
        """Return the types found, those that fit all files if there are such."""
        found = {}
        for name, fits in self.types.items():
            fits = fits if fits is None else common[name] or fits
            first = next((_TYPES[kind] for kind in _TYPES if fits and kind in fits), pa.string())
            found[name] = pa.null() if fits is None else first
        return pa.schema(found)


class CsvSource(FileSource):
    """Separated values; the first line names the columns. `.tsv` is separated by tabs, all else by `delimiter` or commas.

    A column's type is the narrowest of int64, uint64, float64 and bool that every value of the file has as its
    usual spelling, else string: `007`, dates and integers past uint64 stay text.
    """

    kind = "csv"

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records; holds some blocks of `batch_bytes`."""
        path, start, stop, names = piece.key
        schema = self.schema()
        if stop is not None:
            with _named(piece.name):
                start, stop = (_line_at(path, at) for at in (start, stop))
            if start == stop:
                return  # a line is longer than the piece
        wire = {f.name: _wire_type(f.type) for f in schema if f.name in names}
        convert = pacsv.ConvertOptions(
            column_types=wire, include_columns=list(wire), null_values=list(_NULLS), strings_can_be_null=False
        )
        row = 0
        with _named(piece.name), self._open(path, start, stop) as text:
            for batch in self._parse(path, text, convert, names if start else None):
                yield conform(batch, schema, f"{piece.name} records [{row:,}, {row + batch.num_rows:,}) of the piece")
                row += batch.num_rows
        if piece.record_count is not None and row != piece.record_count:
            raise SourceError(f"{piece.name} holds {row:,} records, not {piece.record_count:,}; it was changed")

    def _parse(
        self, path: str, text: pa.NativeFile, convert: pacsv.ConvertOptions, names: list[str] | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the batches of some text; `names` where it does not begin with the columns'."""
        read = pacsv.ReadOptions(
            use_threads=self._options.use_threads,
            block_size=max(_BLOCK_BYTES, min(self._options.batch_bytes, 1 << 30)),
            column_names=names,
        )
        # Values may hold ends of lines, or where a block ends would decide what is read.
        parse = pacsv.ParseOptions(delimiter=self._delimiter(path), newlines_in_values=True)
        yield from pacsv.open_csv(text, read, parse, convert)

    def _delimiter(self, path: str) -> str:
        if self._options.delimiter is not None:
            return self._options.delimiter
        return "\t" if path.lower().endswith((".tsv", ".tsv.gz")) else ","

    @contextmanager
    def _open(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[pa.NativeFile]:
        """Open a file's text; of a plain one, bytes [start, stop)."""
        if _is_packed(path):
            if not Path(path).stat().st_size:  # pyarrow takes it for an empty text
                raise SourceError(f"{path} has no bytes, compressed text has some; it was cut short, copy it again")
            with pa.input_stream(path, compression="gzip") as packed:
                yield packed
            return
        with pa.OSFile(path) as file:
            yield file.get_stream(start, (file.size() if stop is None else stop) - start)

    def _find_schema(self) -> pa.Schema:
        told = [(f.path, outline) for f, outline in zip(self.files(), self._outlines, strict=True) if outline.types]
        common: dict[str, set[str]] = {}
        for _, outline in told:
            for name, fits in outline.types.items():
                common[name] = common.get(name, set(_TYPES)) & (set(_TYPES) if fits is None else fits)
        found = [(path, outline.schema(common)) for path, outline in told]
        if not found:
            raise SourceError(
                f"{self.where} holds no columns: its {len(self.files()):,} files are empty; check the path"
            )
        return resolve_schema(join_schemas(found, self._options), self._options, self.where)

    def _find_pieces(self) -> list[Piece]:
        limit = self._options.piece_bytes or _PIECE_BYTES
        pieces = []
        for file, outline in zip(self.files(), self._outlines, strict=True):
            names, size = list(outline.types), file.byte_count
            if not names:
                continue
            if size <= limit or not outline.is_one_a_line:
                pieces.append(Piece(file.name, file.split, size, outline.records, (file.path, 0, None, names)))
                continue
            for start in range(0, size, limit):
                stop = min(size, start + limit)
                name = f"{file.name}[bytes {start}:{stop}]"
                pieces.append(Piece(name, file.split, stop - start, None, (file.path, start, stop, names)))
        if not any(outline.records for outline in self._outlines):
            raise SourceError(f"{self.where} holds no records: its {len(self.files()):,} files have at most a header")
        return pieces

    @lazy
    def _outlines(self) -> list[_Outline]:
        with ThreadPoolExecutor(min(8, pa.cpu_count()), "shufflestore-infer") as pool:
            return list(pool.map(self._outline, self.files()))

    def _outline(self, file: InputFile) -> _Outline:
        """Read all of a file as text, and see what it may be taken for."""
        if not file.byte_count and not _is_packed(file.path):
            return _Outline()
        with _named(file.path):
            names = self._names(file.path)
            found = _Outline(dict.fromkeys(names))
            given = self._options.schema
            fixed = set(names if isinstance(given, pa.Schema) else given or ())
            convert = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
            last = ""
            with self._open(file.path) as text:
                for batch in self._parse(file.path, text, convert, None):
                    found.records += batch.num_rows
                    last = batch.column(-1)[-1].as_py() if batch.num_rows else last
                    for name, column in zip(names, batch.columns, strict=True):
                        if name in fixed:
                            found.types[name] = set()
                        elif found.types[name] != set():
                            found.types[name] = _both(found.types[name], _fitting(column))
            if "\n" in last or "\r" in last:
                self._refuse_open_quote(file.path, found.records)
            found.is_one_a_line = not _is_packed(file.path) and _is_one_a_line(file.path, found.records)
        return found

    def _refuse_open_quote(self, path: str, records: int) -> None:
        """Refuse a last value of several lines without a quote behind it: it took in what was left of the file."""
        end = b""
        with self._open(path) as text:
            while part := text.read(_BLOCK_BYTES):
                end = (end + part).rstrip(b"\r\n")[-1:]
        if end != b'"':
            raise SourceError(
                f"{path} record {records:,}: a quote is opened and never closed; mend the line it begins in"
            )

    def _names(self, path: str) -> list[str]:
        """Return the names of the columns; lines of another number of values are for later."""
        with self._open(path) as text:
            options = pacsv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
            parse = pacsv.ParseOptions(
                delimiter=self._delimiter(path), newlines_in_values=True, invalid_row_handler=lambda _: "skip"
            )
            names: list[str] = pacsv.open_csv(text, options, parse).schema.names
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SourceError(f"{path} has two columns named {doubled[0]!r}; rename one of them there")
        other = next((sign for sign in ";\t|" if sign in names[0]), None)
        if len(names) == 1 and other is not None and self._options.delimiter is None:
            raise SourceError(
                f"{path} has one column, {names[0][:80]!r}; if it is separated by {other!r}, say delimiter={other!r}"
            )
        return names


def _is_packed(path: str) -> bool:
    return path.lower().endswith(".gz")


def _wire_type(type_: pa.DataType) -> pa.DataType:
    """Return what pyarrow's CSV reader can make of a column, to be cast afterwards."""
    if isinstance(type_, pa.BaseExtensionType):
        return _wire_type(type_.storage_type)
    if pt.is_float16(type_):
        return pa.float32()
    is_plain = pt.is_primitive(type_) or pt.is_decimal(type_) or pt.is_null(type_)
    is_bytes = pt.is_binary(type_) or pt.is_large_binary(type_) or pt.is_large_string(type_)
    return type_ if is_plain or is_bytes else pa.string()


# What values may be


def _both(a: set[str] | None, b: set[str] | None) -> set[str] | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _fitting(column: pa.Array) -> set[str] | None:
    """Return which types all values of a column fit; None if all are null.

    It is what the values fit one by one, so it does not matter how a file is cut into blocks.
    """
    text = column.filter(pc.invert(pc.is_in(column, pa.array(_NULLS))))
    if not len(text):
        return None
    if _all_match(text, _BOOLEAN):
        return {"bool"}
    if not _all_match(text, _NUMBER):
        return set()
    whole = pc.ascii_trim(text.filter(pc.match_substring_regex(text, _INTEGER)), " \t")
    fits = {"float64"} if len(whole) < len(text) else {"int64", "uint64", "float64"}
    if not _can_be(whole, pa.uint64()):
        fits -= {"uint64"}
    if not _can_be(whole, pa.int64()):
        fits -= {"int64", "float64"}  # past 2^63 a float64 is another number, and such are ids
    return fits


def _all_match(text: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(text, pattern)).as_py())


def _can_be(text: pa.Array, type_: pa.DataType) -> bool:
    try:
        text.cast(type_)
    except pa.ArrowInvalid:
        return False
    return True


# Lines


def _is_one_a_line(path: str, records: int) -> bool:
    """Whether a file's records and header are its lines, those left out that are empty, as pyarrow does.

    An end of line inside a value makes two lines of one record, each with a quote in it, so the numbers differ; a
    carriage return of its own could make up for that.
    """
    lines = returns = pairs = 0
    before = b"\n\n"
    with Path(path).open("rb") as file:
        while part := file.read(16 << 20):
            if not lines and not returns and part[:1] in b"\r\n":
                return False
            data = np.frombuffer(before + part, np.uint8)
            ends = np.flatnonzero(data[2:] == 10) + 2
            follows_return = data[ends - 1] == 13
            is_empty = (data[ends - 1] == 10) | (follows_return & (data[ends - 2] == 10))
            lines += ends.size - int(is_empty.sum())
            pairs += int(follows_return.sum())
            returns += part.count(b"\r")
            before = data[-2:].tobytes()
    lines += before[-1:] != b"\n"
    return returns == pairs and lines == records + 1


def _line_at(path: str, at: int) -> int:
    """Return where the first line begins that starts at or behind a byte."""
    if not at:
        return 0
    with Path(path).open("rb") as file:
        file.seek(at - 1)
        return at - 1 + len(file.readline())


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Give pyarrow's errors the name of the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as e:
        if "straddling" in str(e):
            raise SourceError(f"{name} holds a record larger than batch_bytes; give more in SourceOptions") from e
        raise SourceError(
            f"{name} cannot be read as CSV ({e}); mend the line, or say types with schema={{column: type}}"
        ) from e
