"""JSON lines, plain or compressed; a piece is a range of bytes, and holds the lines that start in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.types as pt

from shufflestore.convert.base import Piece
from shufflestore.convert.sources import FileSource, conform, join_schemas, resolve_schema
from shufflestore.errors import SourceError

__all__ = ["JsonlSource"]

_PIECE_BYTES: Final = 64 << 20
_MAX_LINE_BYTES: Final = (1 << 31) - (64 << 20)
"""pyarrow counts the bytes of a block in 32 bits, signed; a line may be its last."""
_INT64_END: Final = float(1 << 63)


@dataclass(frozen=True)
class _Block:
    """Some whole lines of a file."""

    data: bytes
    start: int
    """In the file; of a compressed one, in its text."""
    line: int
    """Lines of this piece before it."""

    def place(self, piece: Piece) -> str:
        return f"{piece.key[0]} (bytes [{self.start:,}, {self.start + len(self.data):,}))"


class JsonlSource(FileSource):
    """JSON lines. Text stays text: what looks like a date is a string unless `schema` says otherwise."""

    kind = "jsonl"

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records; holds one block of lines."""
        schema = self.schema()
        wire = pa.schema([_wire_field(field) for field in schema])
        for block in self._blocks(piece):
            _check_text(block, piece)
            table = _parse_named(block, piece, lambda data: _parse(data, wire, "ignore"))
            for batch in table.to_batches():
                yield conform(batch, schema, block.place(piece))

    def _find_pieces(self) -> list[Piece]:
        limit = self._options.piece_bytes or _PIECE_BYTES
        pieces = []
        for file in self.files():
            size = file.byte_count
            if _compression(file.path) is not None:
                if not size:
                    raise SourceError(
                        f"{file.path} has no bytes, compressed text has some; it was cut short, copy it again"
                    )
                pieces.append(Piece(file.name, file.split, size, None, (file.path, 0, None)))
                continue
            for start in range(0, size, limit):
                stop = min(size, start + limit)
                name = file.name if stop - start == size else f"{file.name}[bytes {start}:{stop}]"
                pieces.append(Piece(name, file.split, stop - start, None, (file.path, start, stop)))
        if not any(piece.byte_count for piece in pieces):
            raise SourceError(f"{self.where} holds no records: its {len(self.files()):,} files are empty")
        return pieces

    def _find_schema(self) -> pa.Schema:
        given = self._options.schema
        if isinstance(given, pa.Schema):
            return resolve_schema(given, self._options, self.where)
        pool = ThreadPoolExecutor(min(8, pa.cpu_count()), "shufflestore-infer")
        try:
            # map() hands results on in order, so which conflict is reported does not depend on timing.
            found = [pair for pairs in pool.map(self._infer, self.pieces()) for pair in pairs]
        finally:
            pool.shutdown(cancel_futures=True)
        if not any(schema.names for _, schema in found):
            raise SourceError(f"{self.where} holds no columns: files have no lines, or {{}} on all; check the path")
        schema = join_schemas(found, self._options, is_loose=True)
        return resolve_schema(schema, self._options, self.where)

    def _infer(self, piece: Piece) -> list[tuple[str, pa.Schema]]:
        """Return (place, schema) of a piece's blocks, each schema once."""
        given = self._options.schema
        fixed = None
        if isinstance(given, Mapping):
            fixed = pa.schema([(name, _wire_type(type_)) for name, type_ in given.items()])
        found: dict[pa.Schema, str] = {}
        for block in self._blocks(piece):
            table = _parse_named(block, piece, lambda data: _parse(data, fixed, "infer"))
            schema = _lossless(table, block.data, fixed)
            found.setdefault(schema, block.place(piece))
        return [(place, schema) for schema, place in found.items()]

    def _blocks(self, piece: Piece) -> Iterator[_Block]:
        path, start, stop = piece.key
        try:
            with _open(path) as file:
                if start:
                    file.seek(start - 1)
                    start += len(file.readline()) - 1
                line = 0
                while stop is None or start < stop:
                    size = self._options.batch_bytes
                    data = file.read(size if stop is None else min(size, stop - start))
                    if not data:
                        break
                    if data[-1:] != b"\n":
                        data += file.readline(_MAX_LINE_BYTES)
                    if len(data) >= _MAX_LINE_BYTES:
                        raise SourceError(f"{path}: a line behind byte {start:,} exceeds 2 GB; are these JSON lines?")
                    yield _Block(data, start, line)
                    start += len(data)
                    line += data.count(b"\n")
        except (pa.ArrowException, OSError) as e:
            raise SourceError(
                f"{path} cannot be read after byte {start:,} of its text ({e}); it is damaged or was cut short"
            ) from e


def _compression(path: str) -> str | None:
    return {".gz": "gzip", ".zst": "zstd"}.get(Path(path).suffix.lower())


def _open(path: str) -> BinaryIO:
    compression = _compression(path)
    if compression is None:
        return Path(path).open("rb", buffering=1 << 20)
    return io.BufferedReader(pa.input_stream(path, compression=compression), 1 << 20)


def _parse(data: bytes, schema: pa.Schema | None, unexpected: str) -> pa.Table:
    return pj.read_json(
        pa.BufferReader(data),
        # One block whatever the length of its lines, so that each column is one array.
        read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )


def _wire_field(field: pa.Field) -> pa.Field:
    """Return a field as pyarrow's JSON reader can make it, to be cast afterwards."""
    return pa.field(field.name, _wire_type(field.type))


def _wire_type(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.BaseExtensionType):
        return _wire_type(type_.storage_type)
    if pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        return pa.list_(_wire_type(type_.value_type))
    if pt.is_struct(type_):
        return pa.struct([_wire_field(field) for field in type_])
    if pt.is_dictionary(type_):
        return _wire_type(type_.value_type)
    return pa.float32() if pt.is_float16(type_) else type_


def _lossless(table: pa.Table, data: bytes, fixed: pa.Schema | None) -> pa.Schema:
    """Return a block's guessed schema: no dates, and unsigned integers where pyarrow went for floats."""
    fields = [pa.field(f.name, _plain(f.type)) for f in table.schema]
    if fixed is not None:
        fields = [fixed.field(f.name) if f.name in fixed.names else f for f in fields]
    large = [f.name for f in fields if pt.is_float64(f.type) and _reaches_past_int64(table[f.name])]
    for name in large:
        try:
            _parse(data, pa.schema([(name, pa.uint64())]), "ignore")
        except pa.ArrowInvalid:
            continue
        fields = [f.with_type(pa.uint64()) if f.name == name else f for f in fields]
    return pa.schema(fields)


def _reaches_past_int64(column: pa.ChunkedArray) -> bool:
    largest = pc.max(column).as_py()
    return largest is not None and largest >= _INT64_END


def _plain(type_: pa.DataType) -> pa.DataType:
    if pt.is_timestamp(type_):
        return pa.string()
    if pt.is_list(type_):
        return pa.list_(_plain(type_.value_type))
    if pt.is_struct(type_):
        return pa.struct([field.with_type(_plain(field.type)) for field in type_])
    return type_


# Errors


def _check_text(block: _Block, piece: Piece) -> None:
    """Refuse bytes that are not UTF-8, which pyarrow's parser lets through."""
    ends = pa.py_buffer(np.array([0, len(block.data)], np.int64))
    text = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(block.data)])
    try:
        text.cast(pa.large_string())
    except pa.ArrowInvalid:
        try:
            block.data.decode()
        except UnicodeDecodeError as e:
            line = block.data.count(b"\n", 0, e.start)
            raise _bad_line(block, piece, line, f"byte {block.data[e.start]:#04x} is not UTF-8") from None
        raise


def _parse_named(block: _Block, piece: Piece, parse: Callable[[bytes], pa.Table]) -> pa.Table:
    try:
        return parse(block.data)
    except (pa.ArrowException, UnicodeDecodeError) as e:
        reason = str(e)
    lines = block.data.splitlines(keepends=True)
    low, high = 0, len(lines)  # the first `low` lines are fine, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            parse(b"".join(lines[:middle]))
            low = middle
        except (pa.ArrowException, UnicodeDecodeError) as e:
            high, reason = middle, str(e)
    raise _bad_line(block, piece, low, _reason(lines[low], reason))


def _reason(line: bytes, reason: str) -> str:
    try:
        value: Any = json.loads(line.strip())
    except json.JSONDecodeError as e:
        return f"{e.msg} at character {e.pos + 1}"
    except ValueError as e:
        return str(e)
    if not isinstance(value, dict):
        return f"it is a JSON {type(value).__name__}, a record is an object"
    return reason.removeprefix("JSON parse error: ").partition(" in row ")[0]


def _bad_line(block: _Block, piece: Piece, line: int, reason: str) -> SourceError:
    path, start, _ = piece.key
    number = _lines_before(path, start) + block.line + line + 1
    shown = block.data.split(b"\n")[line][:80]
    next_step = "mend the line, or say its types with schema={column: type}"
    if number == 1 and shown.lstrip()[:1] == b"[":
        next_step = "this looks like one JSON array: write one object a line, e.g. with `jq -c '.[]'`"
    return SourceError(f"{path} line {number:,}: {reason}; it begins {shown!r}; {next_step}")


def _lines_before(path: str, start: int) -> int:
    """Count the lines that end before the first that starts at or behind byte `start`."""
    if not start:
        return 0
    count = 0
    with Path(path).open("rb") as file:
        while start > 1:
            data = file.read(min(1 << 20, start - 1))
            if not data:
                break
            count += data.count(b"\n")
            start -= len(data)
        return count + bool(file.readline())
