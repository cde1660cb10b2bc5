"""The rolling block order: random, exact, and with few blocks of the data in use at a time.

The records are cut into blocks of B that are stored one after the other. Blocks are taken up in random order, one a
*cell* of B positions, and each is used up over E cells, so that E blocks are open at a time:

    slot of a cell's records, E = 3:   cell 3: slots 3 2 1    cell 4: slots 4 3 2    cell 5: slots 5 4 3

Which block has which slot, which rows of a block go into which of its E cells, and where in the cell they stand, is
random, another way each (seed, epoch). The first E - 1 cells also draw from the last slots, whose blocks are so begun
twice. The N mod B records behind the last whole block are spread over the epoch, one in each of as many equal parts.

Nothing is stored: position and id are each computed from the other, at any position, at any N.
"""

from __future__ import annotations

__all__ = ["BlockOrder", "OPEN_BLOCKS", "block_order_name", "block_order_parts"]

import re
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError
from shufflestore.orders.kernels import check_range, invert, permute, permute_each
from shufflestore.orders.keys import MAX_LENGTH, OrderKey, derive_key, hashed

OPEN_BLOCKS: Final = 64
"""Blocks open at a time where nobody said: 64 MiB of blocks of 1 MiB; batches of 256 then hold records of 63 blocks."""
_NAME: Final = re.compile(r"blocks:([1-9][0-9]{0,18}):([1-9][0-9]{0,18})")


def block_order_name(block_records: int, open_blocks: int) -> str:
    """Return what a saved state calls the order.

    Raises:
        OptionError: One is no integer in [1, 2**62].

    >>> block_order_name(2048, 64)
    'blocks:2048:64'
    """
    for name, value in (("block_records", block_records), ("open_blocks", open_blocks)):
        is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
        if not is_integer or not 1 <= value <= MAX_LENGTH:
            raise OptionError(f"{name}={value!r}; an integer in [1, 2**62] is needed")
    return f"blocks:{block_records}:{open_blocks}"


def block_order_parts(name: str) -> tuple[int, int] | None:
    """Return block_records and open_blocks of an order's name; None for any other text."""
    match = _NAME.fullmatch(name)
    if match is None or max(sizes := (int(match[1]), int(match[2]))) > MAX_LENGTH:
        return None
    return sizes


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Every record once, in random order, out of `open_blocks` blocks of `block_records` at a time.

    It depends on these two, the length, seed and epoch, and on nothing else. It is no uniform order: records of one
    block stand within open_blocks cells of block_records positions each, so batches of data that is stored sorted hold
    few of its kinds. `shufflestore.testing.block_quality` says how few.

    Attributes:
        length: Records, in [0, 2**62].
        block_records: Of a block, in [1, 2**62]; more than there are records are all of them.
        open_blocks: Blocks from which a cell draws, in [1, 2**62]; more than there are blocks are all of them.
        seed: Any integer; taken modulo 2**64.
        epoch: In [0, 2**64).

    Raises:
        OrderError: `length` is out of range.
        OptionError: Another one is.

    >>> order = BlockOrder(1_000, block_records=10, open_blocks=4)
    >>> sorted(order.ids(np.arange(1_000)).tolist()) == list(range(1_000))
    True
    >>> len(set(order.ids(np.arange(500, 510)) // 10))
    4
    """

    length: int
    block_records: int
    open_blocks: int = OPEN_BLOCKS
    seed: int = 0
    epoch: int = 0
    _slots: OrderKey = field(init=False, repr=False, compare=False)
    """Of the blocks: slot -> block."""
    _cells: OrderKey = field(init=False, repr=False, compare=False)
    """Of a cell's positions: place -> rank. A rank is the number of a row in its block's own order."""
    _rows: OrderKey = field(init=False, repr=False, compare=False)
    """Of a block's rows: rank -> row."""
    _rest: OrderKey = field(init=False, repr=False, compare=False)
    """Of the records behind the last whole block."""

    def __post_init__(self) -> None:
        """Derive four keys; about 60 us."""
        word = f"{self.name}:{self.length}"
        whole = derive_key(self.length, self.seed, self.epoch, word)  # checks the three
        size = min(self.block_records, max(whole.length, 1))
        lengths = {"slots": whole.length // size, "cells": size, "rows": size, "rest": whole.length % size}
        for part, length in lengths.items():
            object.__setattr__(self, f"_{part}", derive_key(length, self.seed, self.epoch, f"{word}/{part}"))

    @property
    def name(self) -> str:
        """What a saved state calls it: "blocks:block_records:open_blocks"."""
        return block_order_name(self.block_records, self.open_blocks)

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the record ids at (n,) positions; see `Order.ids`.

        O(n): 25 to 45 ns an id with the kernels of `kernels.warm(families=True)`, 170 to 470 ns before.
        """
        places = _checked(positions, "position", self.length)
        rest, period, size = self._rest.length, self._period, self._cells.length
        if not rest:
            return self._drawn(places)
        part = np.minimum(places // period, rest)
        behind = places - part * period - self._offsets(part)
        inserted = np.flatnonzero(behind == 0)
        # One inserted at the very end has no other record behind it: any place will do for it.
        ids = self._drawn(np.minimum(places - part - (behind > 0), self._slots.length * size - 1))
        ids[inserted] = self._slots.length * size + permute(part[inserted], self._rest)
        return ids

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where (n,) record ids stand; see `Order.positions`. Costs what `ids` costs."""
        records = _checked(ids, "id", self.length)
        rest, period, main = self._rest.length, self._period, self._slots.length * self._cells.length
        if not rest:
            return self._undrawn(records)
        inserted = np.flatnonzero(records >= main)
        part = invert(records[inserted] - main, self._rest)
        places = self._undrawn(np.minimum(records, main - 1))
        before = np.minimum(places // (period - 1), rest)
        places += before + (places - before * (period - 1) >= self._offsets(before))
        places[inserted] = part * period + self._offsets(part)
        return places

    # -- whole blocks ------------------------------------------------------------------------------

    def _drawn(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at places among the records of whole blocks."""
        size, blocks = self._cells.length, self._slots.length
        cell = places // size
        rank = permute_each(places - cell * size, cell, self._cells)
        slot = cell - self._group(rank)
        slot[slot < 0] += blocks
        block = permute(slot, self._slots)
        return block * size + permute_each(rank, block, self._rows)

    def _undrawn(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        size, blocks = self._cells.length, self._slots.length
        block = ids // size
        rank = permute_each(ids - block * size, block, self._rows, is_inverse=True)
        cell = invert(block, self._slots) + self._group(rank)
        cell[cell >= blocks] -= blocks
        return cell * size + permute_each(rank, cell, self._cells, is_inverse=True)

    def _group(self, rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many cells after its block was opened a row is drawn, in [0, open blocks)."""
        # At most size times blocks, hence within the length: no overflow.
        found: NDArray[np.int64] = rank * min(self.open_blocks, self._slots.length) // self._cells.length
        return found

    # -- the records behind them -------------------------------------------------------------------

    @property
    def _period(self) -> int:
        """Positions of each part of the epoch that gets one of them: at least 2, as they are fewer than a block's."""
        return self.length // max(self._rest.length, 1)

    def _offsets(self, part: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where in its part of the epoch the inserted record stands, each in [0, period).

        In what remains of the epoch behind those parts none is inserted: beyond its end.
        """
        if not part.size:
            return part
        first, last = int(part.min()), int(part.max())
        # Neighbouring positions share a part: one hash each then.
        few = last - first < part.size
        numbers = np.arange(first, last + 1) if few else part
        offsets: NDArray[np.int64] = (hashed(numbers, self._rest.words[1]) % np.uint64(self._period)).astype(np.int64)
        offsets[numbers == self._rest.length] = self.length
        return offsets[part - first] if few else offsets


def _checked(values: NDArray[np.int64], noun: str, length: int) -> NDArray[np.int64]:
    """Return a contiguous int64 array of values in range; the caller's own where it is one."""
    array: NDArray[np.int64] = np.ascontiguousarray(values, dtype=np.int64)
    check_range(array, noun, length)
    return array
