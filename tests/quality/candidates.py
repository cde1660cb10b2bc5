"""What is put to the tests: the package's orders, numpy as the control, and orders that must fail."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from shufflestore.orders.kernels import derive_key, permute, permute_each
from tests.naive import orders as naive

EPOCHS_A_SEED = 8  # key k is (seed k // 8, epoch k % 8): consecutive seeds by consecutive epochs
_G = 0x9E3779B97F4A7C15


class Candidate(Protocol):
    """Something that makes orders."""

    name: str
    longest: int  # the longest order it can make in reasonable time

    def tables(self, length: int, first_key: int, count: int) -> np.ndarray:
        """Whole orders of `count` consecutive keys, (count, length) integers."""

    def ids(self, positions: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
        """The ids at positions of one order, (n,) int64."""


class Package:
    """`shufflestore.orders`, as it is served."""

    name = "shufflestore"
    longest = 2**62

    def tables(self, length, first_key, count):
        """By the package's own arithmetic for one key; all keys at once here, and compared with it."""
        words = key_words(length, first_key, count, 1)[:, 0]
        steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_G)
        out = np.empty((count, length), dtype=np.int32)
        rows = max(1, 2**21 // length)
        for begin in range(0, count, rows):
            out[begin : begin + rows] = np.argsort(mix(words[begin : begin + rows, None] + steps), axis=1)
        for k in (0, count // 2, count - 1):
            key = derive_key(length, *seed_and_epoch(first_key + k))
            assert np.array_equal(out[k], permute(np.arange(length), key)), "the battery tests another order"
        return out

    def ids(self, positions, length, seed, epoch):
        return permute(positions, derive_key(length, seed, epoch))


class Family:
    """One key's family of permutations: battery key k is its member k. No tables, so the network at every length."""

    name = "family"
    longest = 2**62

    def tables(self, length, first_key, count):
        key = derive_key(length, 1, 0, "rows")
        values = np.tile(np.arange(length), count)
        members = np.repeat(np.arange(first_key, first_key + count), length)
        return permute_each(values, members, key).reshape(count, length).astype(np.int32)

    def ids(self, positions, length, seed, epoch):
        member = np.full(len(positions), seed * EPOCHS_A_SEED + epoch)
        return permute_each(positions, member, derive_key(length, 1, 0, "rows"))


class Numpy:
    """numpy's own Fisher-Yates over PCG64: the control, which a fair battery passes."""

    name = "numpy (control)"
    longest = 2**20

    def __init__(self):
        self._made = functools.lru_cache(maxsize=24)(
            lambda length, seed, epoch: np.random.default_rng([seed, epoch]).permutation(length)
        )

    def tables(self, length, first_key, count):
        rng = np.random.default_rng([first_key, length])
        return rng.permuted(np.tile(np.arange(length, dtype=np.int32), (count, 1)), axis=1)

    def ids(self, positions, length, seed, epoch):
        return self._made(length, seed, epoch)[positions]


class FewRounds:
    """The package's network with fewer rounds than it has, at every length."""

    longest = 2**62

    def __init__(self, rounds):
        self.rounds = rounds
        self.name = f"network, {rounds} rounds"

    def tables(self, length, first_key, count):
        words = key_words(length, first_key, count, self.rounds)
        out = np.empty((count, length), dtype=np.int32)
        rows = max(1, 2**20 // length)
        for begin in range(0, count, rows):
            part = words[begin : begin + rows]
            positions = np.broadcast_to(np.arange(length, dtype=np.uint64), (part.shape[0], length))
            out[begin : begin + rows] = self._walk(positions, length, part)
        return out

    def ids(self, positions, length, seed, epoch):
        words = naive.words(seed, epoch, naive.purpose("global", length), self.rounds)
        return self._walk(positions.astype(np.uint64)[None, :], length, np.array([words], dtype=np.uint64))[0]

    def _walk(self, positions, length, words):
        x = self._pass(positions, length, words)
        while (over := x >= np.uint64(length)).any():
            x = np.where(over, self._pass(x, length, words), x)
        return x.astype(np.int64)

    def _pass(self, x, length, words):
        bits = (length - 1).bit_length() // 2
        low_count, high_count = np.uint64(2**bits), np.uint64(-(-length // 2**bits))
        high, low = x // low_count, x % low_count
        for r in range(0, self.rounds, 2):
            high = (high + (_scramble(low, words[:, r, None]) * high_count >> np.uint64(32))) % high_count
            low = (low + (_scramble(high, words[:, r + 1, None]) * low_count >> np.uint64(32))) % low_count
        return high * low_count + low


class Lcg:
    """A linear congruence: id = (a p + c) mod N, a and c drawn from the key. Fast, exact, and no shuffle."""

    name = "linear congruence"
    longest = 2**31

    def tables(self, length, first_key, count):
        everything = np.arange(length)
        keys = (seed_and_epoch(first_key + k) for k in range(count))
        return np.stack([self.ids(everything, length, *key) for key in keys]).astype(np.int32)

    def ids(self, positions, length, seed, epoch):
        word = naive.words(seed, epoch, naive.purpose("global", length), 2)
        factor = word[0] % length
        while np.gcd(factor, length) != 1:
            factor = factor % length + 1
        return (positions * factor + word[1] % length) % length


class Buffer:
    """A stream through a buffer of 1,000: what is done where a true shuffle is too slow."""

    name = "buffer of 1,000"
    longest = 10**7

    def __init__(self, size=1_000):
        self.size = size

    def order(self, length, seed, epoch):
        rng = np.random.default_rng([seed, epoch])
        held = list(range(min(self.size, length)))
        out = []
        for incoming in range(len(held), length):
            slot = int(rng.integers(len(held)))
            out.append(held[slot])
            held[slot] = incoming
        return np.array(out + [held[i] for i in rng.permutation(len(held))], dtype=np.int64)


def seed_and_epoch(key: int) -> tuple[int, int]:
    """The seed and epoch that the battery calls key number `key`."""
    return divmod(key, EPOCHS_A_SEED)


def mix(z: np.ndarray) -> np.ndarray:
    """`naive.mix` of (...) uint64; arrays wrap silently."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key_words(length: int, first_key: int, count: int, words: int) -> np.ndarray:
    """The first key words of consecutive keys, (count, words) uint64."""
    keys = np.arange(first_key, first_key + count, dtype=np.uint64)
    seeds, epochs = keys // np.uint64(EPOCHS_A_SEED), keys % np.uint64(EPOCHS_A_SEED)
    state = mix(seeds + np.uint64(_G))
    state = mix((state ^ epochs) + np.uint64(2 * _G % 2**64))
    state = mix((state ^ np.uint64(naive.purpose("global", length))) + np.uint64(3 * _G % 2**64))
    return mix(state[:, None] + np.arange(1, words + 1, dtype=np.uint64) * np.uint64(_G))


def _scramble(x: np.ndarray, word: np.ndarray) -> np.ndarray:
    mask = np.uint64(0xFFFFFFFF)
    h = (x ^ (word & mask)) * np.uint64(0x9E3779B1) & mask
    h ^= h >> np.uint64(15)
    return (h ^ (word >> np.uint64(32))) * np.uint64(0x85EBCA77) & mask
