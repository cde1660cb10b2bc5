"""Which blocks reads of cached files need: sets and loops."""

from __future__ import annotations

from shufflestore.storage.base import HAS_CRC, ZERO


class Blocks:
    """A dictionary of (file, block) to its state: 1 there, 2 sound."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.sizes: list[int | None] = []
        self.state: dict[tuple[int, int], int] = {}

    def needs(self, read) -> list[tuple[int, int]] | None:
        """The blocks under a read, None if it is not bytes of a kept file."""
        if read["op"] == ZERO or read["size"] == 0:
            return []
        file, begin, end = int(read["file"]), int(read["offset"]), int(read["offset"]) + int(read["size"])
        if file >= len(self.sizes) or (size := self.sizes[file]) is None:
            return None
        if (end - 1) // self.block_bytes >= -(-size // self.block_bytes):
            return None
        return [(file, b) for b in range(begin // self.block_bytes, (end - 1) // self.block_bytes + 1)]

    def lacks(self, read) -> list[tuple[int, int]]:
        least = 1 if read["flags"] & HAS_CRC else 2
        return [block for block in self.needs(read) or [] if self.state.get(block, 0) < least]

    def held(self, reads) -> list[bool]:
        return [self.needs(read) is not None and not self.lacks(read) for read in reads]

    def lacking(self, reads) -> list[tuple[int, int]]:
        return sorted({block for read in reads for block in self.lacks(read)})
