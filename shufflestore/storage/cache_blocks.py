"""Which blocks a process knows to be in a local cache, and which blocks reads need. Arrays only, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import HAS_CRC, READ, ZERO
from shufflestore.storage.plan import plan
from shufflestore.storage.process import briefly

__all__ = ["ABSENT", "Blocks", "SOUND", "THERE", "reads_of_blocks"]

ABSENT: Final = 0
"""Or not known."""
THERE: Final = 1
"""SOUND less HAS_CRC: enough for reads that bring a checksum of their own."""
SOUND: Final = 2
"""Held against its CRC32C by this process: good for all reads."""
_MOST_BYTES: Final = 8 << 20
"""Neighbouring blocks fetched by one read of the store."""


class Blocks:
    """One state a block, of all registered files; blocks are numbered through, file after file."""

    def __init__(self, block_bytes: int) -> None:
        """Begin without files."""
        self.block_bytes = block_bytes
        self._block = np.uint64(block_bytes)
        is_power = block_bytes & (block_bytes - 1) == 0
        self._shift = np.uint64(block_bytes.bit_length() - 1) if is_power else None
        self._files = 0
        self._base = np.zeros(16, np.uint64)
        self._count = np.zeros(16, np.uint64)
        self._total = 0
        self._state = np.zeros(1024, np.uint8)
        self._absent = 0
        """Blocks that are not there, and files that are never kept."""

    def add(self, size: int | None) -> None:
        """Register the next file; its size, or None for one that is never kept."""
        count = 0 if size is None else -(-size // self.block_bytes)
        with briefly:  # a state that is set meanwhile must not be lost
            if self._files == len(self._base):
                self._base, self._count = (
                    np.resize(self._base, 2 * self._files),
                    np.resize(self._count, 2 * self._files),
                )
            if self._total + count > len(self._state):
                grown = np.zeros(max(2 * len(self._state), self._total + count), np.uint8)
                grown[: self._total] = self._state[: self._total]
                self._state = grown
            self._base[self._files], self._count[self._files] = self._total, count
            self._total += count
            self._files += 1
            self._absent += 1 if size is None else count

    def first(self, file: int) -> int:
        """Return the number of a file's first block."""
        return int(self._base[file])

    def of(self, file: int) -> NDArray[np.uint8]:
        """Return a copy of the states of a file's blocks."""
        first, count = int(self._base[file]), int(self._count[file])
        states: NDArray[np.uint8] = self._state[first : first + count].copy()
        return states

    def set(self, blocks: NDArray[np.int64] | Sequence[int], state: NDArray[np.uint8] | int) -> None:
        """Set the states of blocks, each of which is named once."""
        at = np.asarray(blocks, np.int64)
        with briefly:
            before = np.count_nonzero(self._state[at])
            self._state[at] = state
            self._absent += int(before - np.count_nonzero(self._state[at]))

    def places(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """Return (file, block of the file) of blocks."""
        numbers = np.asarray(blocks, np.uint64)
        # Files without blocks begin where the next one does, so the last that begins there has the block.
        files = np.searchsorted(self._base[: self._files], numbers, side="right") - 1
        return list(zip(files.tolist(), (numbers - self._base[files]).tolist(), strict=True))

    def held(self, reads: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return (n,) whether all blocks of each read are there, and known to be sound where it has no checksum.

        Reads that need no bytes are held; those of files that are not kept are not. Wrong ones may be either: whoever is
        given them refuses them. O(n), and a pass over the long ones for each block that they span; next to nothing where
        all blocks of all files are there.
        """
        if not self._absent and (reads["flags"] & np.uint8(HAS_CRC)).all():
            return np.ones(len(reads), bool)
        kept, first, last, need = self._spans(reads)
        found = self._state.take(first) >= need
        steps = last - first
        for step in range(1, int(steps.max(initial=0)) + 1):
            long = np.flatnonzero(steps >= step)
            found[long] &= self._state[first[long] + step] >= need[long]
        return found if kept.all() else (found & kept) | (reads["op"] == ZERO) | (reads["size"] == 0)

    def lacking(self, reads: NDArray[np.void]) -> list[int]:
        """Return the blocks that reads need and that are not there, each once, rising."""
        kept, first, last, need = self._spans(reads)
        first, last, need = first[kept], last[kept], need[kept]
        found = []
        for step in range(int((last - first).max(initial=-1)) + 1):
            at = np.minimum(first + step, last)
            found.append(at[self._state[at] < need])
        lacks: list[int] = np.unique(np.concatenate(found)).tolist() if found else []
        return lacks

    def touched(self, reads: NDArray[np.void]) -> dict[int, bool]:
        """Return the files of reads that are kept, and whether some of their reads need sound blocks."""
        kept, _, _, need = self._spans(reads)
        files = reads["file"][kept].astype(np.int64)
        unsure = set(np.unique(files[need[kept] == SOUND]).tolist())
        return {file: file in unsure for file in np.unique(files).tolist()}

    def _spans(
        self, reads: NDArray[np.void]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """(n,) each: whether it is bytes of a file that is kept; if so its first and last block, else 0; the state needed."""
        offset, size = reads["offset"], reads["size"]
        file = reads["file"].astype(np.intp)
        np.minimum(file, self._files, out=file)  # the one after the last has no blocks
        # Wrong descriptors may wrap here; they give a last block before the first, or none of the file's.
        first, last = self._block_of(offset), self._block_of(offset + size - np.uint64(1))
        kept = (last < self._count.take(file)) & (first <= last) & (size > 0) & (reads["op"] != ZERO)
        base = self._base.take(file)
        begin, end = (base + first).view(np.int64), (base + last).view(np.int64)
        if not kept.all():
            begin, end = np.where(kept, begin, 0), np.where(kept, end, 0)
        has_crc = reads["flags"] & np.uint8(HAS_CRC)
        return kept, begin, end, np.uint8(SOUND) - has_crc

    def _block_of(self, offset: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A quarter of the time where it is a power of two."""
        blocks: NDArray[np.uint64] = offset // self._block if self._shift is None else offset >> self._shift
        return blocks


def reads_of_blocks(
    places: Sequence[tuple[int, int]], sizes: Sequence[int], block_bytes: int
) -> tuple[NDArray[np.void], list[tuple[int, int, int, int]]]:
    """Return the reads that fetch blocks end to end, neighbours together, and (file, offset, size, slot) of each.

    Args:
        places: (file, block) pairs.
        sizes: Length of each file.
        block_bytes: Of a block.
    """
    asked = np.zeros(len(places), READ)
    asked["file"] = [file for file, _ in places]
    asked["offset"] = starts = np.array([block for _, block in places], np.int64) * block_bytes
    ends = np.array([sizes[file] for file, _ in places], np.int64)
    asked["size"] = np.minimum(starts + block_bytes, ends) - starts
    made = plan(
        asked, group_of=None, gap_bytes=0, most_bytes=_MOST_BYTES, most_waste=1.0, block_bytes=1, file_sizes=None
    )
    reads = np.zeros(len(made), READ)
    reads["file"], reads["offset"], reads["size"] = made.file, made.offset, made.size
    reads["slot"] = slots = np.cumsum(made.size) - made.size
    ranges = zip(made.file.tolist(), made.offset.tolist(), made.size.tolist(), slots.tolist(), strict=True)
    return reads, list(ranges)
