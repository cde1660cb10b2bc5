"""Gathered bytes to columns, in batch order: offsets from 0, zeros under nulls, every count checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.errors import CorruptData
from shufflestore.format.resolve import ALL_VALID, Located, Placed, Wanted
from shufflestore.format.schema import ROW, Node, Role

__all__ = ["Column", "Gathered", "decode_column", "numpy_type"]

_INT32_LIMIT: Final = 2**31 - 1


@dataclass(eq=False)  # not frozen: made for every batch, and a frozen one costs as much again
class Gathered:
    """One batch of a window: what was asked for, and the bytes that came."""

    wanted: Wanted
    located: Located
    placed: Placed
    batch: int
    first: int
    """The batch's records are rows [first, last) of `located`."""
    last: int
    outputs: list[NDArray[np.uint8]]

    @property
    def length(self) -> int:
        """Records in the batch."""
        return self.last - self.first


@dataclass(eq=False, slots=True)  # not frozen: several are made for every batch
class Column:
    """One column of a batch, or what lies inside it, laid out as Arrow lays it out.

    Arrays are views into buffers that belong to this batch alone.
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
            buffers = [valid, pa.py_buffer(np.ascontiguousarray(self.values))]
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


def decode_column(column: int, batch: Gathered, wide: dict[int, str]) -> Column:
    """Return one column of a batch from the bytes that were read for it.

    Args:
        column: Number in the data set's schema; not one that is read whole.
        batch: The batch and its bytes.
        wide: Buffers that the core widened: buffer -> numpy code of what it made.

    Raises:
        CorruptData: Inner offsets disagree with the row index; where the CRC of the offsets was
            right, the writer was wrong.
    """
    return _Decoder(batch, wide).top(batch.wanted.tops[column])


class _Decoder:
    def __init__(self, batch: Gathered, wide: dict[int, str]) -> None:
        self.batch = batch
        self.wide = wide
        self.rows = slice(batch.first, batch.last)

    def top(self, node: Node) -> Column:
        return self.node(node, None, self.batch.last - self.batch.first)

    def node(self, node: Node, per_record: NDArray[np.int64] | None, total: int) -> Column:
        """Decode a node.

        Args:
            node: At any depth.
            per_record: (records,) entries of each record; None for one each.
            total: Entries in all.
        """
        wanted, type_ = self.batch.wanted, node.type
        valid = None if node.validity < 0 else self.validity(node, per_record, total)
        if node.opens != ROW:
            inner = self.batch.located.counts[self.rows, wanted.level_of[node.opens]]
            offsets = self.offsets(node, inner, per_record, total)
            if not node.children:
                return Column(type_, total, valid, offsets, self.region(node.data + 1))
            child = self.node(self.tree_node(node.children[0]), inner, int(offsets[-1]))
            return Column(type_, total, valid, offsets, None, (child,))
        if pt.is_fixed_size_list(type_):
            size = type_.list_size
            # One entry a record is as good as the record itself: such a list of one stands at row depth.
            entries = (
                None
                if per_record is None and size == 1
                else (np.full(total, size) if per_record is None else per_record * size)
            )
            child = self.node(self.tree_node(node.children[0]), entries, total * size)
            return Column(type_, total, valid, None, None, (child,))
        if pt.is_struct(type_):
            inner_columns = tuple(self.node(self.tree_node(i), per_record, total) for i in node.children)
            return Column(type_, total, valid, None, None, inner_columns)
        if pt.is_null(type_):
            return Column(type_, total)
        return Column(type_, total, valid, None, self.fixed(node, per_record, total))

    def tree_node(self, number: int) -> Node:
        return self.batch.wanted.tree.nodes[number]

    def region(self, buffer: int) -> NDArray[np.uint8]:
        """All bytes of a buffer, record after record."""
        wanted = self.batch.wanted
        place = wanted.read_of[buffer]
        start, size = self.batch.placed.places[self.batch.batch][place]
        return self.batch.outputs[wanted.output_of[place]][start : start + size]

    # -- validity and bits -------------------------------------------------------------------------

    def validity(self, node: Node, per_record: NDArray[np.int64] | None, total: int) -> NDArray[np.bool_] | None:
        wanted, located = self.batch.wanted, self.batch.located
        if per_record is None:
            if located.all_set[wanted.bit_of[node.validity]]:
                return None
        elif located.all_valid[wanted.read_of[node.validity]]:
            return None
        valid = self.bit_values(node.validity, per_record, total)
        return None if valid.all() else valid

    def bit_values(self, buffer: int, per_record: NDArray[np.int64] | None, total: int) -> NDArray[np.bool_]:
        wanted, located = self.batch.wanted, self.batch.located
        if per_record is None:
            return located.bits[self.rows, wanted.bit_of[buffer]].astype(bool)
        place = wanted.read_of[buffer]
        shift = located.shift[self.rows, place]
        sizes = np.where(shift == ALL_VALID, 0, located.slot[self.rows, place]).astype(np.int64)
        data = self.region(buffer)
        first = np.cumsum(sizes) - sizes
        # Entry j of a record is bit shift + j counted from its slot's first byte.
        start = np.repeat(first * 8 + np.where(shift == ALL_VALID, 0, shift) - _before(per_record), per_record)
        bit = start + np.arange(total)
        if not len(data):
            return np.ones(total, bool)
        absent = np.repeat(shift == ALL_VALID, per_record)
        bit = np.where(absent, 0, bit)
        return np.asarray(absent | ((data[bit >> 3] >> (bit & 7).astype(np.uint8)) & 1).astype(bool))

    # -- offsets -----------------------------------------------------------------------------------

    def offsets(
        self, node: Node, inner: NDArray[np.int64], per_record: NDArray[np.int64] | None, total: int
    ) -> NDArray[np.int64]:
        out = np.empty(total + 1, np.int64)
        out[0] = 0
        if per_record is None:
            inner.cumsum(out=out[1:])
            return out
        buffer = self.batch.wanted.tree.buffers[node.data]
        stored = self.region(node.data).view(f"<i{buffer.width}").astype(np.int64)
        if total == 0:
            return out
        # k + 1 entries for a record of k > 0; drop the difference between one record's last and the next's first.
        entries = np.where(per_record > 0, per_record + 1, 0)
        if len(stored) != int(entries.sum()):
            raise CorruptData(f"column {node.name!r}: {len(stored)} offsets came, {int(entries.sum())} were due")
        steps = np.diff(stored)
        ends = np.cumsum(entries[entries > 0])[:-1] - 1
        lengths = np.delete(steps, ends)
        np.cumsum(lengths, out=out[1:])
        sums = out[_before(per_record) + per_record] - out[_before(per_record)]
        if (lengths < 0).any() or not np.array_equal(sums, inner):
            raise CorruptData(
                f"column {node.name!r}: offsets inside a record disagree with the row index; "
                "run `shufflestore verify`, then index or convert again"
            )
        return out

    # -- values ------------------------------------------------------------------------------------

    def fixed(self, node: Node, per_record: NDArray[np.int64] | None, total: int) -> NDArray[Any]:
        wanted = self.batch.wanted
        buffer = wanted.tree.buffers[node.data]
        if buffer.role == Role.BITS:
            return self.bit_values(node.data, per_record, total)
        copied = wanted.copied.get(node.data)
        if copied is not None:
            place, width = copied
            raw = self.batch.located.fixed[self.rows, place : place + width].copy()
            if not self.batch.located.is_all_set:
                self.blank(node, raw)
        else:
            raw, width = self.region(node.data), buffer.width
        if copied is None and node.data in self.wide:
            wide: NDArray[Any] = raw.view(self.wide[node.data])
            return wide
        kind = numpy_type(node.type)
        values: NDArray[Any] = raw.reshape(total, width) if kind is None else raw.view(kind).reshape(total)
        return values

    def blank(self, node: Node, raw: NDArray[np.uint8]) -> None:
        """Put zeros under nulls, here or above: what Arrow keeps there is nobody's business."""
        wanted = self.batch.wanted
        for above in wanted.tree.ancestors(node.number):
            bit = wanted.bit_of.get(above.validity)
            if bit is not None:
                valid = self.batch.located.bits[self.rows, bit]
                raw[valid == 0] = 0


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many stand before each: the exclusive running sum."""
    made: NDArray[np.int64] = np.cumsum(counts) - counts
    return made
