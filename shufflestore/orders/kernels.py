"""A keyed bijection on [0, N): position in the order -> record id, and back.

The order is computed and never stored, so that memory, start-up and seek do not grow with N.

    N <= 65,536   a table: the positions sorted by a keyed hash. Exactly uniform over keys that
                  behave as random; 12 Feistel rounds are measurably not, for N <= 8.
    N >  65,536   a mixed-radix Feistel network on 2**a x B >= N, 12 rounds, cycle walking.

Two implementations give the same ids bit by bit: a numpy twin that is ready at once, and a
numba kernel several times as fast that `warm` compiles (about 0.7 s with the import of numba). numba is
imported by `warm` and by nothing else, so worker processes and small uses never load it.

All arithmetic is unsigned and every operand is cast: numba turns uint64 with int64 into int64 or
float64 in silence, and numpy turns it into float64. Constants, algorithm and known answers are
promised across versions; `docs/design/orders.md` has them with their measurements.
"""

from __future__ import annotations

__all__ = [
    "MAX_LENGTH",
    "ROUND_COUNT",
    "TABLE_LENGTH",
    "OrderKey",
    "derive_key",
    "invert",
    "is_warm",
    "mix64",
    "permute",
    "permute_range",
    "warm",
]

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shufflestore.errors import OptionError, OrderError

MAX_LENGTH = 2**62  # then both halves of an id fit 31 bits, and a half plus a delta 32
TABLE_LENGTH = 65_536  # the longest order kept as a table: 128 KiB, at most 4 ms to build
ROUND_COUNT = 12  # every test passes from 6 rounds on at the lengths that use the network

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LANE_A, _LANE_B = 0x9E3779B1, 0x85EBCA77
_BLOCK = 1024  # ids a pass: both 4-byte lanes, 8 KiB, stay in the first-level cache
_TWIN_BLOCK = 8192  # larger, to spread numpy's 0.5 us a call; six 32 KiB scratch arrays

# (out, length, shift, high_count, lanes, is_inverse) -> index of the first entry out of range, or -1
_Kernel = Callable[[NDArray[np.int64], np.int64, np.uint32, np.uint32, NDArray[np.uint32], bool], int]
_lock = threading.Lock()
_kernel: _Kernel | None = None


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
    """

    length: int
    words: tuple[int, ...]
    _lanes: NDArray[np.uint32] = field(init=False, repr=False, compare=False)
    _table: NDArray[np.uint16] | None = field(init=False, repr=False, compare=False, default=None)
    _inverse: NDArray[np.uint16] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Check the length and split the words into the 32-bit lanes of the rounds."""
        _check_length(self.length)
        if len(self.words) != ROUND_COUNT or not all(0 <= word <= _MASK64 for word in self.words):
            raise OrderError(f"an order needs {ROUND_COUNT} key words in [0, 2**64), not {self.words!r}")
        halves = [half for word in self.words for half in (word & 0xFFFFFFFF, word >> 32)]
        object.__setattr__(self, "_lanes", np.array(halves, dtype=np.uint32))

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
            hashes = _mix64_array(self.words[0], self.length)
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

    >>> permute(range(4), derive_key(1000)).tolist()
    [271, 882, 289, 86]
    """
    _check_length(length)
    _check_integer("seed", seed)
    _check_integer("epoch", epoch)
    if not 0 <= epoch <= _MASK64:
        raise OptionError(f"epoch {epoch} is outside [0, 2**64); epochs count from 0")
    digest = hashlib.blake2b(f"{word}:{int(length)}".encode(), digest_size=8).digest()
    state = mix64(int(seed) + _GOLDEN)
    state = mix64((state ^ int(epoch)) + 2 * _GOLDEN)
    state = mix64((state ^ int.from_bytes(digest, "little")) + 3 * _GOLDEN)
    words = tuple(mix64(state + (i + 1) * _GOLDEN) for i in range(ROUND_COUNT))
    return OrderKey(int(length), words)


def permute(positions: ArrayLike, key: OrderKey, *, compiled: bool | None = None) -> NDArray[np.int64]:
    """Return the record ids that stand at `positions` of the order `key`.

    Args:
        positions: (n,) integers, each in [0, key.length), in any order, repeats allowed. Not modified.
        key: See `derive_key`.
        compiled: True for the numba kernel (compiled now if need be), False for the numpy twin,
            None for the kernel once `warm` has run and the twin before. The ids are the same.

    Returns:
        (n,) int64 ids, freshly allocated, entry i for `positions[i]`.

    Raises:
        OrderError: A position is not an integer in [0, key.length); the first one is named.

    O(n). The kernel costs about 4 ns an id and releases the GIL, the twin 20 to 30 ns; a table 1 ns.
    Method: generalised Feistel with cycle walking, Black and Rogaway, CT-RSA 2002.

    >>> sorted(permute(range(5), derive_key(5, seed=7)).tolist())
    [0, 1, 2, 3, 4]
    """
    return _apply(_integers(positions, "positions"), key, "position", compiled)


def invert(ids: ArrayLike, key: OrderKey, *, compiled: bool | None = None) -> NDArray[np.int64]:
    """Return the positions at which record `ids` stand in the order `key`: `permute` undone.

    Args:
        ids: (n,) integers, each in [0, key.length). Not modified.
        key: See `derive_key`.
        compiled: As in `permute`.

    Returns:
        (n,) int64 positions, freshly allocated, entry i for `ids[i]`.

    Raises:
        OrderError: An id is not an integer in [0, key.length); the first one is named.

    Costs what `permute` costs.

    >>> key = derive_key(10**12, seed=1)
    >>> invert(permute([5, 0], key), key).tolist()
    [5, 0]
    """
    return _apply(_integers(ids, "ids"), key, "id", compiled)


def permute_range(
    start: int, stop: int, step: int, key: OrderKey, *, compiled: bool | None = None
) -> NDArray[np.int64]:
    """Return the record ids at positions start, start + step, ... before stop, as `range` counts.

    Args:
        start: First position.
        stop: End, not included.
        step: Any integer but 0.
        key: See `derive_key`.
        compiled: As in `permute`.

    Returns:
        (n,) int64 ids, n = len(range(start, stop, step)), freshly allocated.

    Raises:
        OrderError: A position of the range lies outside [0, key.length), or step is 0.

    Saves `permute` the copy of its argument, about 0.3 ns an id.

    >>> key = derive_key(1000)
    >>> permute_range(0, 4, 2, key).tolist() == permute([0, 2], key).tolist()
    True
    """
    if step == 0:
        raise OrderError("a range of positions needs a step other than 0")
    wanted = range(int(start), int(stop), int(step))
    if not wanted:
        return np.empty(0, dtype=np.int64)
    for position in (wanted[0], wanted[-1]):
        if not 0 <= position < key.length:
            raise OrderError(_outside("position", position, 0 if position == wanted[0] else len(wanted) - 1, key))
    if len(wanted) == 1:
        return _apply(np.array([wanted[0]], dtype=np.int64), key, "position", compiled)
    # numpy counts by a float quotient; from this end the quotient is exact at any size.
    end = wanted[0] + len(wanted) * wanted.step
    return _apply(np.arange(wanted[0], end, wanted.step, dtype=np.int64), key, "position", compiled)


def is_warm() -> bool:
    """Say whether the numba kernel is compiled, so that `permute` uses it by default."""
    return _kernel is not None


def warm() -> float:
    """Compile the numba kernel, both directions, and use it from now on.

    Call it before worker processes are forked and never from a background thread: a fork while
    numba holds its compile lock leaves the child waiting forever.

    Returns:
        Seconds spent, the import of numba included; 0.0 if the kernel was ready.
    """
    global _kernel
    with _lock:
        if _kernel is not None:
            return 0.0
        begin = time.perf_counter()
        _kernel = _compile()
        return time.perf_counter() - begin


def _check_integer(name: str, value: int) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise OptionError(f"{name} must be an integer, not {value!r} of type {type(value).__name__}")


def _check_length(length: int) -> None:
    if isinstance(length, (bool, np.bool_)) or not isinstance(length, (int, np.integer)):
        raise OrderError(f"length must be an integer in [0, 2**62], not {length!r}")
    if not 0 <= length <= MAX_LENGTH:
        raise OrderError(f"length {length} is outside [0, 2**62]; no order has so many records")


def _outside(noun: str, value: int, entry: int, key: OrderKey) -> str:
    return f"{noun} {value} (entry {entry}) is outside [0, {key.length}); the order has {key.length} records"


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return a fresh contiguous int64 copy of (n,) integers, unchecked against a length."""
    given = np.asarray(values)
    if given.ndim != 1:
        raise OrderError(f"{name} must be one-dimensional, not of shape {given.shape}")
    if given.size and given.dtype.kind not in "iu":
        raise OrderError(f"{name} must be integers of at most 64 bits, not {given.dtype}")
    if given.dtype == np.uint64 and given.size and int(given.max()) >= 2**63:
        entry = int(np.argmax(given >= np.uint64(2**63)))
        raise OrderError(f"{name}[{entry}] is {given[entry]}, beyond every order; lengths end at 2**62")
    return np.array(given, dtype=np.int64, order="C")


def _apply(out: NDArray[np.int64], key: OrderKey, noun: str, compiled: bool | None) -> NDArray[np.int64]:
    """Map `out` in place; `noun` says what it holds and so the direction."""
    is_inverse = noun == "id"
    if key.is_table or not out.size:
        _check_range(out, key, noun)
        return key.table(is_inverse=is_inverse)[out].astype(np.int64) if out.size else out
    if compiled and _kernel is None:
        warm()
    kernel = _kernel if compiled is None or compiled else None
    shift = ((key.length - 1).bit_length()) // 2
    high_count = -(-key.length >> shift)
    if kernel is None:
        _check_range(out, key, noun)
        _twin(out, key, shift, high_count, is_inverse=is_inverse)
        return out
    entry = kernel(out, np.int64(key.length), np.uint32(shift), np.uint32(high_count), key._lanes, is_inverse)
    if entry >= 0:
        raise OrderError(_outside(noun, int(out[entry]), entry, key))
    return out


def _check_range(out: NDArray[np.int64], key: OrderKey, noun: str) -> None:
    # As unsigned, a negative value is larger than every length: one comparison serves both ends.
    if out.size and int(out.view(np.uint64).max()) >= key.length:
        entry = int(np.argmax(out.view(np.uint64) >= np.uint64(key.length)))
        raise OrderError(_outside(noun, int(out[entry]), entry, key))


def _mix64_array(word: int, count: int) -> NDArray[np.uint64]:
    """Return mix64(word + (i + 1) G) for i in [0, count), as (count,) uint64."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64(word)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _twin(out: NDArray[np.int64], key: OrderKey, shift: int, high_count: int, *, is_inverse: bool) -> None:
    """Map `out` in place by numpy alone; entries must be in range."""
    for begin in range(0, out.size, _TWIN_BLOCK):
        part = out[begin : begin + _TWIN_BLOCK].view(np.uint64)
        part[:] = _network(part, key, shift, high_count, is_inverse)
        over = np.flatnonzero(part >= np.uint64(key.length))
        while over.size:  # cycle walking: at most 0.4 % of a block goes round again
            part[over] = _network(part[over], key, shift, high_count, is_inverse)
            over = over[part[over] >= np.uint64(key.length)]


def _network(
    x: NDArray[np.uint64], key: OrderKey, shift: int, high_count: int, is_inverse: bool
) -> NDArray[np.uint64]:
    """Return one pass of the 12 rounds over (n,) values below high_count << shift."""
    lanes, count, drop = key._lanes, np.uint32(high_count), np.uint32(32 - shift)
    mask, wide = np.uint32((1 << shift) - 1), np.uint64(high_count)
    high = (x >> np.uint64(shift)).astype(np.uint32)
    low = x.astype(np.uint32) & mask
    step, product, other = np.empty_like(high), np.empty_like(x), np.empty_like(high)
    rounds = range(0, 2 * ROUND_COUNT, 4)
    for r in reversed(rounds) if is_inverse else rounds:
        if is_inverse:
            low -= np.right_shift(_scramble(high, lanes[r + 2], lanes[r + 3], step, other), drop, out=step)
            low &= mask
        np.multiply(_scramble(low, lanes[r], lanes[r + 1], step, other), wide, out=product)
        product >>= np.uint64(32)
        # uint32 wraps: of the sum and the sum less (or plus) one modulus, the smaller is in range.
        if is_inverse:
            np.subtract(high, product, out=high, casting="unsafe", dtype=np.uint32)
            np.minimum(high, np.add(high, count, out=other), out=high)
        else:
            np.add(high, product, out=high, casting="unsafe", dtype=np.uint32)
            np.minimum(high, np.subtract(high, count, out=other), out=high)
            low += np.right_shift(_scramble(high, lanes[r + 2], lanes[r + 3], step, other), drop, out=step)
            low &= mask
    return high.astype(np.uint64) << np.uint64(shift) | low


def _scramble(
    x: NDArray[np.uint32], a: np.uint32, b: np.uint32, out: NDArray[np.uint32], other: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Return the round function of `x` in `out`; `other` is scratch."""
    np.bitwise_xor(x, a, out=out)
    out *= np.uint32(_LANE_A)
    out ^= np.right_shift(out, np.uint32(15), out=other)
    out ^= b
    out *= np.uint32(_LANE_B)
    return out


def _compile() -> _Kernel:
    """Return the numba kernel: one function, compiled for one signature.

    Rounds outside, ids inside: each inner loop is then short and without branches, which the
    compiler turns into vector instructions; the 12 rounds written out one after the other run at
    32 ns an id, scalar. The few ids that leave [0, length) walk on one by one afterwards.
    """
    from numba import njit  # here, so that only those who warm the kernel pay for the import

    u32, u64, i64 = np.uint32, np.uint64, np.int64
    lane_a, lane_b, half, width = u32(_LANE_A), u32(_LANE_B), u32(15), u64(32)

    @njit(nogil=True)  # type: ignore[untyped-decorator]  # numba has no annotations
    def scramble(x: Any, a: Any, b: Any) -> Any:
        h = u32((x ^ a) * lane_a)
        return u32((u32(h ^ (h >> half)) ^ b) * lane_b)

    @njit(nogil=True)  # type: ignore[untyped-decorator]  # numba has no annotations
    def forward(high: Any, low: Any, a: Any, b: Any, c: Any, d: Any, count: Any, drop: Any, mask: Any) -> Any:
        total = u32(high + u32(u64(u64(scramble(low, a, b)) * u64(count)) >> width))
        high = min(total, u32(total - count))
        return high, u32(u32(low + u32(scramble(high, c, d) >> drop)) & mask)

    @njit(nogil=True)  # type: ignore[untyped-decorator]  # numba has no annotations
    def backward(high: Any, low: Any, a: Any, b: Any, c: Any, d: Any, count: Any, drop: Any, mask: Any) -> Any:
        low = u32(u32(low - u32(scramble(high, c, d) >> drop)) & mask)
        total = u32(high - u32(u64(u64(scramble(low, a, b)) * u64(count)) >> width))
        return min(total, u32(total + count)), low

    def kernel(out: Any, length: Any, shift: Any, count: Any, lanes: Any, is_inverse: Any) -> int:
        limit, bits, drop = u64(length), u64(shift), u32(u32(32) - shift)
        mask = u32(u32(u32(1) << shift) - u32(1))
        high, low = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
        for i in range(out.size):
            if u64(out[i]) >= limit:
                return i
        begin = 0
        while begin < out.size:
            n = min(_BLOCK, out.size - begin)
            for i in range(n):
                high[i] = u32(u64(out[begin + i]) >> bits)
                low[i] = u32(u64(out[begin + i]) & u64(mask))
            for k in range(0, 24, 4):
                r = 20 - k if is_inverse else k
                a, b, c, d = lanes[r], lanes[r + 1], lanes[r + 2], lanes[r + 3]
                if is_inverse:
                    for i in range(n):
                        high[i], low[i] = backward(high[i], low[i], a, b, c, d, count, drop, mask)
                else:
                    for i in range(n):
                        high[i], low[i] = forward(high[i], low[i], a, b, c, d, count, drop, mask)
            for i in range(n):
                out[begin + i] = i64(u64(u64(high[i]) << bits) | u64(low[i]))
            begin += n
        return -1

    signature = "int64(int64[::1], int64, uint32, uint32, uint32[::1], boolean)"
    return njit(signature, nogil=True)(kernel)  # type: ignore[no-any-return]  # numba has no annotations
