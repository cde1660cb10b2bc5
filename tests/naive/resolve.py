"""Rows to reads, believed at sight: what `format.resolve.resolve` must agree with.

No tables of numbers and no cleverness: an entry is taken apart as `docs/format.md` writes it, one
record, one level, one buffer after another, in Python's own integers.
"""

from __future__ import annotations

import struct

import numpy as np

from shufflestore.format.layout import ABSENT, Layout
from shufflestore.format.resolve import ALL_VALID, Resolved, Wanted
from shufflestore.format.schema import ROW, Role
from shufflestore.storage.base import WIDEN

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

    def entries(self, buffer) -> tuple[int, int]:
        """First entry and number of entries of the record in a buffer."""
        first, count = (self.row, 1) if buffer.level == ROW else self.elements(buffer.level)
        first, count = first * buffer.factor, count * buffer.factor
        if first > 2**62 // 8 or count > 2**62 // 8:
            raise Contradiction
        return first, count

    def span(self, place: int) -> tuple[int, int, int, int, int]:
        """Offset, size, bytes of the slot, CRC and shift of one of the layout's reads."""
        buffer = self.layout.reads[place]
        first, count = self.entries(buffer)
        (base,) = struct.unpack_from("<Q", self.page, 24 + 8 * self.layout.tree.level_count + 8 * place)
        low, size, shift = range_of(buffer, first, count)
        null = self.is_null(buffer.node)
        if base == ABSENT:
            gone = buffer.role == Role.VALIDITY
            return 0, 0, 0 if gone else size, 0, ALL_VALID if gone else shift
        if null:
            return 0, 0, size, 0, shift
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


def answer(record: Record, buffer) -> tuple[int, int, int, int, int]:
    """Offset, size, bytes of the slot, CRC and shift of a buffer, whether or not the shard has it."""
    numbers = [read.number for read in record.layout.reads]
    if buffer.number in numbers:
        return record.span(numbers.index(buffer.number))
    if buffer.role == Role.VALIDITY:
        return 0, 0, 0, 0, ALL_VALID
    _, size, shift = range_of(record.layout.tree.buffers[buffer.number], *record.entries(buffer))
    return 0, 0, size, 0, shift


def resolve(
    arena: bytes, pages: list[int], slots: list[int], files: list[int], ends: list[int], layout: Layout,
    wanted: Wanted, verify: bool,
):  # fmt: skip
    """Return what was resolved and the reads as tuples, or which record's page contradicts itself.

    The layout has every wanted column.
    """
    out = Resolved.empty(len(pages), len(ends), wanted)
    out.fixed[:] = 0
    answers = []
    for i, (at, slot) in enumerate(zip(pages, slots, strict=True)):
        try:
            page = bytes(arena[at * layout.page_bytes : (at + 1) * layout.page_bytes])
            if at < 0 or len(page) < layout.page_bytes or slot < 0:
                raise Contradiction
            record = Record(page, slot, layout)
            for j, level in enumerate(wanted.levels):
                out.counts[j, i] = record.elements(level)[1]
            answers.append([answer(record, buffer) for buffer in wanted.reads])
            for buffer, j in wanted.bit_range_of.items():
                out.shift[j, i] = answers[-1][wanted.read_of[buffer]][4]
            for j, buffer in enumerate(wanted.bits):
                out.bits[j, i] = record.bit(buffer)
            for number, (to, width) in wanted.copied.items():
                start = layout.copied[number]
                block = to * (-(-len(pages) // 8) * 8) + i * width
                out.fixed[block : block + width] = np.frombuffer(record.entry[start : start + width], np.uint8)
        except Contradiction:
            return i
    return out, lay_out(answers, files, ends, layout, wanted, verify, out)


def widening(layout: Layout, wanted: Wanted, buffer) -> tuple[int, int]:
    """Op and ratio of a buffer: from the integers that the shard stores to those that are delivered."""
    names = {"int": "i", "uint": "u"}

    def code(type_) -> str:
        kind = str(type_).rstrip("0123456789")
        return f"{names[kind]}{int(str(type_)[len(kind) :]) // 8}"

    declared = wanted.tree.nodes[buffer.node].type
    if buffer.role != Role.VALUES or str(declared).rstrip("0123456789") not in names:
        return 0, 1
    stored = code(layout.tree.nodes[layout.tree.buffers[buffer.number].node].type)  # every column is in the layout
    delivered = wanted.wide.get(buffer.number, code(declared))
    if stored == delivered:
        return 0, 1
    return WIDEN[stored, delivered], int(delivered[1]) // int(stored[1])


def lay_out(
    answers, files: list[int], ends: list[int], layout: Layout, wanted: Wanted, verify: bool, out: Resolved
):  # fmt: skip
    """Return the reads: batch after batch, buffer after buffer, record after record."""
    reads, first = [], 0
    for batch, last in enumerate(ends):
        totals = [0] * len(wanted.outputs)
        for j, (output, _) in enumerate(wanted.lay.tolist()):
            op, ratio = widening(layout, wanted, wanted.reads[j])
            totals[output] = -(-totals[output] // ALIGN) * ALIGN
            start = totals[output]
            for i in range(first, last):
                offset, size, stored, crc, _ = answers[i][j]
                slot = stored * ratio
                if slot == 0:
                    continue
                zero = size == 0
                code, flags = (1, 0) if zero else (op, int(verify))
                place = (offset, totals[output], slot if zero else size, files[i], crc)
                reads.append((*place, output, code, flags, i))
                totals[output] += slot
            out.regions[batch, j] = start, totals[output] - start
        out.ends[batch] = len(reads)
        out.output_sizes[batch] = totals
        for offsets, counts in zip(out.offsets, out.counts[:, first:last].tolist(), strict=True):
            offsets[first + batch : last + batch + 1] = [sum(counts[:i]) for i in range(len(counts) + 1)]
        first = last
    return reads
