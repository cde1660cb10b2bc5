"""Keys: what names one order of [0, N), and the 64-bit hash that makes them.

The chain and its constants are promised across versions; `docs/design/orders.md` has known answers.
"""

from __future__ import annotations

__all__ = ["GOLDEN", "MAX_LENGTH", "OrderKey", "ROUND_COUNT", "TABLE_LENGTH", "derive_key", "hashed", "mix64"]

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError, OrderError

MAX_LENGTH = 2**62  # then both halves of an id fit 31 bits, and a half plus a delta 32
TABLE_LENGTH = 65_536  # the longest order kept as a table: 128 KiB, at most 4 ms to build
ROUND_COUNT = 12  # every test passes from 6 rounds on at the lengths that use the network
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd

_MASK64 = 2**64 - 1


def mix64(value: int) -> int:
    """Return the 64-bit hash of `value`: the SplitMix64 finaliser, a bijection on [0, 2**64).

    Method: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.

    >>> hex(mix64(1))
    '0x5692161d100b05e5'
    """
    z = value & _MASK64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK64
    return z ^ z >> 31


@dataclass(frozen=True, slots=True)
class OrderKey:
    """One order of [0, length): what `permute` and `invert` need and nothing else.

    A small value: equal when length and words are, hashable, and pickled without what it caches.
    The table of a short order (128 KiB, its inverse as much again) is built on first use.

    Attributes:
        length: Records in the order, in [0, 2**62].
        words: The 12 key words, each in [0, 2**64).
        lanes: The words as (24,) uint32, low half first: what the rounds use. Not to be written to.
        shape: (3,) int64 length, bits of the low half, count of the high halves. Not to be written to.
    """

    length: int
    words: tuple[int, ...]
    lanes: NDArray[np.uint32] = field(init=False, repr=False, compare=False)
    shape: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _table: NDArray[np.uint16] | None = field(init=False, repr=False, compare=False, default=None)
    _inverse: NDArray[np.uint16] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Check the length and split the words into the 32-bit lanes of the rounds."""
        _check_length(self.length)
        if len(self.words) != ROUND_COUNT or not all(0 <= word <= _MASK64 for word in self.words):
            raise OrderError(f"an order needs {ROUND_COUNT} key words in [0, 2**64), not {self.words!r}")
        halves = [half for word in self.words for half in (word & 0xFFFFFFFF, word >> 32)]
        object.__setattr__(self, "lanes", np.array(halves, dtype=np.uint32))
        shift = (self.length - 1).bit_length() // 2 if self.length else 0
        object.__setattr__(self, "shape", np.array([self.length, shift, -(-self.length >> shift)], dtype=np.int64))

    def __reduce__(self) -> tuple[type[OrderKey], tuple[int, tuple[int, ...]]]:
        return OrderKey, (self.length, self.words)

    @property
    def is_table(self) -> bool:
        """Whether the order is short enough to be kept as a table."""
        return self.length <= TABLE_LENGTH

    def table(self, *, is_inverse: bool) -> NDArray[np.uint16]:
        """Return position -> id, or id -> position, of an order that `is_table`; built once.

        Two threads may both build it; they build the same.
        """
        if self._table is None:
            hashes = hashed(np.arange(self.length), self.words[0])
            # mix64 is a bijection, so keys never tie and any sort gives the same table.
            object.__setattr__(self, "_table", np.argsort(hashes).astype(np.uint16))
        table = self._table
        assert table is not None
        if not is_inverse:
            return table
        inverse = self._inverse
        if inverse is None:
            inverse = np.empty(self.length, dtype=np.uint16)
            inverse[table] = np.arange(self.length, dtype=np.uint16)
            object.__setattr__(self, "_inverse", inverse)
        return inverse


def derive_key(length: int, seed: int = 0, epoch: int = 0, word: str = "global") -> OrderKey:
    """Return the key of the order that (length, seed, epoch, word) name.

    Neighbouring seeds and epochs share nothing: the three are hashed one after the other, never
    added. For one seed no two epochs share a state.

    Args:
        length: Records, in [0, 2**62].
        seed: Any integer, taken modulo 2**64; -1 and 2**64 - 1 are one seed.
        epoch: In [0, 2**64).
        word: Names the stream: "global", or a source's name in a mixture.

    Raises:
        OrderError: `length` is out of range.
        OptionError: `seed` or `epoch` is not an integer, or `epoch` is out of range.

    About 10 us.

    >>> derive_key(1000) == derive_key(1000, seed=2**64), derive_key(1000) == derive_key(1000, epoch=1)
    (True, False)
    """
    _check_length(length)
    _check_integer("seed", seed)
    _check_integer("epoch", epoch)
    if not 0 <= epoch <= _MASK64:
        raise OptionError(f"epoch {epoch} is outside [0, 2**64); epochs count from 0")
    digest = hashlib.blake2b(f"{word}:{int(length)}".encode(), digest_size=8).digest()
    state = mix64(int(seed) + GOLDEN)
    state = mix64((state ^ int(epoch)) + 2 * GOLDEN)
    state = mix64((state ^ int.from_bytes(digest, "little")) + 3 * GOLDEN)
    words = tuple(mix64(state + (i + 1) * GOLDEN) for i in range(ROUND_COUNT))
    return OrderKey(int(length), words)


def _check_integer(name: str, value: int) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise OptionError(f"{name} must be an integer, not {value!r} of type {type(value).__name__}")


def _check_length(length: int) -> None:
    if isinstance(length, (bool, np.bool_)) or not isinstance(length, (int, np.integer)):
        raise OrderError(f"length must be an integer in [0, 2**62], not {length!r}")
    if not 0 <= length <= MAX_LENGTH:
        raise OrderError(f"length {length} is outside [0, 2**62]; no order has so many records")


def hashed(numbers: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
    """Return mix64(word + (i + 1) G) for each i of (n,) `numbers`, none of them negative, as fresh (n,) uint64."""
    z = numbers.astype(np.uint64)
    z += np.uint64(1)
    z *= np.uint64(GOLDEN)
    z += np.uint64(word)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
