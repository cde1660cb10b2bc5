"""A keyed bijection on [0, N): position in the order -> record id, and back.

The order is computed and never stored, so that memory, start-up and seek do not grow with N.

    N <= 65,536   a table: the positions sorted by a keyed hash. Exactly uniform over keys that
                  behave as random; 12 Feistel rounds are measurably not, for N <= 8.
    N >  65,536   a mixed-radix Feistel network on 2**a x B >= N, 12 rounds, cycle walking.

Two implementations give the same ids bit by bit: a numpy twin that is ready at once, and a
numba kernel several times as fast that `warm` compiles (1.0 to 1.5 s with the import of numba). numba is
imported by `warm` and by nothing else, so worker processes and small uses never load it.

A *family* (`permute_each`) is as many permutations of one length as there are numbers, each computed with the same
network under the key words xor a hash of its number: the cells and blocks of `orders.blocks`. A table for each would
be gigabytes.

All arithmetic is unsigned and every operand is cast: numba turns uint64 with int64 into int64 or
float64 in silence, and numpy turns it into float64. Constants, algorithm and known answers are
promised across versions; `docs/design/orders.md` has them with their measurements.
"""

from __future__ import annotations

__all__ = [
    "MAX_LENGTH",
    "OrderKey",
    "TABLE_LENGTH",
    "check_range",
    "derive_key",
    "invert",
    "is_warm",
    "permute",
    "permute_each",
    "permute_range",
    "warm",
]

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shufflestore.errors import OrderError
from shufflestore.orders.keys import GOLDEN, MAX_LENGTH, ROUND_COUNT, TABLE_LENGTH, OrderKey, derive_key, hashed

_LANE_A, _LANE_B = 0x9E3779B1, 0x85EBCA77
_BLOCK = 1024  # ids a pass: both 4-byte lanes, 8 KiB, stay in the first-level cache
_TWIN_BLOCK = 8192  # larger, to spread numpy's 0.5 us a call; six 32 KiB scratch arrays

# (out, members, shape, lanes, word, is_inverse) -> index of the first entry out of range, or -1
_Kernel = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32], np.uint64, bool], int]
_lock = threading.RLock()
# A fork waits for a compilation in another thread: its child would wait for ever, for numba's own lock too.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_kernel: _Kernel | None = None
_family_kernel: _Kernel | None = None


def permute(positions: ArrayLike, key: OrderKey, *, compiled: bool | None = None) -> NDArray[np.int64]:
    """Return the record ids that stand at `positions` of the order `key`.

    Args:
        positions: (n,) integers, each in [0, key.length), in any order, repeats allowed. Not modified.
        key: See `keys.derive_key`.
        compiled: True for the numba kernel (compiled now if need be), False for the numpy twin,
            None for the kernel once `warm` has run and the twin before. The ids are the same.

    Returns:
        (n,) int64 ids, freshly allocated, entry i for `positions[i]`.

    Raises:
        OrderError: A position is not an integer in [0, key.length); the first one is named.

    O(n). The kernel costs about 3 ns an id and releases the GIL, the twin 20 to 30 ns; a table 1 ns.
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
            raise OrderError(
                _outside("position", position, 0 if position == wanted[0] else len(wanted) - 1, key.length)
            )
    if len(wanted) == 1:
        return _apply(np.array([wanted[0]], dtype=np.int64), key, "position", compiled)
    # numpy counts by a float quotient; from this end the quotient is exact at any size.
    end = wanted[0] + len(wanted) * wanted.step
    return _apply(np.arange(wanted[0], end, wanted.step, dtype=np.int64), key, "position", compiled)


def permute_each(
    values: NDArray[np.int64],
    members: NDArray[np.int64],
    key: OrderKey,
    *,
    is_inverse: bool = False,
    compiled: bool | None = None,
) -> NDArray[np.int64]:
    """Return what each value becomes in the permutation of [0, key.length) that has its member's number.

    There is no table, whatever the length. Which permutation a number names is the key's; two numbers' permutations
    share nothing that the tests see.

    Args:
        values: (n,) int64, each in [0, key.length). Not modified.
        members: (n,) int64, the permutation's number for each value, at least 0.
        key: Of the family.
        is_inverse: Undo it.
        compiled: As in `permute`, of a kernel of its own.

    Returns:
        (n,) int64, freshly allocated.

    Raises:
        OrderError: A value is out of range; the first one is named. Or there are not as many members as values.

    O(n). The kernel costs about 6 ns a value, the twin 70 to 250 ns: dear where values walk.

    >>> key = derive_key(3, seed=1)
    >>> permute_each(np.array([0, 1, 2, 0, 1, 2]), np.array([5, 5, 5, 6, 6, 6]), key).tolist()
    [1, 2, 0, 0, 2, 1]
    """
    out, members = np.array(values, dtype=np.int64), np.ascontiguousarray(members, dtype=np.int64)
    if out.ndim != 1 or out.shape != members.shape:
        raise OrderError(f"values of shape {out.shape} and members of shape {members.shape}; one each is needed")
    if compiled and _family_kernel is None:
        warm(families=True)
    kernel = _family_kernel if compiled is None or compiled else None
    if kernel is None:
        check_range(out, "value", key.length)
        _twin(out, key, is_inverse=is_inverse, members=members)
        return out
    entry = kernel(out, members, key.shape, key.lanes, np.uint64(key.words[0]), is_inverse)
    if entry >= 0:
        raise OrderError(_outside("value", int(out[entry]), entry, key.length))
    return out


def is_warm() -> bool:
    """Say whether the numba kernel is compiled, so that `permute` uses it by default."""
    return _kernel is not None


def warm(*, families: bool = False) -> float:
    """Compile the numba kernel, both directions, and use it from now on.

    Call it before worker processes are forked, or each of them compiles for itself. A fork in another
    thread waits until it is done.

    Args:
        families: Compile that of `permute_each` too.

    Returns:
        Seconds spent, the import of numba included; 0.0 if all was ready.
    """
    global _kernel, _family_kernel
    begin = time.perf_counter()
    with _lock:
        if _kernel is not None and (_family_kernel is not None or not families):
            return 0.0
        if _kernel is None:
            _kernel = _compile(is_family=False)
        if _family_kernel is None and families:
            _family_kernel = _compile(is_family=True)
        return time.perf_counter() - begin


def check_range(values: NDArray[np.int64], noun: str, length: int) -> None:
    """Raise OrderError for the first of (n,) contiguous values outside [0, length); `noun` says what they are."""
    # As unsigned, a negative value is larger than every length: one comparison serves both ends.
    if values.size and int(values.view(np.uint64).max()) >= length:
        entry = int(np.argmax(values.view(np.uint64) >= np.uint64(length)))
        raise OrderError(_outside(noun, int(values[entry]), entry, length))


def _outside(noun: str, value: int, entry: int, length: int) -> str:
    return f"{noun} {value} (entry {entry}) is outside [0, {length}); the order has {length} records"


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return a fresh contiguous int64 copy of (n,) integers, unchecked against a length."""
    given: NDArray[Any] = np.asarray(values)
    if given.ndim == 1 and given.dtype == np.int64:
        return np.array(given)
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
        check_range(out, noun, key.length)
        return key.table(is_inverse=is_inverse)[out].astype(np.int64) if out.size else out
    if compiled and _kernel is None:
        warm()
    kernel = _kernel if compiled is None or compiled else None
    if kernel is None:
        check_range(out, noun, key.length)
        _twin(out, key, is_inverse=is_inverse)
        return out
    entry = kernel(out, out, key.shape, key.lanes, np.uint64(0), is_inverse)
    if entry >= 0:
        raise OrderError(_outside(noun, int(out[entry]), entry, key.length))
    return out


def _twin(out: NDArray[np.int64], key: OrderKey, *, is_inverse: bool, members: NDArray[np.int64] | None = None) -> None:
    """Map `out` in place by numpy alone; entries must be in range. With `members`, each in its own permutation."""
    for begin in range(0, out.size, _TWIN_BLOCK):
        part = out[begin : begin + _TWIN_BLOCK].view(np.uint64)
        tweaks = None if members is None else hashed(members[begin : begin + _TWIN_BLOCK], key.words[0])
        part[:] = _network(part, key, is_inverse, tweaks)
        over = np.flatnonzero(part >= np.uint64(key.length))
        while over.size:  # cycle walking: above 65,536 at most 0.4 % of a block goes round again
            part[over] = _network(part[over], key, is_inverse, None if tweaks is None else tweaks[over])
            over = over[part[over] >= np.uint64(key.length)]


def _network(
    x: NDArray[np.uint64], key: OrderKey, is_inverse: bool, tweaks: NDArray[np.uint64] | None
) -> NDArray[np.uint64]:
    """Return one pass of the 12 rounds over (n,) values below high_count << shift; key words xor (n,) tweaks."""
    _, shift, high_count = key.shape.tolist()
    lanes: Any = key.lanes  # one an id and word where there are tweaks
    if tweaks is not None:
        halves = tweaks.astype(np.uint32), (tweaks >> np.uint64(32)).astype(np.uint32)
        lanes = [lane ^ half for word in key.lanes.reshape(-1, 2) for lane, half in zip(word, halves, strict=True)]
    count, drop = np.uint32(high_count), np.uint32(32 - shift)
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
    back: NDArray[np.uint64] = high.astype(np.uint64)
    back <<= np.uint64(shift)
    back |= low
    return back


def _scramble(
    x: NDArray[np.uint32], a: Any, b: Any, out: NDArray[np.uint32], other: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Return the round function of `x` in `out`; `other` is scratch."""
    np.bitwise_xor(x, a, out=out)
    out *= np.uint32(_LANE_A)
    out ^= np.right_shift(out, np.uint32(15), out=other)
    out ^= b
    out *= np.uint32(_LANE_B)
    return out


def _compile_rounds(*, is_family: bool) -> Any:
    """Return the 12 rounds for numba: (high, low, part, n, lanes, (count, shift), is_inverse, tweaks), in place.

    `tweaks` are the low and the high half of each id's, (2, n); not looked at where it is no family.

    Single rounds outside, ids inside. Each inner loop is then one short chain without branches, which
    becomes vector instructions and overlaps with its neighbours. Whole kernel, the same minutes of one
    machine: 3.6 ns an id, against 4.1 with two rounds in a loop, 4.7 with four and 32, scalar, with all twelve.

    Every step stays in lanes of 32 bits but the products, which are taken two at a time: mixed widths
    become 512-bit instructions, beside which such processors close one of their three vector ports (an
    Emerald Rapids: 3.7 ns an id instead of 6.2).
    """
    from numba import njit  # here, so that only those who warm the kernel pay for the import

    u32, u64 = np.uint32, np.uint64
    lane_a, lane_b, half, width = u32(_LANE_A), u32(_LANE_B), u32(15), u64(32)

    @njit(nogil=True, inline="always")
    def scramble(x: Any, a: Any, b: Any) -> Any:
        h = u32((x ^ a) * lane_a)
        return u32((u32(h ^ (h >> half)) ^ b) * lane_b)

    @njit(nogil=True, inline="always")
    def tweaked(lane: Any, halves: Any, i: Any) -> Any:
        return u32(lane ^ halves[i])

    @njit(nogil=True, inline="always")
    def plain(lane: Any, halves: Any, i: Any) -> Any:
        return lane

    word = tweaked if is_family else plain

    @njit(nogil=True, inline="always")
    def scale(part: Any, pairs: Any, count: Any) -> None:
        # The upper half of each 32 x 32 bit product, two at a time in lanes of 64 bits.
        below = u64(0xFFFFFFFF)
        for i in range(pairs):
            x = part[i]
            one, two = u64(u64(x & below) * count), u64(u64(x >> width) * count)
            part[i] = u64(u64(one >> width) | u64(two & u64(~below)))

    @njit(nogil=True, inline="always")
    def rounds(high: Any, low: Any, part: Any, n: Any, lanes: Any, domain: Any, is_inverse: Any, tweaks: Any) -> None:
        count, shift = domain
        lo, hi = tweaks[0], tweaks[1]
        pairs = part.view(np.uint64)
        # `& 31` changes nothing, but tells the compiler that the shift needs no 64 bits.
        drop, mask = u32(u32(u32(32) - shift) & u32(31)), u32(u32(u32(1) << shift) - u32(1))
        for k in range(0, 24, 4):
            r = 20 - k if is_inverse else k
            a, b, c, d = lanes[r], lanes[r + 1], lanes[r + 2], lanes[r + 3]
            if is_inverse:
                for i in range(n):
                    low[i] = u32(u32(low[i] - u32(scramble(high[i], word(c, lo, i), word(d, hi, i)) >> drop)) & mask)
                    part[i] = scramble(low[i], word(a, lo, i), word(b, hi, i))
                scale(pairs, u32(u32(n + 1) >> u32(1)), u64(count))
                for i in range(n):
                    total = u32(high[i] - part[i])
                    high[i] = min(total, u32(total + count))
            else:
                for i in range(n):
                    part[i] = scramble(low[i], word(a, lo, i), word(b, hi, i))
                scale(pairs, u32(u32(n + 1) >> u32(1)), u64(count))
                for i in range(n):
                    total = u32(high[i] + part[i])
                    high[i] = min(total, u32(total - count))
                    low[i] = u32(u32(low[i] + u32(scramble(high[i], word(c, lo, i), word(d, hi, i)) >> drop)) & mask)

    return rounds


def _compile_tweak() -> Any:
    """Return for numba (tweaks, i, member, word): writes entry i, both halves of `keys.hashed` of one number."""
    from numba import njit  # here, so that only those who warm the kernel pay for the import

    u32, u64 = np.uint32, np.uint64
    golden, mix_a, mix_b = u64(GOLDEN), u64(0xBF58476D1CE4E5B9), u64(0x94D049BB133111EB)

    @njit(nogil=True, inline="always")
    def tweak(tweaks: Any, i: Any, member: Any, word: Any) -> None:
        z = u64(u64(u64(u64(member) + u64(1)) * golden) + word)
        z = u64(u64(z ^ u64(z >> u64(30))) * mix_a)
        z = u64(u64(z ^ u64(z >> u64(27))) * mix_b)
        z = u64(z ^ u64(z >> u64(31)))
        tweaks[0, i], tweaks[1, i] = u32(z & u64(0xFFFFFFFF)), u32(z >> u64(32))

    return tweak


def _compile(*, is_family: bool) -> _Kernel:
    """Return the numba kernel: one function for both directions, compiled for one signature."""
    from numba import njit  # here, so that only those who warm the kernel pay for the import

    u32, u64, i64 = np.uint32, np.uint64, np.int64
    one, rounds, tweak = i64(1), _compile_rounds(is_family=is_family), _compile_tweak()

    def kernel(out: Any, members: Any, shape: Any, lanes: Any, word: Any, is_inverse: Any) -> int:
        length, shift, count = shape[0], u32(shape[1]), u32(shape[2])
        bits, mask, last = u64(shift), u64(u64(u64(1) << u64(shift)) - u64(1)), i64(length - one)
        high, low, scratch = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32), np.zeros(_BLOCK, np.uint32)
        slots = np.empty(_BLOCK, np.int64)
        tweaks = np.empty((2, _BLOCK), np.uint32)
        sign = i64(0)  # negative once a value was: the sign bits are gathered without a branch
        for i in range(out.size):
            sign |= out[i] | (last - out[i])
        for i in range(out.size if sign < 0 else 0):
            if out[i] < 0 or out[i] > last:
                return i
        for begin in range(0, out.size, _BLOCK):
            part = out[begin : begin + _BLOCK]
            n = part.size
            for i in range(n):
                high[i], low[i] = u32(u64(part[i]) >> bits), u32(u64(part[i]) & mask)
            if is_family:
                for i in range(n):
                    tweak(tweaks, i, members[begin + i], word)
            is_walk, sign = False, i64(-1)
            while sign < 0:
                rounds(high, low, scratch, n, lanes, (count, shift), is_inverse, tweaks)
                sign = i64(0)
                if is_walk:
                    for i in range(n):
                        part[slots[i]] = i64(u64(u64(high[i]) << bits) | u64(low[i]))
                        sign |= last - part[slots[i]]
                else:
                    for i in range(n):
                        x = i64(u64(u64(high[i]) << bits) | u64(low[i]))
                        part[i] = x
                        sign |= last - x
                n, is_walk = 0, True
                for i in range(part.size if sign < 0 else 0):
                    if part[i] > last:  # cycle walking: outside [0, length), at most 0.4 %, so round again
                        high[n], low[n] = u32(u64(part[i]) >> bits), u32(u64(part[i]) & mask)
                        if is_family:
                            tweak(tweaks, n, members[begin + i], word)
                        slots[n] = i
                        n += 1
        return -1

    signature = "int64(int64[::1], int64[::1], int64[::1], uint32[::1], uint64, boolean)"
    compiled: _Kernel = njit(signature, nogil=True)(kernel)
    return compiled
