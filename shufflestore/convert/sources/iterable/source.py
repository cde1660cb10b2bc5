"""Anything in this process that gives dicts; it is one piece."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import pyarrow as pa

from shufflestore.convert.base import Piece, SourceOptions, SourceSpec, schema_to_text
from shufflestore.convert.sources import resolve_schema
from shufflestore.convert.sources.iterable.records import HELD_BYTES, HELD_RECORDS, RecordBuilder
from shufflestore.convert.sources.iterable.values import check_record, infer_schema, own, size_of
from shufflestore.errors import SourceError

__all__ = ["IterableSource"]


class IterableSource:
    """A list, a map-style data set, an iterable, a function that returns one, or an iterator.

    The schema is made of the first `HELD_RECORDS` records, or fewer where they are large. An iterator
    is read once: what `schema` took from it, `read` gives first.
    """

    kind = "iterable"

    def __init__(self, source: Any, options: SourceOptions, resolved: pa.Schema | None = None) -> None:
        """Take note of the source; nothing is read.

        Args:
            source: Gives dicts.
            options: How to read.
            resolved: None; a source without a spec is never made from one.
        """
        self._open, self.is_replayable = _opener(source)
        self._name = type(source).__name__
        is_counted = isinstance(source, (list, tuple)) or not hasattr(source, "__iter__")
        self._count = len(source) if is_counted and hasattr(source, "__len__") else None
        self._options = options
        self._schema = resolved
        self._digest = ""
        self._head: list[Mapping[str, Any]] = []
        self._rest: Iterator[Mapping[str, Any]] = iter(())
        self._is_spent = False

    def schema(self) -> pa.Schema:
        """Return the schema of the first records; see `Source.schema`. An iterator is read this far."""
        if self._schema is None:
            self._look()
            given = self._options.schema
            found = given if isinstance(given, pa.Schema) else infer_schema(self._head, given)
            self._schema = resolve_schema(found, self._options, f"the first record of the {self._name}")
            self._digest = self._digest_head(self._schema)
            if self.is_replayable:
                self._head = []
        return self._schema

    def pieces(self) -> list[Piece]:
        """Return the one piece."""
        self.schema()
        count = self._count
        mean = self._head_bytes / self._head_count
        return [Piece(self._name, "train", int(mean * (self._head_count if count is None else count)), count, ())]

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield all records; holds one batch of them.

        Raises:
            SourceError: An iterator was read before.
            SchemaError: A record does not fit; it is named by its number, from 0.
        """
        builder = self._builder(self.schema())
        yield from builder.add_many(self._records())
        last = builder.flush()
        if last is not None:
            yield last

    def spec(self) -> SourceSpec | None:
        """Return None: what Python gives, only this process can read."""
        return None

    def fingerprint(self) -> str:
        """Return a digest of the options, the length and the first records.

        Records behind them are not looked at: that a resumed conversion has the same ones, its caller says.
        """
        schema = schema_to_text(self.schema())
        text = json.dumps([self.kind, self._options.to_json(), self._count, schema, self._digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _records(self) -> Iterable[Mapping[str, Any]]:
        if self.is_replayable:
            return self._open()
        if self._is_spent:
            raise SourceError(
                f"the {self._name} was read already and cannot begin again; give a list, or a function that returns it"
            )
        self._is_spent = True
        head, self._head = self._head, []
        return chain(head, self._rest)

    def _builder(self, schema: pa.Schema) -> RecordBuilder:
        takes_some = self._options.columns is not None or isinstance(self._options.schema, pa.Schema)
        return RecordBuilder(schema, batch_bytes=self._options.batch_bytes, ignores_other_keys=takes_some)

    def _digest_head(self, schema: pa.Schema) -> str:
        digest = hashlib.sha256()
        builder = self._builder(schema)
        for batch in builder.add_many(self._head):
            digest.update(batch.serialize())
        last = builder.flush()
        if last is not None:
            digest.update(last.serialize())
        return digest.hexdigest()

    def _look(self) -> None:
        """Take the first records."""
        records = iter(self._open())
        head: list[Mapping[str, Any]] = []
        size = 0
        for record in records:
            check_record(record, len(head))
            head.append({name: own(value) for name, value in record.items()})
            size += sum(map(size_of, record.values()))
            if len(head) >= HELD_RECORDS or size >= HELD_BYTES:
                break
        if not head:
            raise SourceError(f"the {self._name} gives no records; check it, an iterator may have been used up before")
        self._head, self._rest = head, records
        self._head_bytes, self._head_count = size, len(head)


def _opener(source: Any) -> tuple[Callable[[], Iterable[Any]], bool]:
    """Return what begins a reading, and whether it can be done again."""
    if hasattr(source, "__next__"):
        return lambda: source, False
    if hasattr(source, "__iter__"):
        return lambda: source, True
    if hasattr(source, "__getitem__"):
        return lambda: (source[i] for i in range(len(source))), True
    return source, True
