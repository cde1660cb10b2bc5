"""Rows to reads: where in the shard a batch's bytes are, and where in the batch they go.

Two pure steps. `locate` asks the pages of the row index for each record's ranges; `lay_out`
gives every range its slot in the outputs of its batch. Both run in the native core; the same
steps in numpy, for reference, stand in `tests/naive/resolve.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.errors import CorruptData
from shufflestore.format.layout import PAGE_HEAD, Layout, layout_of
from shufflestore.format.schema import ROW, Buffer, Node, Tree
from shufflestore.lazy import lazy

__all__ = ["ALL_VALID", "Located", "Placed", "Program", "Wanted", "lay_out", "locate", "program_for", "wanted_for"]

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
    """(reads, 3) output, op and bytes delivered for each byte read."""

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
    def output_of(self) -> list[int]:
        """For each read, its output."""
        made: list[int] = self.lay[:, 0].tolist()
        return made

    @lazy
    def tops(self) -> dict[int, Node]:
        """Column -> its top node."""
        return {column: self.tree.top(column) for column in self.columns}


@dataclass(frozen=True, eq=False)
class Program:
    """How one layout answers for a projection: tables of numbers for the native core."""

    geometry: NDArray[np.int64]
    """(4,) page head bytes, entry bytes, page bytes, fixed bytes a record."""
    levels: NDArray[np.int64]
    """(levels, 4) byte of the start in the entry, byte of the base in the page, first null bit, null bits."""
    reads: NDArray[np.int64]
    """(reads, 8) index among levels or -1, factor, role, width, byte of the offset in the page or -1,
    byte of the CRC in the entry or -1, first null bit, null bits."""
    bits: NDArray[np.int64]
    """(bits, 2) bit in the entry or -1, value where there is none."""
    copies: NDArray[np.int64]
    """(copies, 3) byte in the entry, byte in the fixed bytes, width."""
    nulls: NDArray[np.int64]
    """Bits in the entry; a record is null where one of those named is 0."""


@dataclass(frozen=True, eq=False)
class Located:
    """Ranges of n records, before they have slots."""

    offset: NDArray[np.uint64]
    """(n, reads) first byte in the file."""
    size: NDArray[np.uint64]
    """(n, reads) bytes to read; 0 for none."""
    slot: NDArray[np.uint64]
    """(n, reads) bytes of the slot, in bytes of the file; more than `size` only where it is zeros."""
    crc: NDArray[np.uint32]
    shift: NDArray[np.uint8]
    """(n, reads) first bit within the first byte of a bit range, or ALL_VALID."""
    counts: NDArray[np.int64]
    """(n, levels) elements."""
    bits: NDArray[np.uint8]
    """(n, bits) 0 or 1."""
    fixed: NDArray[np.uint8]
    """(n, fixed bytes) copied values."""

    @lazy
    def all_valid(self) -> list[bool]:
        """For each read, whether no record has it: a validity buffer that the shards lack."""
        # Column by column: numpy's reduction along the first axis of a narrow array costs seven times as much.
        return [bool(column.all()) for column in (self.shift == ALL_VALID).T]

    @lazy
    def all_set(self) -> list[bool]:
        """For each bit, whether every record has it set."""
        return [bool(column.all()) for column in self.bits.T]

    @lazy
    def is_all_set(self) -> bool:
        """Whether no record of the window has a null or a False at row depth."""
        return all(self.all_set)

    @classmethod
    def empty(cls, count: int, wanted: Wanted) -> Located:
        """Return arrays for `count` records, not yet filled."""
        reads = (count, len(wanted.reads))
        return cls(
            np.empty(reads, np.uint64), np.empty(reads, np.uint64), np.empty(reads, np.uint64),
            np.empty(reads, np.uint32), np.empty(reads, np.uint8),
            np.empty((count, len(wanted.levels)), np.int64), np.empty((count, len(wanted.bits)), np.uint8),
            np.empty((count, wanted.fixed_bytes), np.uint8),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Placed:
    """Reads of several batches, each with its slot, ready for a store."""

    reads: NDArray[np.uint64]
    """(m, 5) the words of `storage.base.READ`; "reserved" holds the record's place in the window."""
    ends: NDArray[np.uint64]
    """(batches,) reads of batch i end here."""
    output_sizes: NDArray[np.uint64]
    """(batches, outputs) bytes."""
    regions: NDArray[np.int64]
    """(batches, reads, 2) first byte and bytes of each buffer's region in its output."""

    @lazy
    def places(self) -> list[list[tuple[int, int]]]:
        """`regions` as numbers of Python's."""
        made: list[list[tuple[int, int]]] = self.regions.tolist()
        return made


@lru_cache(maxsize=64)
def wanted_for(tree: Tree, columns: tuple[int, ...], widen: tuple[tuple[int, int, int], ...]) -> Wanted:
    """Return what a projection delivers.

    Args:
        tree: Of the data set's schema.
        columns: Column numbers to deliver.
        widen: (buffer, op, ratio) of integers that the core is to widen.
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
    ops = {buffer: (op, ratio) for buffer, op, ratio in widen}
    lay = np.zeros((len(reads), 3), np.int64)
    for i, buffer in enumerate(reads):
        output = outputs.setdefault(tree.nodes[buffer.node].column, len(outputs))
        lay[i] = (output, *ops.get(buffer.number, (0, 1)))
    return Wanted(tree, tuple(sorted(chosen)), reads, levels, bits, copied, used, outputs, lay)


@lru_cache(maxsize=256)
def program_for(layout: Layout, wanted: Wanted) -> Program:
    """Return how a shard of this layout answers for a projection.

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
        reads.append((level, buffer.factor, buffer.role, buffer.width, offset, crc, *null_bits(buffer.node)))
    validity = {n.validity for n in wanted.tree.nodes}
    bits = [(bit_of.get(here.get(number, -1), -1), int(number in validity)) for number in wanted.bits]
    copies = [
        (layout.copied[here[number]], at, width) for number, (at, width) in wanted.copied.items() if number in here
    ]
    geometry = (layout.page_head_bytes, layout.entry_bytes, layout.page_bytes, wanted.fixed_bytes)
    return Program(
        np.array(geometry, np.int64), _table(level_rows, 4), _table(reads, 8), _table(bits, 2), _table(copies, 3),
        np.array(nulls, np.int64),
    )  # fmt: skip


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


def locate(
    arena: NDArray[np.uint8],
    pages: NDArray[np.int64],
    slots: NDArray[np.int64],
    rows: NDArray[np.int64],
    program: Program,
    out: Located,
) -> None:
    """Fill in the ranges of some records from the pages of their row index.

    Args:
        arena: Bytes that hold checked pages.
        pages: (k,) where in the arena each record's page begins.
        slots: (k,) which entry of the page is the record's.
        rows: (k,) which row of `out` to fill for each.
        program: Of the layout that these pages have.
        out: Filled in at `rows`.

    Raises:
        CorruptData: A page contradicts itself: its checksum was right, so its writer was wrong.

    O(records x reads), about 10 ns each.
    """
    bad = _native.locate(
        arena, pages, slots, rows, program.geometry, program.levels, program.reads, program.bits, program.copies,
        program.nulls, out.offset, out.size, out.slot, out.crc, out.shift, out.counts, out.bits, out.fixed,
    )  # fmt: skip
    if bad >= 0:
        raise CorruptData(
            f"the row index contradicts itself at entry {slots[bad]} of the page at {pages[bad]}: an entry outside "
            "its page, or starts that decrease; index or convert again"
        )


def lay_out(
    located: Located, files: NDArray[np.uint32], batch_ends: NDArray[np.int64], wanted: Wanted, verify: bool
) -> Placed:
    """Give every range its slot: batch after batch, buffer after buffer, record after record.

    Args:
        located: Of n records.
        files: (n,) the store's handle of each record's shard.
        batch_ends: (b,) batch i has records [batch_ends[i - 1], batch_ends[i]); the last is n.
        wanted: The projection that `located` was filled for.
        verify: Whether reads carry the CRC they must have.
    """
    count, batches = int((located.slot > 0).sum()), len(batch_ends)
    reads = np.empty((count, 5), np.uint64)
    ends = np.empty(batches, np.uint64)
    sizes = np.zeros((batches, len(wanted.outputs)), np.uint64)
    regions = np.zeros((batches, len(wanted.reads), 2), np.int64)
    _native.lay_out(
        located.offset, located.size, located.slot, located.crc, files, batch_ends, wanted.lay, verify,
        reads, ends, sizes, regions,
    )  # fmt: skip
    return Placed(reads, ends, sizes, regions)


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
