"""Hugging Face data sets that are files on disk: read by the core, delivered as `datasets` and torch would.

Which tables are served this way, and why others are not, stands in docs/design/fast_paths.md.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import default_collate

from shufflestore.collate.tables import rows_of
from shufflestore.dataset.dataset import Dataset, Origin
from shufflestore.dataset.inplace import beside, cache_folder
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.reading import Reading
from shufflestore.dataset.residency import RowIndexes
from shufflestore.errors import CorruptData, OptionError, SchemaError, ShuffleStoreError
from shufflestore.format.decode import Column
from shufflestore.format.manifest import Manifest, Shards, Split
from shufflestore.format.schema import build_tree, plain_type, schema_digest, storage_type, tree_of
from shufflestore.lazy import lazy
from shufflestore.loader.huggingface_columns import Plain, Rule, Values, rule_for, table_array
from shufflestore.storage.local import LocalStore
from shufflestore.storage.memory import Budget

__all__ = ["Served", "recognise"]

_log = logging.getLogger("shufflestore")
_FORMATS: Final = (None, "torch", "numpy", "custom")
_FORMAT_STATE: Final = ("_format_type", "_format_columns", "_format_kwargs", "_output_all_columns")
_WIDEN: Final = dict.fromkeys(("int8", "uint8", "int16", "uint16", "int32", "uint32"), "i8")


@dataclass(frozen=True)
class _Block:
    """Rows of one Arrow file."""

    file: str
    start: int
    count: int
    columns: tuple[str, ...]
    """The file's columns, in the order of the table's."""
    schema: bytes
    """Digest of all the file's columns."""


_Reason: TypeAlias = str


def recognise(dataset: Any) -> Served | None:
    """Return what serves a Hugging Face data set from its own files; None if it must go through `datasets`.

    Costs a look at the head of each file. Why a Hugging Face data set is not served is said in one log line.

    Args:
        dataset: Anything. `datasets` is not imported for the question.
    """
    module = sys.modules.get("datasets.arrow_dataset")
    if module is None or not isinstance(dataset, module.Dataset):
        return None
    try:
        found = _blocks(dataset) if type(dataset) is module.Dataset else "its class is a subclass"
    except AttributeError as cause:  # of a version of `datasets` that keeps its things elsewhere
        found = f"this version of datasets is not known ({cause})"
    if isinstance(found, _Reason):
        _log.info("the Hugging Face data set is read by datasets itself, not by the core: %s", found)
        return None
    return Served(dataset, found)


class Served:
    """A Hugging Face data set, read by the core.

    Goes to other processes by pickling as the data set itself does.
    """

    def __init__(self, source: Any, blocks: tuple[_Block, ...]) -> None:
        """Prepare; nothing is read or indexed.

        Args:
            source: The Hugging Face data set.
            blocks: Where its table's rows are.
        """
        self._live = source
        self._source = source = _copy(source)  # whose format nobody sets in place
        self._blocks = blocks
        self._format, formatted, rest = _delivered(source)
        self._formatted, self._names = formatted, (*formatted, *rest)
        file_names = dict(zip(source.data.column_names, blocks[0].columns, strict=True))
        self._file_names = [file_names[name] for name in self._names]
        self.widen: dict[str, str] = dict(_WIDEN) if self._format in ("torch", "numpy") else {}
        """For `Dataset.projection`: integers that the core widens while it reads, since the format wants int64."""
        self.runs_user_code: bool = self._format == "custom"
        """Whether the data set has a transform, which worker processes may share among them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Served, (self._source, self._blocks)

    @property
    def is_current(self) -> bool:
        """Whether the data set's format and records are still those that were recognised: `set_format` works in place."""
        live, seen = self._live, self._source
        if live._data is not seen._data or live._indices is not seen._indices:
            return False
        return all(getattr(live, name) == getattr(seen, name) for name in _FORMAT_STATE)

    @lazy
    def dataset(self) -> Dataset:
        """The records and columns that the data set delivers, in its order; opened, and if need be indexed, when first asked for.

        Raises:
            CorruptData: A file has changed since the data set was opened.
            StorageError: The index cannot be written.
        """
        files = tuple(dict.fromkeys(block.file for block in self._blocks))
        made = _open_files(files)
        ranges = _ranges(made, files, self._blocks)
        listed = self._source._indices
        is_one = all(before.stop == behind.start for before, behind in pairwise(ranges))
        if is_one:
            made = made.select(range(ranges[0].start, ranges[-1].stop))
        else:
            made = made.select(np.concatenate([np.arange(r.start, r.stop) for r in ranges]))
        if listed is not None:
            made = made.select(listed.column(0).to_numpy().astype(np.int64))
        return made.project(self._file_names)

    @lazy
    def _rules(self) -> list[tuple[str, str, Rule]]:
        """The data set's name of each column, the file's, and what makes it."""
        format = None if self._format == "custom" else self._format
        schema = self._source.data.schema
        return [
            (name, file_name, rule_for(schema.field(name).type, format if name in self._formatted else None))
            for name, file_name in zip(self._names, self._file_names, strict=True)
        ]

    def collate(self, ids: NDArray[np.int64], columns: dict[str, Column]) -> Any:
        """Return the batch that `default_collate` makes of `records`, without making them where that can be.

        Args:
            ids: (n,) of the records.
            columns: As read of `dataset`.

        Raises:
            RuntimeError, TypeError, ValueError, IndexError: Where `default_collate` does, e.g. for lists of
                several lengths.
        """
        if self._format == "custom" or not len(ids):
            return default_collate(self.records(ids, columns))
        return {name: values.collated() for name, values in self._values(len(ids), columns).items()}

    def records(self, ids: NDArray[np.int64], columns: dict[str, Column]) -> list[dict[str, Any]]:
        """Return what the data set's `__getitems__` returns.

        Args:
            ids: (n,) of the records.
            columns: As read of `dataset`.
        """
        parts = {name: values.records() for name, values in self._values(len(ids), columns).items()}
        if self._format == "custom":
            return self._transformed(parts)
        return rows_of(parts, len(ids))

    def _values(self, count: int, columns: dict[str, Column]) -> dict[str, Values]:
        made: dict[str, Values | None] = {name: rule(columns[file]) for name, file, rule in self._rules}
        left = [(name, file) for name, file, _ in self._rules if made[name] is None]
        if left:
            rows = self._by_datasets(count, {name: columns[file] for name, file in left})
            made.update((name, Plain([row[name] for row in rows])) for name, _ in left)
        return made  # type: ignore[return-value]  # nothing is None any more

    def _by_datasets(self, count: int, columns: dict[str, Column]) -> list[dict[str, Any]]:
        """Have `datasets` format what was read, in the same chunks of one row as when it reads itself."""
        source = self._source
        whole = source.data.schema
        arrays = [table_array(column, whole.field(name).type) for name, column in columns.items()]
        table = pa.Table.from_arrays(arrays, schema=pa.schema([whole.field(n) for n in columns], whole.metadata))
        shadow = _copy(source)
        shadow._data = sys.modules["datasets.table"].InMemoryTable(table)
        shadow._indices = None
        if self._format == "custom":
            shadow._format_type, shadow._format_kwargs = None, {}
        made: list[dict[str, Any]] = shadow.__getitems__(list(range(count)))
        return made

    def _transformed(self, parts: dict[str, list[Any]]) -> list[dict[str, Any]]:
        """Give the user's transform the batch that `datasets` gives it, and cut what it returns into records."""
        formatted = {name: parts[name] for name in self._formatted}
        batch = self._source._format_kwargs["transform"](formatted)
        rest = {name: values for name, values in parts.items() if name not in self._formatted}
        if self._source._format_columns is not None and self._source._output_all_columns:
            if not isinstance(batch, MutableMapping):
                raise TypeError(
                    f"Custom formatting function must return a dict to work with output_all_columns=True, but got {batch}"
                )
            batch.update(rest)
        count = len(batch[next(iter(batch))])
        return [{column: array[i] for column, array in batch.items()} for i in range(count)]


def _copy(source: Any) -> Any:
    """A data set with the same table and format; nothing is copied that grows with it."""
    made = object.__new__(type(source))
    made.__dict__.update(source.__dict__)
    return made


def _delivered(source: Any) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """The format, the columns that it is for, and those that come behind them as python objects."""
    names, chosen = tuple(source.data.column_names), source._format_columns
    if chosen is None:
        return source._format_type, names, ()
    rest = tuple(name for name in names if name not in chosen) if source._output_all_columns else ()
    return source._format_type, tuple(name for name in names if name in chosen), rest


# -- which files, which rows -----------------------------------------------------------------------


def _blocks(dataset: Any) -> tuple[_Block, ...] | _Reason:
    """The files and rows of a data set's table, or why they cannot be had."""
    reason = _refused_format(dataset)
    if reason is not None:
        return reason
    tables = sys.modules["datasets.table"]
    data = dataset.data
    rows = data.blocks if isinstance(data, tables.ConcatenationTable) else [[data]]
    found: list[_Block] = []
    for row in rows:
        if len(row) != 1:
            return "columns of several tables stand side by side (axis=1)"
        if not isinstance(row[0], tables.MemoryMappedTable):
            return "it is in memory, at least in part, not in files"
        block = _block(row[0], data.schema)
        if isinstance(block, _Reason):
            return block
        found.append(block)
    found = [block for block in found if block.count]
    if not found or not len(dataset):
        return "it has no records"
    if any((block.columns, block.schema) != (found[0].columns, found[0].schema) for block in found):
        return "its files do not have the same columns"
    return tuple(found) if (reason := _refused_place(found)) is None else reason


def _refused_format(dataset: Any) -> _Reason | None:
    format, formatted, rest = _delivered(dataset)
    kwargs = dict(dataset._format_kwargs or {})
    if format == "custom":
        kwargs.pop("transform", None)
    if format not in _FORMATS:
        return f"the format {format!r} is made from whole tables"
    if kwargs:
        return f"the format {format!r} was given {sorted(kwargs)}"
    if not formatted:
        return "it delivers no columns in its format"
    features = dataset._info.features
    decoded = [name for name in (*formatted, *rest) if features._column_requires_decoding.get(name)]
    if decoded:
        return f"column {decoded[0]!r} is decoded record by record"
    schema = dataset.data.schema
    for name in (*formatted, *rest):
        type_ = schema.field(name).type
        if plain_type(type_) != storage_type(type_):
            return f"column {name!r} has an extension type within its type"
    return None


def _block(table: Any, whole: pa.Schema) -> _Block | _Reason:
    """Rows and columns of one mapped table, or why they are not a file's."""
    try:
        with pa.memory_map(table.path) as file:
            schema = pa.ipc.open_stream(file).schema
        build_tree(schema)
    except (OSError, pa.ArrowException, ShuffleStoreError) as cause:
        return f"{table.path} cannot be read: {cause}"
    names, start = [(name, name) for name in schema.names], 0
    for change, args, kwargs in table.replays:
        if change == "slice":
            start += args[0]
        elif change != "replace_schema_metadata":
            changed = None if kwargs or not args else _changed(names, change, args[0])
            if changed is None:
                return f"its table was changed after it was read from the file ({change})"
            names = changed
    of_file = dict(names)
    for field in whole:
        if field.name not in of_file or field.name not in table.column_names:
            return f"{table.path} has no column {field.name!r}"
        if plain_type(schema.field(of_file[field.name]).type) != plain_type(field.type):
            return f"column {field.name!r} is stored in another type than the data set's"
    return _Block(
        table.path, start, table.num_rows, tuple(of_file[name] for name in whole.names), schema_digest(schema)
    )


def _changed(names: list[tuple[str, str]], change: str, what: Any) -> list[tuple[str, str]] | None:
    """The names of a table's columns, now and in the file, after one more change; None for a change to the values."""
    if change == "drop":
        gone = {what} if isinstance(what, str) else set(what)
        return [pair for pair in names if pair[0] not in gone]
    if change == "select":
        now = dict(names)
        return [names[n] if isinstance(n, int) else (n, now[n]) for n in what]
    if change == "rename_columns":
        new = [what.get(n, n) for n, _ in names] if isinstance(what, dict) else what
        return [(n, old) for n, (_, old) in zip(new, names, strict=True)]
    return None


def _refused_place(blocks: Sequence[_Block]) -> _Reason | None:
    """Why an index of the files could not be kept."""
    for path in dict.fromkeys(Path(block.file) for block in blocks):
        folder = cache_folder(path)
        if any((place / "snapshots").is_dir() for place in (beside(path), folder)):
            continue
        there = next(parent for parent in folder.parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            return f"its row index cannot be kept, since {there} cannot be written; set SHUFFLESTORE_CACHE to a folder that can"
    return None


# -- the files as one data set ---------------------------------------------------------------------


def _open_files(files: tuple[str, ...]) -> Dataset:
    """Return the records of some Arrow files, one after another, each indexed where it lies.

    Raises:
        SchemaError: The files have different columns.
    """
    opened = [open_dataset(file) for file in files]
    if len(opened) == 1:
        return opened[0]
    schema = opened[0].manifest.schema
    for file, one in zip(files, opened, strict=True):
        if schema_digest(one.manifest.schema) != schema_digest(schema):
            raise SchemaError(f"{files[0]} and {file} have different columns; load the data set again")
    # Each file's index names it relative to a root of its own; one store has one root, that of the file system.
    table = pa.concat_tables([_absolute(one) for one in opened])
    digest = hashlib.sha256("".join(one.manifest.identity for one in opened).encode()).hexdigest()
    store = LocalStore("/")
    store.uri = f"{files[0]} and {len(files) - 1} more"
    manifest = Manifest(schema, (Split("train", sum(map(len, opened)), table.num_rows),), "", 0, digest)
    for one in opened:
        one.close()
    budget = Budget.of(None)
    reading = Reading(RowIndexes(store, tree_of(schema), Shards(table), budget.index), True, budget)
    return Dataset(reading, manifest, 0, Origin(_open_files, (files,), _no_split))


def _absolute(one: Dataset) -> pa.Table:
    shards, store = one.reading.indexes.shards.table, one.reading.store
    for column in ("data", "index"):
        number = shards.schema.get_field_index(column)
        paths = [str(Path(store.path(name)).resolve()).lstrip("/") for name in shards.column(column).to_pylist()]  # type: ignore[attr-defined]
        shards = shards.set_column(number, shards.schema.field(number), pa.array(paths, pa.string()))
    return shards


def _no_split(name: str) -> Dataset:
    raise OptionError(f"no split {name!r}: a Hugging Face Dataset is one split; take the other from its DatasetDict")


def _ranges(made: Dataset, files: tuple[str, ...], blocks: Sequence[_Block]) -> list[range]:
    """Return which records of all files the blocks are. Raises CorruptData if a file lost records."""
    ends = made.reading.indexes.first_id.tolist()  # one shard a file; one without records is no shard
    ranges = []
    for block in blocks:
        number = files.index(block.file)
        first, stop = ends[number : number + 2] if len(ends) == len(files) + 1 else (0, 0)
        if first + block.start + block.count > stop:
            raise CorruptData(
                f"{block.file} has {stop - first:,} records, but {block.start + block.count:,} when the data set was "
                "opened; load the data set again"
            )
        ranges.append(range(first + block.start, first + block.start + block.count))
    return ranges
