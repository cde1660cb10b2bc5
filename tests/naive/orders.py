"""Orders and partitions in plain Python integers and lists: slow, and believed at sight."""

from __future__ import annotations

import hashlib

G = 0x9E3779B97F4A7C15
M64, M32 = 2**64 - 1, 2**32 - 1


def mix(z: int) -> int:
    z &= M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def purpose(word: str, length: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{word}:{length}".encode(), digest_size=8).digest(), "little")


def words(seed: int, epoch: int, purpose: int, count: int = 12) -> list[int]:
    s = mix(seed + G)
    s = mix((s ^ epoch) + 2 * G)
    s = mix((s ^ purpose) + 3 * G)
    return [mix(s + (i + 1) * G) for i in range(count)]


def table(length: int, key: list[int]) -> list[int]:
    return sorted(range(length), key=lambda i: mix(key[0] + (i + 1) * G))


def scramble(x: int, k: int) -> int:
    h = ((x ^ (k & M32)) * 0x9E3779B1) & M32
    h ^= h >> 15
    return ((h ^ (k >> 32)) * 0x85EBCA77) & M32


def walk(x: int, length: int, key: list[int], *, backwards: bool) -> int:
    bits = (length - 1).bit_length() // 2
    low_count = 2**bits
    high_count = -(-length // low_count)
    while True:
        high, low = divmod(x, low_count)
        for r in reversed(range(0, 12, 2)) if backwards else range(0, 12, 2):
            if backwards:
                low = (low - (scramble(high, key[r + 1]) * low_count >> 32)) % low_count
                high = (high - (scramble(low, key[r]) * high_count >> 32)) % high_count
            else:
                high = (high + (scramble(low, key[r]) * high_count >> 32)) % high_count
                low = (low + (scramble(high, key[r + 1]) * low_count >> 32)) % low_count
        x = high * low_count + low
        if x < length:
            return x


def permute_words(positions: list[int], length: int, key: list[int]) -> list[int]:
    if length <= 65_536:
        order = table(length, key)
        return [order[p] for p in positions]
    return [walk(p, length, key, backwards=False) for p in positions]


def invert_words(ids: list[int], length: int, key: list[int]) -> list[int]:
    if length <= 65_536:
        order = table(length, key)
        return [order.index(i) for i in ids]
    return [walk(i, length, key, backwards=True) for i in ids]


def permute(positions: list[int], length: int, seed: int, epoch: int, word: str = "global") -> list[int]:
    return permute_words(positions, length, words(seed, epoch, purpose(word, length)))


def invert(ids: list[int], length: int, seed: int, epoch: int, word: str = "global") -> list[int]:
    return invert_words(ids, length, words(seed, epoch, purpose(word, length)))


def partition(length: int, batch: int, world: int, remainder: str, start: int = 0) -> list[list[list[int]]]:
    """The positions of each step of each rank: [rank][step][place]."""
    left = list(range(start, length))
    ranks: list[list[list[int]]] = [[] for _ in range(world)]
    while left:
        share, left = left[: batch * world], left[batch * world :]
        if len(share) < batch * world:
            if remainder == "drop":
                break
            head = 0
            while remainder == "pad" and len(share) < batch * world:
                share.append(head % length)
                head += 1
        for rank in range(world):
            ranks[rank].append([p for i, p in enumerate(share) if i % world == rank])
    return ranks
