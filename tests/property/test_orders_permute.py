"""A1: the permutation is a bijection, undone by its inverse, and one answer comes from three codes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shufflestore.orders.kernels import derive_key, invert, permute, permute_range
from tests.naive import orders as naive

SEEDS = (0, 1, 2, 42, 2**31, 2**32 + 1, 2**63 + 5, 2**64 - 1)
# 65,537 is the first computed length; just above 2**16 and 2**18 the most values fall outside and walk.
NETWORK_LENGTHS = (65_537, 65_791, 70_000, 100_003, 131_072, 131_073, 262_144, 262_145, 262_657, 1_000_003)
LARGE_LENGTHS = (
    2**31 - 1,
    2**31,
    2**31 + 7,
    2**32 - 1,
    2**32,
    2**32 + 7,
    10**12,
    2**40,
    2**53 + 1,
    2**61 + 1,
    2**62 - 1,
    2**62,
)


def is_bijection(ids, length):
    """A bitmap: every bit set once."""
    seen = np.zeros(length, dtype=bool)
    seen[ids] = True
    return ids.size == length and bool(seen.all())


def check_whole_table(length, seed):
    key = derive_key(length, seed, epoch=seed % 7)
    positions = np.arange(length, dtype=np.int64)
    ids = permute(positions, key)
    assert is_bijection(ids, length), (length, seed)
    assert np.array_equal(invert(ids, key), positions), (length, seed)


def test_every_length_to_512_is_a_bijection_for_8_seeds():
    for length in range(513):
        for seed in SEEDS:
            check_whole_table(length, seed)


def test_every_length_to_300_is_the_oracles_order():
    for length in range(301):
        key = derive_key(length, length, 5)
        assert permute(range(length), key).tolist() == naive.permute(list(range(length)), length, length, 5)


@pytest.mark.parametrize("length", NETWORK_LENGTHS)
def test_every_position_of_a_computed_order_is_served_once(length):
    for compiled in (True, False):
        key = derive_key(length, length, 1)
        ids = permute_range(0, length, 1, key, compiled=compiled)
        assert is_bijection(ids, length)
        assert np.array_equal(invert(ids, key, compiled=compiled), np.arange(length))


@given(
    length=st.integers(2, 5_000) | st.integers(65_500, 66_600) | st.integers(65_537, 2**62),
    seed=st.integers(-(2**64), 2**65),
    epoch=st.integers(0, 2**64 - 1),
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
    word=st.sampled_from(["global", "images", "Übung", ""]),
)
@settings(max_examples=300, deadline=None)
@example(length=65_536, seed=0, epoch=0, places=[0.0], word="global")
@example(length=65_537, seed=2**64 - 1, epoch=2**64 - 1, places=[0.0, 0.9999999], word="global")
@example(length=2**62, seed=-1, epoch=0, places=[0.0, 0.5], word="global")
def test_kernel_twin_and_oracle_agree_and_undo_themselves(length, seed, epoch, places, word):
    positions = [min(int(place * length), length - 1) for place in places] + [0, length - 1]
    key = derive_key(length, seed, epoch, word)
    ids = permute(positions, key, compiled=True)
    assert ids.dtype == np.int64
    assert ids.tolist() == permute(positions, key, compiled=False).tolist()
    assert ids.tolist() == naive.permute(positions, length, seed, epoch, word)
    assert invert(ids, key, compiled=True).tolist() == positions
    assert invert(ids, key, compiled=False).tolist() == positions
    if length < 70_000:
        assert naive.invert(ids.tolist()[:3], length, seed, epoch, word) == positions[:3]


@given(length=st.sampled_from(LARGE_LENGTHS), seed=st.integers(0, 2**64 - 1), first=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_large_orders_stay_in_range_repeat_nothing_and_undo_themselves(length, seed, first):
    key = derive_key(length, seed)
    start = min(int(first * length), length - 5_000)
    positions = np.arange(start, start + 5_000, dtype=np.int64)
    ids = permute(positions, key, compiled=True)
    assert ids.min() >= 0
    assert ids.max() < length
    assert np.unique(ids).size == ids.size
    assert np.array_equal(invert(ids, key, compiled=True), positions)
    assert np.array_equal(ids, permute_range(start, start + 5_000, 1, key))
    assert np.array_equal(ids[:500], permute(positions[:500], key, compiled=False))


@pytest.mark.campaign
def test_every_length_to_4096_is_a_bijection_for_8_seeds():
    for length in range(4097):
        for seed in SEEDS:
            check_whole_table(length, seed)


@pytest.mark.campaign
def test_200_random_lengths_to_ten_million_are_bijections():
    lengths = np.random.default_rng(2026).integers(1, 10**7, 200)
    for seed, length in enumerate(lengths.tolist()):
        ids = permute_range(0, length, 1, derive_key(length, seed, 3), compiled=True)
        assert is_bijection(ids, length), (length, seed)


@pytest.mark.campaign
@pytest.mark.parametrize("length", [2**40, 2**53 + 1, 2**62])
def test_ten_million_points_of_a_large_order_undo_themselves(length):
    key = derive_key(length, 8, 9)
    for block in range(10):
        positions = np.random.default_rng(block).integers(0, length, 10**6)
        ids = permute(positions, key, compiled=True)
        assert np.array_equal(invert(ids, key, compiled=True), positions)
        assert np.array_equal(ids[::50], permute(positions[::50], key, compiled=False))


@pytest.mark.campaign
@pytest.mark.parametrize("length", [2**31 + 7, 2**32 + 7])
def test_a_full_pass_beyond_32_bits_serves_every_record_once_within_three_minutes(length):
    from numba import njit

    @njit(nogil=True)
    def mark(ids, seen):
        """Set the bit of each id; return how many were set before."""
        repeated = 0
        for i in range(ids.size):
            place, bit = ids[i] >> 3, np.uint8(np.uint8(1) << np.uint8(ids[i] & 7))
            repeated += (seen[place] & bit) != 0
            seen[place] |= bit
        return repeated

    key, seen = derive_key(length, 1, 2), np.zeros((length + 7) // 8, dtype=np.uint8)
    begin, served = time.monotonic(), 0
    for start in range(0, length, 2**20):
        ids = permute_range(start, min(start + 2**20, length), 1, key, compiled=True)
        assert ids.min() >= 0
        assert ids.max() < length
        assert mark(ids, seen) == 0
        served += ids.size
    print(f"{length:,} records in {time.monotonic() - begin:.0f} s")
    assert served == length
    # As many ids as records, all in range and none repeated: every record was served once.
