"""Arrow IPC files and streams; a piece is a run of record batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from pyarrow import ipc

from shufflestore.convert.base import Piece
from shufflestore.convert.sources import FileSource, InputFile, conform, join_schemas, resolve_schema
from shufflestore.errors import SourceError
from shufflestore.lazy import lazy

__all__ = ["ArrowSource"]

_PIECE_BYTES: Final = 128 << 20
_LOOKERS: Final = 8
_MAGIC: Final = b"ARROW1"


@dataclass(frozen=True)
class _Run:
    """Consecutive record batches of one file."""

    start: int
    stop: int | None
    """None for the end of the file."""
    byte_count: int
    record_count: int | None


@dataclass(frozen=True)
class _Outline:
    schema: pa.Schema
    runs: tuple[_Run, ...]


class ArrowSource(FileSource):
    """Arrow IPC files and streams (`.arrow` may be either), compressed buffers and dictionaries included."""

    kind = "arrow"

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records; uncompressed ones stay in the mapped file, without a copy."""
        path, start, stop = piece.key
        schema = self.schema()
        with _named(path), pa.memory_map(path) as file:
            number = start
            for batch in _file_batches(file, start, stop) if _is_file(file) else _stream_batches(file, start, stop):
                yield conform(batch, schema, f"{path} record batch {number:,}")
                number += 1
            if stop is not None and number < stop:
                raise SourceError(f"{path} has {number:,} record batches, {stop:,} were there before; it was changed")

    @lazy
    def _outlines(self) -> list[_Outline]:
        limit = self._options.piece_bytes or _PIECE_BYTES
        with ThreadPoolExecutor(_LOOKERS, "shufflestore-outlines") as pool:
            return list(pool.map(lambda file: _outline(file, limit), self.files()))

    def _find_schema(self) -> pa.Schema:
        found = [(file.path, outline.schema) for file, outline in zip(self.files(), self._outlines, strict=True)]
        return resolve_schema(join_schemas(found, self._options), self._options, self.where)

    def _find_pieces(self) -> list[Piece]:
        pieces = []
        for file, outline in zip(self.files(), self._outlines, strict=True):
            for run in outline.runs:
                whole = len(outline.runs) == 1
                name = file.name if whole else f"{file.name}[record batches {run.start}:{run.stop}]"
                key = (file.path, run.start, run.stop)
                pieces.append(Piece(name, file.split, run.byte_count, run.record_count, key))
        if not any(piece.record_count != 0 for piece in pieces):
            raise SourceError(f"{self.where} holds no records in {len(self.files()):,} Arrow files; check the path")
        return pieces


def _is_file(file: pa.MemoryMappedFile) -> bool:
    file.seek(0)
    is_file = file.read(len(_MAGIC)) == _MAGIC
    file.seek(0)
    return bool(is_file)


def _outline(file: InputFile, limit: int) -> _Outline:
    with _named(file.path), pa.memory_map(file.path) as opened:
        if _is_file(opened):
            return _outline_file(opened, file.byte_count, limit)
        return _outline_stream(opened, file.byte_count, limit)


def _outline_file(opened: pa.MemoryMappedFile, size: int, limit: int) -> _Outline:
    """Cut by equal numbers of batches: their sizes are known only by decoding each."""
    reader = ipc.open_file(opened)
    count = reader.num_record_batches
    step = max(1, min(count, limit * count // max(1, size)))
    if step >= count:
        return _Outline(reader.schema, (_Run(0, count, size, reader.count_rows()),) if count else ())
    cuts = [(start, min(count, start + step)) for start in range(0, count, step)]
    return _Outline(reader.schema, tuple(_Run(a, b, size * (b - a) // count, None) for a, b in cuts))


def _outline_stream(opened: pa.MemoryMappedFile, size: int, limit: int) -> _Outline:
    """Cut by the sizes in the message headers; only these are read. A stream with dictionaries is one piece."""
    messages = ipc.MessageReader.open_stream(opened)
    schema = ipc.read_schema(messages.read_next_message())
    runs: list[_Run] = []
    start = number = held = 0
    for message in messages:
        if message.type != "record batch":
            return _Outline(schema, (_Run(0, None, size, None),))
        body = message.body.size
        if number > start and held + body > limit:
            runs.append(_Run(start, number, held, None))
            start, held = number, 0
        number, held = number + 1, held + body
    if number > start:
        runs.append(_Run(start, number, held, None))
    return _Outline(schema, tuple(runs))


def _file_batches(file: pa.MemoryMappedFile, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    reader = ipc.open_file(file)
    for i in range(start, min(stop, reader.num_record_batches)):
        yield reader.get_batch(i)


def _stream_batches(file: pa.MemoryMappedFile, start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    if stop is None:
        yield from ipc.open_stream(file)
        return
    messages = ipc.MessageReader.open_stream(file)
    schema = ipc.read_schema(messages.read_next_message())
    for number, message in enumerate(messages):
        if number >= stop:
            return
        if number >= start:
            yield ipc.read_record_batch(message, schema)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Give pyarrow's errors the name of the file."""
    try:
        yield
    except (pa.ArrowException, OSError, StopIteration, EOFError) as e:
        reason = str(e) or "nothing is in it"
        raise SourceError(
            f"{path} cannot be read as Arrow IPC ({reason}); it is damaged, cut short or not Arrow"
        ) from e
