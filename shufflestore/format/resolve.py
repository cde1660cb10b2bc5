"""Rows to reads: where in the shard a batch's bytes are, and where in the batch they go.

A pure step: `resolve` asks the pages of the row index for each record's ranges, and gives every
range its slot in the outputs of its batch. It runs in the native core; the same step in plain
Python, for reference, stands in `tests/naive/resolve.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.format.layout import PAGE_HEAD, Layout, layout_of
from shufflestore.format.schema import ROW, Buffer, Role, Tree, integer_code
from shufflestore.lazy import lazy

__all__ = [
    "ALL_VALID",
    "PAGE_MISSING",
    "RESOLVED",
    "Resolved",
    "SHARD_MISSING",
    "Wanted",
    "program_for",
    "resolve",
    "wanted_for",
    "widened",
]

COPY: Final = 0
"""The op of reads whose bytes are delivered as they are stored."""
ALL_VALID: Final = 255
"""Shift of a bit range that the shard does not have: every bit is one, and nothing is read."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a projection delivers, whatever shard it comes from."""

    tree: Tree
    columns: tuple[int, ...]
    """Columns of the data set's schema, those read whole left out."""
    reads: tuple[Buffer, ...]
    """Every buffer that some shard may have to read."""
    levels: tuple[int, ...]
    """Levels whose element counts are needed, in preorder."""
    bits: tuple[int, ...]
    """Buffers of one bit a record: validity and bools at row depth."""
    copied: dict[int, tuple[int, int]]
    """Buffer -> (byte, width) in the records' fixed bytes."""
    fixed_bytes: int
    outputs: dict[int, int]
    """Column -> which output of the batch holds its regions; a column with none to read has none."""
    lay: NDArray[np.int64]
    """(reads, 2) output, row among the bit ranges or -1."""
    wide: dict[int, str]
    """Buffer -> numpy code of integers that are delivered wider than their type."""
    op_of: Callable[[str, str], int]
    """op_of(stored, delivered): the op of reads that widen integers, by their numpy codes."""

    @lazy
    def read_of(self) -> dict[int, int]:
        """Buffer -> its place among the reads."""
        return {buffer.number: i for i, buffer in enumerate(self.reads)}

    @lazy
    def bit_of(self) -> dict[int, int]:
        """Buffer -> its place among the bits."""
        return {buffer: i for i, buffer in enumerate(self.bits)}

    @lazy
    def level_of(self) -> dict[int, int]:
        """Level -> its place among the levels."""
        return {level: i for i, level in enumerate(self.levels)}

    @lazy
    def bit_range_of(self) -> dict[int, int]:
        """Buffer of bits below row depth -> its place among the bit ranges."""
        return {b.number: row for b, row in zip(self.reads, self.lay[:, 1].tolist(), strict=True) if row >= 0}

    @lazy
    def output_of(self) -> list[int]:
        """For each read, its output."""
        made: list[int] = self.lay[:, 0].tolist()
        return made


@dataclass(eq=False)  # not frozen: made for every window
class Resolved:
    """Reads of the batches of a window, each with its slot, and all that is known of the batches without reading."""

    ends: NDArray[np.uint64]
    """(batches,) reads of batch i end here."""
    output_sizes: NDArray[np.uint64]
    """(batches, outputs) bytes."""
    regions: NDArray[np.int64]
    """(batches, reads, 2) first byte and bytes of each buffer's region in its output."""
    counts: NDArray[np.int64]
    """(levels, n) elements of each record."""
    offsets: NDArray[np.int64]
    """(levels, n + batches) elements before each record in its batch; each batch begins with 0 and ends with all."""
    bits: NDArray[np.uint8]
    """(bits, n) 0 or 1."""
    shift: NDArray[np.uint8]
    """(bit ranges, n) first bit within the first byte, or ALL_VALID."""
    fixed: NDArray[np.uint8]
    """Copied values, value after value; of the one at byte b of a record's the first stands at b * (n, rounded up to 8)."""
    reads: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 5), np.uint64))
    """(m, 5) the words of `storage.base.READ`; "reserved" holds the record's place in the window."""

    @classmethod
    def empty(cls, count: int, batches: int, wanted: Wanted) -> Resolved:
        """Return arrays for `count` records, not yet filled."""
        levels = len(wanted.levels)
        return cls(
            np.empty(batches, np.uint64), np.zeros((batches, len(wanted.outputs)), np.uint64),
            np.empty((batches, len(wanted.reads), 2), np.int64), np.empty((levels, count), np.int64),
            np.empty((levels, count + batches), np.int64), np.empty((len(wanted.bits), count), np.uint8),
            np.empty((len(wanted.bit_range_of), count), np.uint8),
            np.empty(-(-count // 8) * 8 * wanted.fixed_bytes, np.uint8),
        )  # fmt: skip

    @lazy
    def places(self) -> list[list[tuple[int, int]]]:
        """`regions` as numbers of Python's."""
        made: list[list[tuple[int, int]]] = self.regions.tolist()
        return made

    @lazy
    def offset_rows(self) -> list[NDArray[np.int64]]:
        """`offsets` level by level."""
        return list(self.offsets)

    @lazy
    def all_valid(self) -> list[bool]:
        """For each bit range, whether no record has it: a validity buffer that the shards lack."""
        return [bool(row.all()) for row in self.shift == ALL_VALID]

    @lazy
    def all_set(self) -> list[bool]:
        """For each bit, whether every record has it set."""
        return [bool(row.all()) for row in self.bits]

    @lazy
    def _copied(self) -> dict[tuple[int, int], NDArray[Any]]:
        return {}

    def copied(self, at: int, width: int, kind: np.dtype[Any] | None, validity: Sequence[int]) -> NDArray[Any]:
        """Return a copied value of every record, zeros under nulls: what Arrow keeps there is nobody's business.

        Args:
            at: Its byte in the records' fixed bytes, from `Wanted.copied`.
            width: Its bytes.
            kind: (n,) of this are returned; None for (n, width) of uint8.
            validity: Its own validity bit and those around it, places among the bits.
        """
        made = self._copied.get((at, width))  # where one has no bytes, the next begins at the same one
        if made is None:
            count = self.bits.shape[1]
            start = at * (-(-count // 8) * 8)
            made = self.fixed[start : start + count * width]
            made = made.reshape(count, width) if kind is None else made.view(kind)
            for bit in validity:
                if not self.all_set[bit]:
                    made[self.bits[bit] == 0] = 0
            self._copied[at, width] = made
        return made


@lru_cache(maxsize=64)
def wanted_for(
    tree: Tree, columns: tuple[int, ...], wide: tuple[tuple[int, str], ...], op_of: Callable[[str, str], int]
) -> Wanted:
    """Return what a projection delivers.

    Args:
        tree: Of the data set's schema.
        columns: Column numbers to deliver.
        wide: (buffer, numpy code) of integers that are delivered wider than their type.
        op_of: op_of(stored, delivered) is the op of reads that widen integers, by their numpy codes.
    """
    full = layout_of(tree, (True,) * len(tree.buffers), True)
    chosen = frozenset(columns) - tree.whole
    mine = [b for b in tree.buffers if tree.nodes[b.node].column in chosen]
    numbers = {b.number for b in mine}
    reads = tuple(b for b in full.reads if b.number in numbers)
    copied: dict[int, tuple[int, int]] = {}
    used = 0
    for number in full.copied:
        if number in numbers:
            copied[number] = (used, tree.buffers[number].width)
            used += tree.buffers[number].width
    bits = tuple(number for number in full.bits if number in numbers)
    levels = tuple(n.opens for n in tree.nodes if n.opens != ROW and n.column in chosen)
    outputs: dict[int, int] = {}
    lay = np.zeros((len(reads), 2), np.int64)
    bit_ranges = 0
    for i, buffer in enumerate(reads):
        output = outputs.setdefault(tree.nodes[buffer.node].column, len(outputs))
        is_bits = buffer.role in (Role.VALIDITY, Role.BITS)
        lay[i] = (output, bit_ranges if is_bits else -1)
        bit_ranges += is_bits
    return Wanted(tree, tuple(sorted(chosen)), reads, levels, bits, copied, used, outputs, lay, dict(wide), op_of)


@lru_cache(maxsize=256)
def program_for(layout: Layout, wanted: Wanted) -> _native.Program:
    """Return how a shard of this layout answers for a projection: tables of numbers for the native core.

    geometry: page head bytes, entry bytes, page bytes, fixed bytes a record.
    levels: (levels, 4) byte of the start in the entry, byte of the base in the page, first null bit, null bits.
    reads: (reads, 10) index among levels or -1, factor, role, width, byte of the offset in the page or -1,
    byte of the CRC in the entry or -1, first null bit, null bits, op, bytes delivered for each byte read.
    bits: (bits, 2) bit in the entry or -1, value where there is none.
    copies: (copies, 3) byte in the entry, byte in a record's fixed bytes, width.
    nulls: bits in the entry; a record is null where one of those named is 0.

    Columns that this shard holds whole answer with no ranges at all.
    """
    here, bit_of = _translation(layout.tree, wanted.tree), layout.bits
    nulls: list[int] = []
    place = {buffer.number: i for i, buffer in enumerate(layout.reads)}

    def null_bits(node: int) -> tuple[int, int]:
        first = len(nulls)
        for above in wanted.tree.ancestors(node):
            own = here.get(above.validity, -1)
            if above.level == ROW and above.factor == 1 and own in bit_of:
                nulls.append(bit_of[own])
        return first, len(nulls) - first

    level_rows = []
    for level in wanted.levels:
        node = next(n for n in wanted.tree.nodes if n.opens == level)
        own = here.get(node.data, -1)
        mine = layout.tree.nodes[layout.tree.buffers[own].node].opens if own >= 0 else -1
        start = layout.starts + 4 * mine if own >= 0 else -1
        level_rows.append((start, PAGE_HEAD.size + 8 * mine if own >= 0 else -1, *null_bits(node.number)))
    reads = []
    for buffer in wanted.reads:
        own = place.get(here.get(buffer.number, -1), -1)
        level = -1 if buffer.level == ROW else wanted.levels.index(buffer.level)
        offset = PAGE_HEAD.size + 8 * layout.tree.level_count + 8 * own if own >= 0 else -1
        crc = layout.crcs + 4 * own if own >= 0 and layout.checksums else -1
        stored = layout.tree.buffers[here[buffer.number]] if buffer.number in here else buffer
        rule = _widening(wanted, buffer, layout.tree.nodes[stored.node].type if stored is not buffer else None)
        reads.append((level, buffer.factor, buffer.role, stored.width, offset, crc, *null_bits(buffer.node), *rule))
    validity = {n.validity for n in wanted.tree.nodes}
    bits = [(bit_of.get(here.get(number, -1), -1), int(number in validity)) for number in wanted.bits]
    copies = [
        (layout.copied[here[number]], at, width) for number, (at, width) in wanted.copied.items() if number in here
    ]
    geometry = (layout.page_head_bytes, layout.entry_bytes, layout.page_bytes, wanted.fixed_bytes)
    return _native.Program(
        np.array(geometry, np.int64), _table(level_rows, 4), _table(reads, 10), _table(bits, 2), _table(copies, 3),
        np.array(nulls, np.int64),
    )  # fmt: skip


def _widening(wanted: Wanted, buffer: Buffer, stored: pa.DataType | None) -> tuple[int, int]:
    """Return op and bytes delivered for each byte read of a buffer whose entries a shard stores as this type."""
    type_ = wanted.tree.nodes[buffer.node].type
    declared = integer_code(type_)
    if declared is None or buffer.role != Role.VALUES:
        return COPY, 1
    have = declared if stored is None else integer_code(stored) or declared
    due = wanted.wide.get(buffer.number, declared)
    return (COPY, 1) if have == due else (wanted.op_of(have, due), int(due[1]) // int(have[1]))


def _translation(shard: Tree, whole: Tree) -> dict[int, int]:
    """Map the data set's buffers to the shard's, which lacks those of columns it holds whole."""
    if shard is whole:
        return {b.number: b.number for b in whole.buffers}
    here = {
        column: [b.number for b in shard.column_buffers(column)]
        for column in range(len(whole.schema))
        if column not in shard.whole
    }
    return {
        theirs.number: mine
        for column, numbers in here.items()
        for theirs, mine in zip(whole.column_buffers(column), numbers, strict=True)
    }


def _table(rows: Sequence[tuple[int, ...]], width: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(len(rows), width)


RESOLVED: Final = -1
PAGE_MISSING: Final = -2
SHARD_MISSING: Final = -3


def resolve(
    arena: _native.Arena,
    shards: _native.Shards,
    programs: list[_native.Program],
    ids: NDArray[np.int64],
    batch_ends: NDArray[np.int64],
    wanted: Wanted,
    verify: bool,
) -> tuple[int, Resolved]:
    """Return the reads of a window's batches: batch after batch, buffer after buffer, record after record.

    Args:
        arena: Pages that are in memory: slots of one size, and for each page its slot, counted from 1; 0
            where it is not here.
        shards: Which ids each shard has (first_id), how its rows stand in chunks and pages (rows a page, 0
            where the shard is not known; rows a chunk, 0 where they differ; pages a chunk, or then the
            number of chunks; first page of the shard), its layout and the store's handle, and for chunks
            that differ where they begin in two lists of rows and pages.
        programs: What answers for each layout.
        ids: (n,) records.
        batch_ends: (b,) batch i has records [batch_ends[i - 1], batch_ends[i]); the last is n.
        wanted: The projection that the programs answer for.
        verify: Whether reads carry the CRC they must have.

    Returns:
        RESOLVED and the reads; or PAGE_MISSING, SHARD_MISSING where something is not here yet, or the
        number of a record whose page contradicts itself: then nothing is to be made of the reads.

    O(records x reads), about 20 ns each.
    """
    out = Resolved.empty(len(ids), len(batch_ends), wanted)
    found, reads = _native.resolve(
        arena, shards, programs, ids, batch_ends, wanted.lay, verify,
        out.ends, out.output_sizes, out.regions, out.counts, out.offsets, out.bits, out.shift, out.fixed,
    )  # fmt: skip
    out.reads = reads
    return found, out


def widened(tree: Tree, rules: Mapping[str, str]) -> dict[int, str]:
    """Return the buffers whose integers a delivery format widens: buffer -> numpy code of the target.

    Args:
        tree: Of the data set's schema.
        rules: Arrow type name -> numpy code, e.g. {"uint16": "i8"}.
    """
    return {
        node.data: rules[str(node.type)]
        for node in tree.nodes
        if str(node.type) in rules and node.data >= 0 and node.column not in tree.whole
    }
