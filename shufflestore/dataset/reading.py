"""Ids to batches of columns: windows are resolved here and read by the store behind our back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.dataset.fetch import Extent, explain, fetch, wait
from shufflestore.dataset.residency import RowIndexes
from shufflestore.errors import CorruptData, ShuffleStoreError, UnsupportedFeature
from shufflestore.format.decode import Column, Decode, Gathered, decoder_for
from shufflestore.format.rebuild import Part, delivered_type, dictionary_fields, integer_array, rebuild_column
from shufflestore.format.resolve import Wanted, wanted_for
from shufflestore.format.schema import Tree
from shufflestore.storage.base import READ, WIDEN, Flow, Pending, ReadFailure
from shufflestore.storage.memory import Budget
from shufflestore.storage.process import briefly

__all__ = ["Projection", "Reading", "Ready"]

_DECOMPRESSED_LIMIT: Final = 4 << 30
"""A compressed column of one chunk may not claim to unpack to more."""


def widening(stored: str, delivered: str) -> int:
    """Return the op of reads that widen integers, by their numpy codes."""
    return WIDEN[stored, delivered]


@dataclass(frozen=True, eq=False)
class Projection:
    """The columns that are delivered and how wide their integers are."""

    columns: tuple[int, ...]
    names: tuple[str, ...]
    wanted: Wanted
    plan: tuple[tuple[int, str, Decode | None], ...]
    """Number, name and decoder of each column; those read whole have none."""

    @classmethod
    def of(cls, tree: Tree, columns: tuple[int, ...], wide: dict[int, str]) -> Projection:
        """Return the projection of some columns, integers in `wide` widened by the core.

        Args:
            tree: Of the data set's schema.
            columns: Numbers in the schema, in the order of delivery.
            wide: Buffer -> numpy code, from `format.resolve.widened`.
        """
        names = tuple(tree.schema.field(column).name for column in columns)
        wanted = wanted_for(tree, columns, tuple(sorted(wide.items())), widening)
        decoders = {column: decoder_for(wanted, column, wide) for column in wanted.columns}
        plan = tuple((column, name, decoders.get(column)) for column, name in zip(columns, names, strict=True))
        return cls(columns, names, wanted, plan)


@dataclass(eq=False, slots=True)  # not frozen: made for every batch
class Ready:
    """One batch whose reads were submitted."""

    ids: NDArray[np.int64]
    projection: Projection
    gathered: Gathered
    """Without its outputs until it is delivered."""
    pending: Pending


class Reading:
    """Reads records of one split of one snapshot."""

    def __init__(self, indexes: RowIndexes, verify: bool, budget: Budget) -> None:
        self.indexes = indexes
        self.budget = budget
        _native.bound_block_cache(budget.blocks)
        self.store = indexes.store
        self.tree = indexes.tree
        self.verify = verify
        self._whole: OrderedDict[tuple[int, int, int], pa.Array] = OrderedDict()
        self._whole_bytes = 0
        self._dictionaries: dict[tuple[int, int], list[tuple[int, int, bool, Part, bytes]]] = {}

    def submit(
        self, ids: NDArray[np.int64], ends: NDArray[np.int64], projection: Projection, flow: Flow = None
    ) -> list[Ready]:
        """Start reading several batches and return at once.

        Args:
            ids: (n,) record numbers within the split, each in [0, len).
            ends: (b,) batch i has ids [ends[i - 1], ends[i]).
            projection: What to deliver.
            flow: See `storage.base.Store.flow`; None for batches that start at once.

        Returns:
            One Ready a batch, to be given to `deliver`: in any order where there is no flow.
        """
        window = self.indexes.resolve(ids, ends, projection.wanted, self.verify)
        pendings = self.store.submit(window.reads.view(READ).reshape(-1), window.ends, window.output_sizes, flow)
        made, first = [], 0
        for i, (last, pending) in enumerate(zip(ends.tolist(), pendings, strict=True)):
            made.append(Ready(ids[first:last], projection, Gathered(window, i, first, last, []), pending))
            first = last
        return made

    def deliver(self, ready: Ready) -> dict[str, Column]:
        """Wait for a batch and return its columns by name.

        Raises:
            CorruptData, ShardTruncated, NotFound, StorageError: Naming shard, record and bytes.
        """
        gathered, projection = ready.gathered, ready.projection
        gathered.outputs = self._take(ready)
        count, whole_columns, made = len(ready.ids), self.indexes.whole_columns, {}
        for column, name, decode in projection.plan:
            if column in whole_columns and (whole := self._whole_shards(column, ready)) is not None:
                made[name] = self._mixed(column, ready, whole)
            else:
                assert decode is not None, "a column without a decoder is read whole"
                made[name] = decode(gathered, count)
        return made

    def _take(self, ready: Ready) -> list[NDArray[np.uint8]]:
        pending = ready.pending
        wait(pending)
        try:
            return pending.take()
        except ValueError:
            failure = pending.failure()
            if failure is None:
                raise
        raise self._explain(failure, ready)

    # -- errors ------------------------------------------------------------------------------------

    def _explain(self, failure: ReadFailure, ready: Ready) -> ShuffleStoreError:
        gathered = ready.gathered
        window = gathered.window
        first = int(window.ends[gathered.batch - 1]) if gathered.batch else 0
        read = window.reads.view(READ).reshape(-1)[first + failure.index]
        record = int(read["reserved"])
        number = int(ready.ids[record - gathered.first])
        shard = int(self.indexes.find(np.array([number])).shard[0])
        row = number - int(self.indexes.first_id[shard])
        wanted = ready.projection.wanted
        # Which buffer: the one in whose region of the output the slot lies.
        mine = [
            wanted.reads[i]
            for i, (start, size) in enumerate(window.places[gathered.batch])
            if wanted.output_of[i] == read["output"] and start <= read["slot"] < start + size
        ]
        what = f"record {number:,} (row {row:,} of the shard), column {self.tree.nodes[mine[0].node].name!r}"
        name = self.indexes.shards.name("data", shard)
        return explain(failure, self.store.uri, name, what, int(read["offset"]), int(read["size"]))

    # -- columns that are read whole ---------------------------------------------------------------

    def _whole_shards(self, column: int, ready: Ready) -> NDArray[np.bool_] | None:
        """Which records of a batch lie in shards that hold the column whole; None if none does."""
        if column in self.tree.whole:
            return np.ones(len(ready.ids), bool)
        headers = self.indexes.headers
        shards = self.indexes.find(ready.ids).shard.tolist()
        whole = np.array([column in headers[s].layout.tree.whole for s in shards], bool)
        return whole if whole.any() else None

    def _mixed(self, column: int, ready: Ready, whole: NDArray[np.bool_]) -> Column:
        """A column of which some records at least come from chunks that are read whole."""
        field = self.tree.schema.field(column)
        type_ = delivered_type(field.type)
        places = self.indexes.find(ready.ids)
        shard, chunk, row = places.shard, places.chunk, places.row
        pieces: list[pa.Array] = []
        order: list[NDArray[np.int64]] = []
        where = np.flatnonzero(whole)
        # One number for both, far below 2^63. As rows or fields numpy would compare them in Python code, where it
        # makes a TypeError of a KeyboardInterrupt.
        above = int(chunk.max(initial=0)) + 1
        distinct, which = np.unique(shard[where] * above + chunk[where], return_inverse=True)
        arrays = self._chunks(column, [divmod(key, above) for key in distinct.tolist()])
        for i, array in enumerate(arrays):
            mine = where[which == i]
            pieces.append(array.take(integer_array(row[mine])))
            order.append(mine)
        if not whole.all():
            rest = np.flatnonzero(~whole)
            (decode,) = [d for number, _, d in ready.projection.plan if number == column]
            assert decode is not None, "some shards do not hold it whole"
            spans = decode(ready.gathered, len(whole)).to_arrow()
            pieces.append(spans.take(integer_array(rest)))
            order.append(rest)
        joined = (
            pa.concat_arrays([p.cast(type_) if p.type != type_ else p for p in pieces])
            if pieces
            else pa.nulls(0, type_)
        )
        back = np.argsort(np.concatenate(order)) if order else np.empty(0, np.int64)
        return Column(type_, len(joined), arrow=joined.take(integer_array(back)))

    def _chunks(self, column: int, keys: Sequence[tuple[int, int]]) -> list[pa.Array]:
        """Decoded columns of chunks, from the cache or read together."""
        held = [self._whole.get((*key, column)) for key in keys]
        missing = [key for key, array in zip(keys, held, strict=True) if array is None]
        parts = [self._part(column, shard, chunk) for shard, chunk in missing]
        extents = []
        for (shard, chunk), part in zip(missing, parts, strict=True):
            name, size = self.indexes.shards.name("data", shard), int(self.indexes.data_bytes[shard])
            what = f"column {self.tree.schema.field(column).name!r} of chunk {chunk}"
            extents.append(Extent(name, size, part.offset, part.size, what, part.crc if self.verify else None))
        fresh: dict[tuple[int, int], pa.Array] = {}
        for key, part, data in zip(missing, parts, fetch(self.store, extents), strict=True):
            dictionaries = [d[1:] for d in self._dictionaries_of(column, key[0]) if d[0] <= key[1]]
            field = self.indexes.headers[key[0]].layout.tree.stored.field(column)
            try:
                rows = self.indexes.table(key[0]).rows(key[1])
                fresh[key] = rebuild_column(field, rows, part, data.tobytes(), self._in_force(dictionaries))
            except CorruptData as cause:
                name = self.indexes.shards.name("data", key[0])
                raise CorruptData(f"{self.store.uri}: {name}: chunk {key[1]}: {cause}") from cause
        with briefly:
            for key, array in fresh.items():
                self._keep((*key, column), array)
        return [fresh[key] if array is None else array for key, array in zip(keys, held, strict=True)]

    def _keep(self, key: tuple[int, int, int], array: pa.Array) -> None:
        if key in self._whole:
            return  # another thread was quicker
        self._whole[key] = array
        self._whole_bytes += array.nbytes
        while self._whole_bytes > self.budget.whole and self._whole:
            _, dropped = self._whole.popitem(last=False)
            self._whole_bytes -= dropped.nbytes

    def _part(self, column: int, shard: int, chunk: int) -> Part:
        return self._parsed(self.indexes.table(shard).whole["columns"][str(column)][chunk], shard)

    def _parsed(self, described: Any, shard: int) -> Part:
        """A part of the chunk table's, checked; errors name the row index that it stands in."""
        try:
            return self._checked(Part.parse(described, int(self.indexes.data_bytes[shard])), shard)
        except CorruptData as cause:
            raise CorruptData(f"{self.store.uri}: {self.indexes.shards.name('index', shard)}: {cause}") from cause

    def _checked(self, part: Part, shard: int) -> Part:
        if part.size > _DECOMPRESSED_LIMIT:
            raise UnsupportedFeature(
                f"{self.store.uri}: {self.indexes.shards.name('data', shard)}: one column of a chunk takes "
                f"{part.size:,} bytes and must be read whole; convert the data with smaller chunks"
            )
        return part

    def _dictionaries_of(self, column: int, shard: int) -> list[tuple[int, int, bool, Part, bytes]]:
        """(first chunk, place, is a delta, layout, bytes) of a column's dictionaries in a shard."""
        key = (column, shard)
        if key not in self._dictionaries:
            whole = self.indexes.table(shard).whole
            counts = [len(dictionary_fields(f.type)) for f in self.tree.schema]
            before = sum(counts[:column])
            ids = whole["ids"][before : before + counts[column]]
            size = int(self.indexes.data_bytes[shard])
            listed: list[dict[str, Any]] = [d for d in whole["dictionaries"] if d["id"] in ids]
            parts = [self._parsed(d, shard) for d in listed]
            name = self.indexes.shards.name("data", shard)
            extents = [
                Extent(name, size, p.offset, p.size, "a dictionary", p.crc if self.verify else None) for p in parts
            ]
            self._dictionaries[key] = [
                (int(d["before"]), ids.index(d["id"]), bool(d["delta"]), part, data.tobytes())
                for d, part, data in zip(listed, parts, fetch(self.store, extents), strict=True)
            ]
        return self._dictionaries[key]

    @staticmethod
    def _in_force(
        dictionaries: Sequence[tuple[int, bool, Part, bytes]],
    ) -> list[tuple[int, bool, Part, bytes]]:
        """Those not replaced by a later one: a stream may give a dictionary anew."""
        kept: list[tuple[int, bool, Part, bytes]] = []
        for entry in dictionaries:
            if not entry[1]:
                kept = [k for k in kept if k[0] != entry[0]]
            kept.append(entry)
        return kept
