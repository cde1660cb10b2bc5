"""Gathered bytes to columns, in batch order: offsets from 0, zeros under nulls, every count checked.

What to do for a column follows from its type, so it is settled once a projection: `decoder_for` walks
the tree and returns a function; a batch then costs no look-up of types, buffers or places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.errors import CorruptData
from shufflestore.format.resolve import ALL_VALID, Resolved, Wanted
from shufflestore.format.schema import ROW, Node, Role

__all__ = ["Column", "Decode", "Gathered", "decoder_for", "numpy_type"]

_INT32_LIMIT: Final = 2**31 - 1


@dataclass(eq=False, slots=True)  # not frozen: made for every batch, and a frozen one costs as much again
class Gathered:
    """One batch of a window: where its bytes were put, and the bytes."""

    window: Resolved
    batch: int
    """Its number in the window."""
    first: int
    """The batch's records are [first, last) of the window's."""
    last: int
    outputs: list[NDArray[np.uint8]]


@dataclass(eq=False, slots=True)  # not frozen: several are made for every batch
class Column:
    """One column of a batch, or what lies inside it, laid out as Arrow lays it out.

    Arrays are views into memory whose bytes belong to this batch alone; they may be written to.
    """

    type: pa.DataType
    length: int
    valid: NDArray[np.bool_] | None = None
    """(length,) False where null; None where nothing is."""
    offsets: NDArray[np.int64] | None = None
    """(length + 1,) from 0: of lists and strings."""
    values: NDArray[Any] | None = None
    """Numbers (length,), bytes of strings (offsets[-1],), fixed binary (length, width) uint8."""
    children: tuple[Column, ...] = ()
    arrow: pa.Array | None = None
    """The column itself where it was read whole; then nothing else is set but type and length."""

    def to_arrow(self) -> pa.Array:
        """Return the column as an Arrow array that shares its memory.

        Raises:
            OverflowError: Offsets of a 32-bit type pass 2^31 - 1; ask for fewer records.
        """
        if self.arrow is not None:
            return self.arrow
        buffers: list[pa.Buffer | None] = []
        type_ = self.type
        valid = None if self.valid is None else pa.py_buffer(np.packbits(self.valid, bitorder="little"))
        nulls = 0 if self.valid is None else int(self.length - np.count_nonzero(self.valid))
        if pt.is_null(type_):
            return pa.nulls(self.length)
        if self.offsets is not None:
            buffers = [valid, pa.py_buffer(_narrowed(self.offsets, type_))]
            if self.values is not None:
                buffers.append(pa.py_buffer(self.values))
        elif self.values is None:
            buffers = [valid]
        elif pt.is_boolean(type_):
            buffers = [valid, pa.py_buffer(np.packbits(self.values, bitorder="little"))]
        else:
            kind = numpy_type(type_)  # another than that of the values where the core widened them
            stored = self.values if kind is None else self.values.astype(kind, copy=False)
            buffers = [valid, pa.py_buffer(np.ascontiguousarray(stored))]
        children = [child.to_arrow() for child in self.children]
        return pa.Array.from_buffers(type_, self.length, buffers, nulls, children=children or None)


def _narrowed(offsets: NDArray[np.int64], type_: pa.DataType) -> NDArray[np.int32] | NDArray[np.int64]:
    if pt.is_large_list(type_) or pt.is_large_string(type_) or pt.is_large_binary(type_):
        return offsets
    if offsets[-1] > _INT32_LIMIT:
        raise OverflowError(f"{offsets[-1]:,} elements pass the 32-bit offsets of {type_}")
    return offsets.astype(np.int32)


@lru_cache(maxsize=256)
def numpy_type(type_: pa.DataType) -> np.dtype[Any] | None:
    """Return the numpy type of a fixed-width Arrow type, None for those that numpy has no numbers for."""
    if pt.is_boolean(type_):
        return np.dtype(bool)
    if pt.is_integer(type_) or pt.is_floating(type_) or pt.is_date(type_) or pt.is_timestamp(type_):
        if pt.is_date32(type_):
            return np.dtype("<i4")
        return np.dtype(f"<i{type_.bit_width // 8}") if pt.is_temporal(type_) else np.dtype(type_.to_pandas_dtype())
    if pt.is_time(type_) or pt.is_duration(type_):
        return np.dtype(f"<i{type_.bit_width // 8}")
    return None


Decode = Callable[[Gathered, int], Column]
"""decode(batch, records) -> a column; of what lies inside one, entries in all instead of records."""
_Valid = Callable[[Gathered, int], "NDArray[np.bool_] | None"]
_Bits = Callable[[Gathered, int], "NDArray[np.bool_]"]
_Values = Callable[[Gathered, int], NDArray[Any]]


def decoder_for(wanted: Wanted, column: int, wide: dict[int, str]) -> Decode:
    """Return what makes one column of any batch from the bytes that were read for it.

    Args:
        wanted: The projection.
        column: Number in the data set's schema; not one that is read whole.
        wide: Buffers that the core widened: buffer -> numpy code of what it made.

    Returns:
        decode(batch, records). Raises CorruptData where inner offsets disagree with the row index:
        where the CRC of the offsets was right, the writer was wrong.
    """
    return _Compiler(wanted, wide).node(wanted.tree.top(column), None)


@dataclass(frozen=True)
class _Depth:
    """How many entries each record has below row depth: elements of a level, times what fixed sizes multiply."""

    level: int
    """Place among the levels; -1 for one each."""
    factor: int

    def per_record(self, batch: Gathered) -> NDArray[np.int64]:
        """Return (records,) entries."""
        if self.level < 0:
            return np.full(batch.last - batch.first, self.factor)
        counts = batch.window.counts[self.level, batch.first : batch.last]
        return counts if self.factor == 1 else counts * self.factor


class _Compiler:
    """Walks a column's tree once. A node's depth is None at row depth: one entry a record."""

    def __init__(self, wanted: Wanted, wide: dict[int, str]) -> None:
        self.wanted = wanted
        self.wide = wide

    def node(self, node: Node, depth: _Depth | None) -> Decode:
        type_, valid = node.type, self.validity(node, depth)
        if node.opens != ROW:
            return self.variable(node, depth, valid)
        if pt.is_fixed_size_list(type_):
            return self.fixed_list(node, depth, valid)
        if pt.is_struct(type_):
            inner = [self.node(self.wanted.tree.nodes[i], depth) for i in node.children]

            def struct(batch: Gathered, total: int) -> Column:
                made = tuple(decode(batch, total) for decode in inner)
                return Column(type_, total, valid(batch, total), None, None, made)

            return struct
        if pt.is_null(type_):
            return lambda _batch, total: Column(type_, total)
        values = self.values(node, depth)
        return lambda batch, total: Column(type_, total, valid(batch, total), None, values(batch, total))

    # -- lists and strings -------------------------------------------------------------------------

    def variable(self, node: Node, depth: _Depth | None, valid: _Valid) -> Decode:
        type_, ends = node.type, self.ends(node, depth)
        if not node.children:
            data = self.region(node.data + 1, np.dtype(np.uint8))
            return lambda batch, total: Column(
                type_, total, valid(batch, total), ends(batch, total), data(batch, total)
            )
        child = self.node(self.wanted.tree.nodes[node.children[0]], _Depth(self.wanted.level_of[node.opens], 1))

        def list_(batch: Gathered, total: int) -> Column:
            offsets = ends(batch, total)
            elements = child(batch, offsets.item(-1))
            return Column(type_, total, valid(batch, total), offsets, None, (elements,))

        return list_

    def ends(self, node: Node, depth: _Depth | None) -> _Values:
        """Offsets from 0."""
        level = self.wanted.level_of[node.opens]
        if depth is None:

            def of_records(batch: Gathered, _total: int) -> NDArray[np.int64]:
                # A window's offsets have one entry more for each batch.
                return batch.window.offset_rows[level][batch.first + batch.batch : batch.last + batch.batch + 1]

            return of_records
        stored = self.region(node.data, np.dtype(f"<i{self.wanted.tree.buffers[node.data].width}"))

        def of_entries(batch: Gathered, total: int) -> NDArray[np.int64]:
            inner = batch.window.counts[level, batch.first : batch.last]
            return _rebased(node.name, stored(batch, total), inner, depth.per_record(batch), total)

        return of_entries

    def fixed_list(self, node: Node, depth: _Depth | None, valid: _Valid) -> Decode:
        type_, size = node.type, node.type.list_size
        # One entry a record is as good as the record itself: such a list of one stands at row depth.
        outer = depth or _Depth(-1, 1)
        inner = None if depth is None and size == 1 else _Depth(outer.level, outer.factor * size)
        child = self.node(self.wanted.tree.nodes[node.children[0]], inner)
        return lambda batch, total: Column(type_, total, valid(batch, total), None, None, (child(batch, total * size),))

    # -- bits --------------------------------------------------------------------------------------

    def validity(self, node: Node, depth: _Depth | None) -> _Valid:
        if node.validity < 0:
            return lambda _batch, _total: None
        bits, wanted = self.bits(node.validity, depth), self.wanted
        is_row = depth is None
        place = wanted.bit_of[node.validity] if is_row else wanted.bit_range_of[node.validity]

        def valid(batch: Gathered, total: int) -> NDArray[np.bool_] | None:
            window = batch.window
            if (window.all_set if is_row else window.all_valid)[place]:
                return None
            found = bits(batch, total)
            return None if found.all() else found

        return valid

    def bits(self, buffer: int, depth: _Depth | None) -> _Bits:
        wanted = self.wanted
        if depth is None:
            bit = wanted.bit_of[buffer]
            return lambda batch, _total: batch.window.bits[bit, batch.first : batch.last].view(np.bool_)
        place, region = wanted.bit_range_of[buffer], self.region(buffer, np.dtype(np.uint8))

        def of_entries(batch: Gathered, total: int) -> NDArray[np.bool_]:
            shift = batch.window.shift[place, batch.first : batch.last]
            return _unpacked(region(batch, total), shift, depth.per_record(batch), total)

        return of_entries

    # -- numbers -----------------------------------------------------------------------------------

    def region(self, buffer: int, kind: np.dtype[Any]) -> _Values:
        """A buffer, record after record."""
        place = self.wanted.read_of[buffer]
        output = self.wanted.output_of[place]

        def region(batch: Gathered, _total: int) -> NDArray[Any]:
            start, size = batch.window.places[batch.batch][place]
            return batch.outputs[output][start : start + size].view(kind)

        return region

    def values(self, node: Node, depth: _Depth | None) -> _Values:
        wanted, number = self.wanted, node.data
        buffer = wanted.tree.buffers[number]
        if buffer.role == Role.BITS:
            return self.bits(number, depth)
        kind, width = numpy_type(node.type), buffer.width
        if number in wanted.copied:
            at, _ = wanted.copied[number]
            around = wanted.tree.ancestors(node.number)
            above = [wanted.bit_of[n.validity] for n in around if n.validity in wanted.bit_of]
            return lambda batch, _total: batch.window.copied(at, width, kind, above)[batch.first : batch.last]
        if number in self.wide:
            return self.region(number, np.dtype(self.wide[number]))
        if kind is not None:
            return self.region(number, kind)
        plain = self.region(number, np.dtype(np.uint8))
        return lambda batch, total: plain(batch, total).reshape(total, width)


def _unpacked(
    data: NDArray[np.uint8], shift: NDArray[np.uint8], per_record: NDArray[np.int64], total: int
) -> NDArray[np.bool_]:
    """Return the bits of bit ranges that each begin within a byte of their own."""
    if not len(data):
        return np.ones(total, bool)
    has_none = shift == ALL_VALID
    first = np.where(has_none, 0, shift).astype(np.int64)
    sizes = np.where(has_none | (per_record == 0), 0, (first + per_record + 7) // 8)
    # Entry j of a record is bit shift + j counted from its slot's first byte.
    start = np.repeat(_before(sizes) * 8 + first - _before(per_record), per_record)
    absent = np.repeat(has_none, per_record)
    bit = np.where(absent, 0, start + np.arange(total))
    return np.asarray(absent | ((data[bit >> 3] >> (bit & 7).astype(np.uint8)) & 1).astype(bool))


def _rebased(
    name: str, stored: NDArray[Any], inner: NDArray[np.int64], per_record: NDArray[np.int64], total: int
) -> NDArray[np.int64]:
    """Return offsets from 0 of lists below row depth, from the k + 1 that were read for each record of k > 0."""
    out = np.zeros(total + 1, np.int64)
    if total == 0:
        return out
    # Drop the difference between one record's last and the next one's first.
    entries = np.where(per_record > 0, per_record + 1, 0)
    if len(stored) != int(entries.sum()):
        raise CorruptData(f"column {name!r}: {len(stored)} offsets came, {int(entries.sum())} were due")
    ends = np.cumsum(entries[entries > 0])[:-1] - 1
    lengths = np.delete(np.diff(stored.astype(np.int64)), ends)
    np.cumsum(lengths, out=out[1:])
    sums = out[_before(per_record) + per_record] - out[_before(per_record)]
    if (lengths < 0).any() or not np.array_equal(sums, inner):
        raise CorruptData(
            f"column {name!r}: offsets inside a record disagree with the row index; "
            "run `shufflestore verify`, then index or convert again"
        )
    return out


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many stand before each: the exclusive running sum."""
    made: NDArray[np.int64] = np.cumsum(counts) - counts
    return made
