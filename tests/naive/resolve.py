"""Rows to reads, believed at sight: what `format.resolve.locate` and `lay_out` must agree with.

No tables of numbers and no cleverness: an entry is taken apart as `docs/format.md` writes it, one
record, one level, one buffer after another, in Python's own integers.
"""

from __future__ import annotations

import struct

import numpy as np

from shufflestore.format.layout import ABSENT, Layout
from shufflestore.format.resolve import ALL_VALID, Located, Wanted
from shufflestore.format.schema import ROW, Role

ALIGN = 64


class Contradiction(Exception):
    """A page that contradicts itself."""


class Record:
    """One entry of one page, and the entry behind it."""

    def __init__(self, page: bytes, slot: int, layout: Layout) -> None:
        _, _, first_row, rows, _ = struct.unpack_from("<IIQII", page)
        start = layout.page_head_bytes + slot * layout.entry_bytes
        if slot >= rows or start + 2 * layout.entry_bytes > len(page):
            raise Contradiction
        self.page, self.layout = page, layout
        self.row = first_row + slot
        self.entry = page[start : start + layout.entry_bytes]
        self.next = page[start + layout.entry_bytes : start + 2 * layout.entry_bytes]

    def bit(self, buffer: int) -> int:
        """A validity bit or bool of the record; 1 or 0 where no chunk of the shard has the buffer."""
        if buffer not in self.layout.bits:
            return int(self.layout.tree.buffers[buffer].role == Role.VALIDITY)
        number = self.layout.bits[buffer]
        return self.entry[number // 8] >> (number % 8) & 1

    def is_null(self, node: int) -> bool:
        """Whether the record is null at a node or, at row depth, anywhere around it."""
        around = [n for n in self.layout.tree.ancestors(node) if n.level == ROW and n.factor == 1]
        return any(n.validity >= 0 and not self.bit(n.validity) for n in around)

    def elements(self, level: int) -> tuple[int, int]:
        """First element and number of elements of the record in a level."""
        tree = self.layout.tree
        at = self.layout.starts + 4 * level
        (start,), (stop,) = struct.unpack_from("<I", self.entry, at), struct.unpack_from("<I", self.next, at)
        (base,) = struct.unpack_from("<Q", self.page, 24 + 8 * level)
        if stop < start or base > 2**62:
            raise Contradiction
        node = next(n for n in tree.nodes if n.opens == level)
        return base + start, 0 if self.is_null(node.number) else stop - start

    def span(self, place: int) -> tuple[int, int, int, int, int]:
        """Offset, size, bytes of the slot, CRC and shift of one of the layout's reads."""
        buffer = self.layout.reads[place]
        first, count = (self.row, 1) if buffer.level == ROW else self.elements(buffer.level)
        first, count = first * buffer.factor, count * buffer.factor
        if first > 2**62 // 8 or count > 2**62 // 8:
            raise Contradiction
        (base,) = struct.unpack_from("<Q", self.page, 24 + 8 * self.layout.tree.level_count + 8 * place)
        low, size, shift = range_of(buffer, first, count)
        null = self.is_null(buffer.node)
        if base == ABSENT:
            gone = buffer.role == Role.VALIDITY
            return 0, 0, 0 if gone else size, 0, ALL_VALID if gone else (0 if null else shift)
        if null:
            return 0, 0, size, 0, 0
        if base > 2**62:
            raise Contradiction
        (crc,) = struct.unpack_from("<I", self.entry, self.layout.crcs + 4 * place) if self.layout.checksums else (0,)
        return base + low, size, size, crc, shift


def range_of(buffer, first: int, count: int) -> tuple[int, int, int]:
    """First byte, bytes and first bit of `count` entries in a buffer."""
    if count == 0:
        return 0, 0, 0
    if buffer.role == Role.OFFSETS:
        return first * buffer.width, (count + 1) * buffer.width, 0
    if buffer.role == Role.VALUES:
        return first * buffer.width, count * buffer.width, 0
    return first // 8, (first % 8 + count + 7) // 8, first % 8


def locate(arena: bytes, pages: list[int], slots: list[int], layout: Layout, wanted: Wanted) -> Located | int:
    """Return the ranges of records, or which record's page contradicts itself. The layout has every wanted column."""
    out = Located.empty(len(pages), wanted)
    place_of = {buffer.number: i for i, buffer in enumerate(layout.reads)}
    for i, (at, slot) in enumerate(zip(pages, slots, strict=True)):
        try:
            page = bytes(arena[at : at + layout.page_bytes])
            if at < 0 or len(page) < layout.page_bytes or slot < 0:
                raise Contradiction
            record = Record(page, slot, layout)
            for j, level in enumerate(wanted.levels):
                out.counts[i, j] = record.elements(level)[1]
            for j, buffer in enumerate(wanted.reads):
                if buffer.number in place_of:
                    answer = record.span(place_of[buffer.number])
                else:  # no chunk of the shard has it
                    first, count = (record.row, 1) if buffer.level == ROW else record.elements(buffer.level)
                    _, size, shift = range_of(buffer, first * buffer.factor, count * buffer.factor)
                    if buffer.role == Role.VALIDITY:
                        size, shift = 0, ALL_VALID
                    elif record.is_null(buffer.node):
                        shift = 0
                    answer = 0, 0, size, 0, shift
                out.offset[i, j], out.size[i, j], out.slot[i, j], out.crc[i, j], out.shift[i, j] = answer
            for j, buffer in enumerate(wanted.bits):
                out.bits[i, j] = record.bit(buffer)
            for number, (to, width) in wanted.copied.items():
                start = layout.copied[number]
                out.fixed[i, to : to + width] = np.frombuffer(record.entry[start : start + width], np.uint8)
        except Contradiction:
            return i
    return out


def lay_out(located: Located, files: list[int], ends: list[int], wanted: Wanted, verify: bool):
    """Return (reads, ends, output sizes, regions): batch after batch, buffer after buffer, record after record."""
    reads, read_ends, sizes, regions = [], [], [], []
    first = 0
    for last in ends:
        totals = [0] * len(wanted.outputs)
        mine = []
        for j, (output, op, ratio) in enumerate(wanted.lay.tolist()):
            totals[output] = -(-totals[output] // ALIGN) * ALIGN
            start = totals[output]
            for i in range(first, last):
                slot, size = int(located.slot[i, j]), int(located.size[i, j])
                if slot == 0:
                    continue
                zero = size == 0
                reads.append(
                    (
                        int(located.offset[i, j]),
                        totals[output],
                        slot * ratio if zero else size,
                        files[i],
                        int(located.crc[i, j]),
                        output,
                        1 if zero else op,
                        int(verify and not zero),
                        i,
                    )
                )
                totals[output] += slot * ratio
            mine.append((start, totals[output] - start))
        read_ends.append(len(reads))
        sizes.append(totals)
        regions.append(mine)
        first = last
    return reads, read_ends, sizes, regions
