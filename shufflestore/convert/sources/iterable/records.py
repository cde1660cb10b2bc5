"""Dicts to record batches: runs of plain records by the native core, all others one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

import pyarrow as pa

from shufflestore.convert.sources.iterable.columns import Column, adder, column_of
from shufflestore.convert.sources.iterable.runs import Runs, runs_of
from shufflestore.convert.sources.iterable.values import Misfit, SchemaGuess, check_record, misfit, own, size_of
from shufflestore.errors import SchemaError

__all__ = ["HELD_BYTES", "HELD_RECORDS", "RecordBuilder"]

HELD_RECORDS: Final = 1_000
"""Records whose types make the schema, as many as `datasets` looks at."""
HELD_BYTES: Final = 16 << 20
_PATIENCE: Final = 64
"""Records taken one by one after one that is not plain: whatever is mixed, few runs are so short that to begin them
costs more than they save."""


class RecordBuilder:
    """Makes record batches of dicts.

    Without a schema, the first records (`HELD_RECORDS` or `HELD_BYTES` of them) are held and make it.
    Values are copied when added, but for what stands inside of nested lists and dicts. After an
    error the builder is as it was before the record.

    >>> import numpy as np
    >>> builder = RecordBuilder()
    >>> builder.add({"x": np.arange(2), "y": None})
    >>> builder.add({"x": np.arange(3), "y": "b"})
    >>> builder.flush().to_pydict()
    {'x': [[0, 1], [0, 1, 2]], 'y': [None, 'b']}
    """

    def __init__(
        self, schema: pa.Schema | None = None, *, batch_bytes: int = 8 << 20, ignores_other_keys: bool = False
    ) -> None:
        """Begin.

        Args:
            schema: Of the batches; None to infer it. A key that a record lacks is null.
            batch_bytes: `add` returns batches of about this size.
            ignores_other_keys: Leave out keys that the schema lacks; otherwise they are an error.
        """
        self.record_count = 0
        """Records added so far."""
        self._batch_bytes = batch_bytes
        self._ignores_other_keys = ignores_other_keys
        self._held: list[Mapping[str, Any]] = []
        self._guess = SchemaGuess()
        self._size = 0
        self._runs: Runs | None = None
        self._is_in_run = False
        """Whether the records since the last part stand in a run, or else in the columns."""
        self._parts: list[pa.RecordBatch] = []
        """Of the next batch."""
        self._parted = 0
        """Records that stand in parts or batches."""
        self._schema: pa.Schema | None = None
        self._columns: list[tuple[pa.Field, Column]] = []
        self._adds: list[tuple[str, Callable[[Any], int]]] = []
        if schema is not None:
            self._fix(schema)

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of all batches; None until the first one has fixed it."""
        return self._schema

    def add(self, record: Mapping[str, Any]) -> pa.RecordBatch | None:
        """Take one record; return a batch, of this one and those before it, when there are enough.

        Raises:
            SchemaError: It is no dict, has another key or a value of another type. The record is not taken.
        """
        if self._schema is not None:
            if self._is_in_run:
                self._part()
                self._is_in_run = False
            self._append(record, self.record_count)
            self.record_count += 1
            return self.flush() if self._size >= self._batch_bytes else None
        check_record(record, self.record_count)
        self._guess.add(record, self.record_count)
        self._held.append({name: own(value) for name, value in record.items()})
        self._size += sum(map(size_of, record.values()))
        self.record_count += 1
        return self.flush() if len(self._held) >= HELD_RECORDS or self._size >= HELD_BYTES else None

    def add_many(self, records: Iterable[Mapping[str, Any]]) -> Iterator[pa.RecordBatch]:
        """Take records; where they are plain (see `Runs`) many times as fast as one by one, to the same batches.

        Args:
            records: Each may be changed by its owner as soon as the next is asked for.

        Yields:
            The batches that became full. What is left then, `flush` returns.

        Raises:
            SchemaError: As `add`, for the first record that does not fit; those before it are taken.
            Exception: What `records` raises; those before it are taken.
        """
        source = iter(records)
        while (left := self._take_run(source)) is not None:
            made = map(self.add, chain(left, islice(source, _PATIENCE))) if left else [self.flush()]
            for batch in made:
                if batch is not None:
                    yield batch

    def _take_run(self, source: Iterator[Any]) -> list[Any] | None:
        """Take records while they are plain; return the one that is not, if the run ends with one, or None at the end."""
        if self._runs is None:
            return list(islice(source, 1)) or None
        if not self._is_in_run:
            self._part()
            self._is_in_run = True
        before = self._runs.byte_count
        try:
            return self._runs.consume(source, self._batch_bytes - self._size + before)
        finally:
            self.record_count = self._parted + self._runs.record_count
            self._size += self._runs.byte_count - before

    def _part(self) -> None:
        """Make a part of the next batch of the records since the last one."""
        if self.record_count == self._parted:
            return
        if self._is_in_run:
            assert self._runs is not None, "it was begun"
            arrays = self._runs.take()
        else:
            arrays = [column.take() for _, column in self._columns]
        self._parts.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._parted = self.record_count

    def flush(self) -> pa.RecordBatch | None:
        """Return the records that no batch has had yet; None if there are none. Raises SchemaError."""
        if self._schema is None and self._held:
            self._fix(self._guess.schema())
            for number, record in enumerate(self._held):
                self._append(record, number)
            self._held = []
        if self._schema is None:
            return None
        self._part()
        parts, self._parts, self._size = self._parts, [], 0
        if len(parts) < 2:
            return parts[0] if parts else None
        try:
            return pa.concat_batches(parts)
        except pa.ArrowInvalid as e:
            first = self.record_count - sum(part.num_rows for part in parts)
            raise SchemaError(
                f"records [{first:,}, {self.record_count:,}) do not fit one batch ({e}); "
                "give the column a large_list, large_string or large_binary type with schema="
            ) from e

    def _fix(self, schema: pa.Schema) -> None:
        if not schema.names or len(set(schema.names)) < len(schema.names):
            raise SchemaError(f"the schema has the columns {schema.names}; at least one is needed, and none twice")
        self._schema = schema
        self._columns = [(field, column_of(field.type)) for field in schema]
        self._adds = [(field.name, adder(field, column)) for field, column in self._columns]
        self._runs = runs_of(schema, ignores_other_keys=self._ignores_other_keys)
        self._names = frozenset(schema.names)
        self._width = len(self._names)

    def _append(self, record: Mapping[str, Any], number: int) -> None:
        # As many keys as columns, and every column among them: the same keys, without making sets of them.
        values = record if type(record) is dict and len(record) == self._width else self._complete(record, number)
        size = done = 0
        name, value = "", None
        try:
            for name, add in self._adds:
                value = values[name]
                size += add(value)
                done += 1
        except KeyError:
            self._undo(done)
            if values is not record:
                raise  # not a missing key, but what a value of the user's raised
            self._append(self._complete(record, number), number)
            return
        except (Misfit, pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            self._undo(done)
            raise misfit(number, self._columns[done][0], value, e) from e
        self._size += size

    def _undo(self, count: int) -> None:
        for _, column in self._columns[:count]:
            column.undo()

    def _complete(self, record: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """Return a record with the schema's keys."""
        check_record(record, number)
        others = record.keys() - self._names
        if others and not self._ignores_other_keys:
            raise SchemaError(
                f"record {number:,} has the key {min(others)!r}, which is not among {sorted(self._names)}; "
                "leave it out, or give a schema with it"
            )
        return {name: record.get(name) for name in self._names}
