"""One epoch's order of one data set: which record id stands at which position.

Every order fills one small contract, `Order`, and is exact: a bijection between positions and ids.
"""

from __future__ import annotations

__all__ = [
    "GlobalOrder",
    "ORDER_NAMES",
    "OnceOrder",
    "Order",
    "SequentialOrder",
    "Shuffle",
    "make_order",
    "order_named",
]

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError, OrderError
from shufflestore.orders.blocks import OPEN_BLOCKS, BlockOrder, block_order_name, block_order_parts
from shufflestore.orders.kernels import check_range, invert, permute
from shufflestore.orders.keys import MAX_LENGTH, OrderKey, derive_key

ORDER_NAMES: Final = ("sequential", "global", "once")
"""Of the orders without parameters; "blocks:RECORDS:OPEN" is the fourth."""
Shuffle = Literal["blocks"] | bool | None
"""What users say: True for the global order, "blocks" for the one of `orders.blocks`, else as stored."""


class Order(Protocol):
    """A bijection of [0, length): position -> record id, and back.

    An order is a value: it holds no place, and the same arguments give the same ids forever.
    """

    @property
    def length(self) -> int:
        """Records in the order."""

    @property
    def name(self) -> str:
        """What a saved state calls this kind of order."""

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the record ids at (n,) `positions`, each in [0, length), as fresh (n,) int64.

        Raises:
            OrderError: A position is out of range; the first one is named.
        """

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where (n,) record `ids`, each in [0, length), stand, as fresh (n,) int64.

        Raises:
            OrderError: An id is out of range; the first one is named.
        """


@dataclass(frozen=True, slots=True)
class SequentialOrder:
    """The records as they are stored: position and id are one.

    >>> SequentialOrder(3).ids(np.array([2, 0])).tolist()
    [2, 0]
    """

    length: int

    def __post_init__(self) -> None:
        """Check the length."""
        if not 0 <= self.length <= MAX_LENGTH:
            raise OrderError(f"length {self.length} is outside [0, 2**62]; no order has so many records")

    @property
    def name(self) -> str:
        """What a saved state calls this kind of order: "sequential"."""
        return "sequential"

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a checked copy of (n,) `positions`; see `Order.ids`."""
        return self._copy(positions, "position")

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a checked copy of (n,) `ids`; see `Order.positions`."""
        return self._copy(ids, "id")

    def _copy(self, values: NDArray[np.int64], noun: str) -> NDArray[np.int64]:
        out = np.array(values, dtype=np.int64, order="C", ndmin=1)
        check_range(out, noun, self.length)
        return out


@dataclass(frozen=True, slots=True)
class GlobalOrder:
    """A uniformly random order of all records, another one each (seed, epoch).

    It depends on (length, seed, epoch, word) and nothing else, so converting, moving or re-sharding a
    data set keeps it.

    Attributes:
        length: Records, in [0, 2**62].
        seed: Any integer; taken modulo 2**64.
        epoch: In [0, 2**64).
        word: Names the stream, so that two sources of one mixture are not shuffled alike.
        key: What `permute` needs, derived from the four.

    Raises:
        OrderError: `length` is out of range.
        OptionError: `epoch` is.

    >>> order = GlobalOrder(1000, seed=0, epoch=0)
    >>> order.ids(np.arange(4)).tolist()
    [271, 882, 289, 86]
    >>> order.positions(np.array([882])).tolist()
    [1]
    """

    length: int
    seed: int = 0
    epoch: int = 0
    word: str = "global"
    key: OrderKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive the key; about 20 us, no table and no compilation yet."""
        object.__setattr__(self, "key", derive_key(self.length, self.seed, self.epoch, self.word))

    @property
    def name(self) -> str:
        """What a saved state calls it: "global", followed by ":word" where the stream has another word."""
        return "global" if self.word == "global" else f"global:{self.word}"

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the record ids at (n,) `positions`; see `Order.ids` and `kernels.permute`."""
        return permute(positions, self.key)

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where (n,) record `ids` stand; see `Order.positions` and `kernels.invert`."""
        return invert(ids, self.key)


@dataclass(frozen=True, slots=True)
class OnceOrder(GlobalOrder):
    """One random order for every epoch: `GlobalOrder`'s of epoch 0.

    >>> OnceOrder(9, seed=4, epoch=7).ids(np.arange(9)).tolist() == GlobalOrder(9, 4, 0).ids(np.arange(9)).tolist()
    True
    """

    def __post_init__(self) -> None:
        """Derive the key of epoch 0, whatever `epoch` is."""
        object.__setattr__(self, "key", derive_key(self.length, self.seed, 0, self.word))

    @property
    def name(self) -> str:
        """What a saved state calls it: "once", followed by ":word" where the stream has another word."""
        return "once" if self.word == "global" else f"once:{self.word}"


def make_order(kind: str, length: int, seed: int = 0, epoch: int = 0) -> Order:
    """Return the order called `kind`.

    Args:
        kind: "sequential", "global" (another random order each epoch), "once" (the same one), or
            "blocks:RECORDS:OPEN" with two integers, `blocks.BlockOrder`'s block_records and open_blocks.
        length: Records, in [0, 2**62].
        seed: Any integer, taken modulo 2**64; not used by "sequential".
        epoch: In [0, 2**64); not used by "sequential" and "once".

    Raises:
        OptionError: There is no such order; the message lists the names.
        OrderError: `length` is out of range.

    >>> make_order("once", 10).name
    'once'
    """
    if kind == "sequential":
        return SequentialOrder(length)
    if kind == "global":
        return GlobalOrder(length, seed, epoch)
    if kind == "once":
        return OnceOrder(length, seed, epoch)
    parts = block_order_parts(kind) if isinstance(kind, str) else None
    if parts is not None:
        return BlockOrder(length, *parts, seed, epoch)
    names = ", ".join(repr(name) for name in ORDER_NAMES)
    raise OptionError(f"there is no order {kind!r}; the orders are {names} and 'blocks:RECORDS:OPEN'")


def order_named(
    shuffle: Shuffle, block_records: int | None = None, open_blocks: int | None = None, usual_records: int | None = None
) -> str:
    """Return the name of the order that a user's arguments ask for, as `make_order` takes it.

    Args:
        shuffle: True, "blocks", or False or None.
        block_records: Of a block, for "blocks".
        open_blocks: Blocks open at a time, for "blocks"; 64 where nobody says.
        usual_records: What stands for block_records where nobody says; None where that is not known.

    Raises:
        OptionError: Another word, sizes without "blocks", sizes out of range, or block_records is needed.

    >>> order_named(True), order_named("blocks", 2048)
    ('global', 'blocks:2048:64')
    """
    if isinstance(shuffle, str) and shuffle != "blocks":
        raise OptionError(f"shuffle={shuffle!r}; allowed are [None, False, True, 'blocks']")
    if shuffle != "blocks":
        for name, value in (("block_records", block_records), ("open_blocks", open_blocks)):
            if value is not None:
                raise OptionError(f"{name}={value!r} goes with shuffle='blocks', not with shuffle={shuffle!r}")
        return "global" if shuffle else "sequential"
    records = usual_records if block_records is None else block_records
    if records is None:
        raise OptionError(
            "shuffle='blocks' needs block_records= here, since nobody knows how large this data set's records are: take as "
            "many as fill about 1 MiB"
        )
    return block_order_name(records, OPEN_BLOCKS if open_blocks is None else open_blocks)
