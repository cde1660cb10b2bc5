"""A data set as people hold it: records by number, views, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore.collate.layouts import Layout, Nulls
from shufflestore.collate.tables import assembler, records_of, to_table
from shufflestore.dataset.reading import Projection, Reading
from shufflestore.dataset.selection import Selection
from shufflestore.dataset.stream import Stream, planned
from shufflestore.errors import OptionError, SchemaError, ShuffleStoreError
from shufflestore.format.decode import Column
from shufflestore.format.manifest import Manifest
from shufflestore.format.resolve import widened
from shufflestore.orders.epoch import Shuffle, make_order, order_named
from shufflestore.orders.partition import Partition, Topology

__all__ = ["BatchOptions", "Dataset"]

BLOCK_BYTES: Final = 1 << 20
"""Of a block of shuffle="blocks": one read of an object store at full speed, thousands of records of most data."""


@dataclass(frozen=True)
class BatchOptions:
    """How `Dataset.batches` delivers, beyond what and in which order."""

    layout: Layout = "jagged"
    """Of variable-length numbers: jagged and packed waste nothing, padded and nested suit models, list suits loops."""
    fill_nulls: Nulls = None
    """What stands for null numbers; None refuses them, since any number would be a guess."""
    return_ids: bool = False
    """Whether each batch has a "record_id"; audits need it, training does not."""
    drop_last: bool = False
    prefetch_bytes: int | None = None
    """Look-ahead; None for what suits the store: 8 MiB of files in memory, 64 MiB where reads wait for a disk."""
    block_records: int | None = None
    """Of a block, with shuffle="blocks"; None for `Dataset.block_records`."""
    open_blocks: int | None = None
    """Blocks in use at a time, with shuffle="blocks"; None means 64."""


@dataclass(frozen=True, eq=False)
class Origin:
    """How a data set was opened, so that another process can open it again."""

    reopen: Callable[..., Dataset]
    arguments: tuple[Any, ...]
    other_split: Callable[[str], Dataset]


class Dataset:
    """Records of one split, by number, in O(1) memory.

    Made by `shufflestore.open`. Map-style for torch: `len`, `[i]` and `__getitems__`. Views
    (`select`, `project`, `split`) share everything with their origin and cost nothing.
    Any number of threads may read. Forked and spawned workers read through files of their own.
    """

    def __init__(
        self,
        reading: Reading,
        manifest: Manifest,
        split: int,
        origin: Origin,
        view: tuple[Selection, tuple[int, ...]] | None = None,
    ) -> None:
        self._reading = reading
        self._origin = origin
        self._split = split
        self.manifest = manifest
        """The snapshot that is read."""
        everything = (Selection(0, 1, len(reading.indexes)), tuple(range(len(manifest.schema))))
        self._selection, self._columns = view or everything

    # -- what it is --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._selection.count

    def __repr__(self) -> str:
        return f"<shufflestore.Dataset {self.uri} split={self.split_name!r} records={len(self):,} columns={self.column_names}>"

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._reading.store.uri

    @property
    def split_name(self) -> str:
        """The split that is read."""
        return self.manifest.splits[self._split].name

    @property
    def schema(self) -> pa.Schema:
        """The columns delivered, with their metadata."""
        whole = self.manifest.schema
        return pa.schema([whole.field(i) for i in self._columns], metadata=whole.metadata)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns delivered."""
        return [self.manifest.schema.field(i).name for i in self._columns]

    @property
    def identity(self) -> str:
        """What a resume state names: 32 hex digits and the view, the same wherever a copy lies."""
        first = f"{self.manifest.identity}/{self.split_name}"
        if self._selection.listed is None and self._selection.count == len(self._reading.indexes):
            if (self._selection.start, self._selection.step) == (0, 1):
                return first
        return f"{first}[{self._selection.digest}]"

    @property
    def block_records(self) -> int:
        """Records of a block of shuffle="blocks" where nobody says: a power of two, at most 1 MiB of stored data."""
        stored = max(1, int(self._reading.indexes.data_bytes.sum()))
        return 1 << max(1, BLOCK_BYTES * len(self._reading.indexes) // stored).bit_length() - 1

    @property
    def reading(self) -> Reading:
        """The machinery below, for loaders."""
        return self._reading

    @property
    def selection(self) -> Selection:
        """Which records of the split this view has."""
        return self._selection

    # -- views -------------------------------------------------------------------------------------

    def select(self, ids: range | slice | Sequence[int] | NDArray[np.integer[Any]]) -> Dataset:
        """Return a view of some records, in the given order; repetition is allowed.

        Args:
            ids: Numbers in [0, len(self)). A range or slice costs O(1), a list 8 bytes each.

        Raises:
            OptionError: A number lies outside.

        >>> import shufflestore as ss, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = ss.convert([{"x": i} for i in range(10)], folder + "/s")
        >>> ss.open(folder + "/s").select(range(8, 2, -2)).take([0, 2])["x"].to_pylist()
        [8, 4]
        """
        if isinstance(ids, slice):
            ids = range(*ids.indices(len(self)))
        if isinstance(ids, range):
            inner = Selection(ids.start, ids.step, len(ids))
            edges = np.array([ids[0], ids[-1]] if len(ids) else [], np.int64)
        else:
            listed = self._numbers(ids)
            inner = Selection(0, 1, len(listed), listed)
            edges = listed
        self._check(edges)
        return self._view(self._selection.narrowed(inner), self._columns)

    def project(self, columns: Sequence[str]) -> Dataset:
        """Return a view of some columns, in the given order; only they are read.

        Raises:
            SchemaError: No such column.
        """
        return self._view(self._selection, self._column_numbers(columns))

    def split(self, name: str) -> Dataset:
        """Return another split of the same data set, whole.

        Raises:
            OptionError: No such split.
        """
        self.manifest.split(name)
        return self._origin.other_split(name)

    def _view(self, selection: Selection, columns: tuple[int, ...]) -> Dataset:
        return Dataset(self._reading, self.manifest, self._split, self._origin, (selection, columns))

    def _column_numbers(self, columns: Sequence[str] | None) -> tuple[int, ...]:
        if columns is None:
            return self._columns
        if isinstance(columns, str):
            raise OptionError(
                f"columns must be a list of names, not the string {columns!r}: write columns=[{columns!r}]"
            )
        mine = self.column_names
        unknown = [name for name in columns if name not in mine]
        if unknown:
            raise SchemaError(f"no column {unknown[0]!r} in {self.uri}; there are {mine}")
        if len(set(columns)) != len(columns):
            raise OptionError(f"a column stands twice in {list(columns)}")
        return tuple(self._columns[mine.index(name)] for name in columns)

    @staticmethod
    def _numbers(ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        array = np.asarray(ids)
        if array.size == 0:
            return np.empty(0, np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise OptionError(f"records are chosen by a list of integers, not by {array.dtype} of shape {array.shape}")
        return array.astype(np.int64)

    def _check(self, ids: NDArray[np.int64]) -> None:
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(self)):
            bad = int(ids[np.argmax((ids < 0) | (ids >= len(self)))])
            raise OptionError(f"record {bad:,} does not exist; allowed are [0, {len(self):,})")

    # -- records by number -------------------------------------------------------------------------

    def columns_at(self, ids: NDArray[np.int64], projection: Projection) -> dict[str, Column]:
        """Return the columns of some of the split's records; for loaders."""
        ends = np.array([len(ids)], np.int64)
        (ready,) = self._reading.submit(ids, ends, projection)
        return self._reading.deliver(ready)

    def projection(self, columns: Sequence[str] | None = None, widen: dict[str, str] | None = None) -> Projection:
        """Return what to read for some columns; for loaders.

        Args:
            columns: Names; None for all of this view.
            widen: Arrow type name -> numpy code of integers that the core widens while it reads.
        """
        tree = self._reading.tree
        numbers = self._column_numbers(columns)
        mine = {b.number for c in numbers if c not in tree.whole for b in tree.column_buffers(c)}
        rules = {b: code for b, code in widened(tree, widen or {}).items() if b in mine}
        return Projection.of(tree, numbers, rules)

    def take(self, ids: Sequence[int] | NDArray[np.integer[Any]], columns: Sequence[str] | None = None) -> pa.Table:
        """Return records as an Arrow table, row i for `ids[i]`.

        Args:
            ids: (n,) numbers in [0, len(self)), in any order, repetition allowed.
            columns: Names; None for all.

        Returns:
            n rows that own their memory. More than one chunk where 32-bit offsets demand it.

        Raises:
            OptionError: A number lies outside. CorruptData, ShardTruncated: The bytes are damaged.
        """
        numbers = self._numbers(ids)
        self._check(numbers)
        return self._table(self._selection.ids(numbers), self.projection(columns))

    def _table(self, ids: NDArray[np.int64], projection: Projection) -> pa.Table:
        try:
            return to_table(self.columns_at(ids, projection), self.manifest.schema)
        except OverflowError:
            if len(ids) < 2:
                raise
            half = len(ids) // 2
            return pa.concat_tables([self._table(ids[:half], projection), self._table(ids[half:], projection)])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Dataset:
        """Return one record as a dict, or a view for a slice. Raises IndexError."""
        if isinstance(index, slice):
            return self.select(index)
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"record {number:,} does not exist; allowed are [{-len(self):,}, {len(self):,})")
        return self.__getitems__([number % len(self)])[0]

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return records as dicts, read together: what torch's fetcher calls with a batch's indices.

        Numbers come as numpy arrays and scalars, strings and bytes as themselves, nulls as None.
        """
        numbers = self._numbers(ids)
        self._check(numbers)
        columns = self.columns_at(self._selection.ids(numbers), self.projection())
        return records_of(self.manifest.schema, numbers, columns)

    # -- batches -----------------------------------------------------------------------------------

    def batches(
        self,
        batch_size: int,
        shuffle: Shuffle = False,
        seed: int = 0,
        epoch: int = 0,
        columns: Sequence[str] | None = None,
        format: Literal["numpy", "arrow"] = "numpy",
        options: BatchOptions | None = None,
    ) -> Iterator[Any]:
        """Iterate over batches without torch, read ahead by the native core.

        Args:
            batch_size: Records a batch, at least 1.
            shuffle: True for the exact global shuffle of (seed, epoch), "blocks" for a random order in which few blocks
                of the data are in use at a time (see docs); else in order.
            seed: Any integer, taken mod 2**64.
            epoch: At least 0; each has an order of its own.
            columns: Names; None for all.
            format: "numpy" for dicts of arrays, "arrow" for tables.
            options: Layout, nulls, ids, remainder, look-ahead, blocks.

        Yields:
            A dict by column, or a pyarrow.Table. Each owns its memory.

        >>> import shufflestore as ss, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = ss.convert([{"x": i} for i in range(10)], folder + "/s")
        >>> [batch["x"].tolist() for batch in ss.open(folder + "/s").batches(4)]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        """
        chosen = options or BatchOptions()
        if format not in ("numpy", "arrow"):
            raise OptionError(
                f"format {format!r}; allowed are 'numpy' and 'arrow' (for tensors: shufflestore.DataLoader)"
            )
        usual = self.block_records if shuffle == "blocks" else None
        order = make_order(
            order_named(shuffle, chosen.block_records, chosen.open_blocks, usual), len(self), seed, epoch
        )
        remainder: Literal["drop", "uneven"] = "drop" if chosen.drop_last else "uneven"
        partition = Partition(len(self), batch_size, Topology(0, 1), remainder, 0)
        projection = self.projection(columns)
        finish = assembler(
            self.manifest.schema, projection.names, "arrow" if format == "arrow" else "arrays", chosen.layout,
            chosen.fill_nulls, with_ids=chosen.return_ids,
        )  # fmt: skip
        plan = planned(partition, order, self._selection)
        return Stream(self._reading, projection, plan, finish, chosen.prefetch_bytes)

    # -- life --------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all reads and release all files, of this and of every view. Idempotent."""
        self._reading.store.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as a path and a view, never as data."""
        return _reopened, (
            self._origin.reopen,
            self._origin.arguments,
            self.manifest.digest,
            self._selection,
            self._columns,
        )


def _reopened(
    reopen: Callable[..., Dataset],
    arguments: tuple[Any, ...],
    digest: str,
    selection: Selection,
    columns: tuple[int, ...],
) -> Dataset:
    fresh = reopen(*arguments)
    if fresh.manifest.digest != digest:
        raise ShuffleStoreError(f"{fresh.uri} changed between two processes; open it again")
    return fresh._view(selection, columns)
