from __future__ import annotations

import pickle

import numpy as np
import pytest

from shufflestore.errors import OptionError, OrderError
from shufflestore.orders.kernels import permute
from shufflestore.orders.keys import MAX_LENGTH, OrderKey, derive_key, mix64
from tests.naive import orders as naive


@pytest.mark.parametrize(
    ("length", "seed", "epoch", "purpose"),
    [
        (1000, 0, 0, 0x7900CAC3D2D39EB7),
        (65536, 0, 0, 0xA354C1BFDC4AEED1),
        (65537, 0, 0, 0xF017E93CCF479D12),
        (1000000, 42, 3, 0x06D678DA7D3FAFAE),
        (1073741825, 1, 1, 0x33E66CB006617251),
        (10**12, 9223372036854775813, 17, 0x20415F949D86770A),
    ],
)
def test_a_key_is_the_promised_hash_of_length_seed_epoch_and_word(length, seed, epoch, purpose):
    assert naive.purpose("global", length) == purpose
    assert list(derive_key(length, seed, epoch).words) == naive.words(seed, epoch, purpose)


def test_the_promised_words_of_one_purpose_are_these():
    assert naive.words(42, 3, 1)[:2] == [0x08FD1EE3FDC7C8AC, 0x91CB9487C5BFADAB]
    assert mix64(1) == naive.mix(1)


def test_seeds_are_taken_modulo_two_to_the_64():
    assert derive_key(10, -1) == derive_key(10, 2**64 - 1)
    assert derive_key(10, np.int64(-5)) == derive_key(10, 2**64 - 5)
    assert derive_key(10, 2**64 + 3) == derive_key(10, 3)


def test_neighbouring_seeds_and_epochs_never_share_a_key():
    keys = {
        derive_key(1000, seed, epoch, word) for seed in range(30) for epoch in range(30) for word in ("global", "b")
    }
    assert len(keys) == 30 * 30 * 2
    assert len({word for key in keys for word in key.words}) == 30 * 30 * 2 * 12


def test_the_length_is_part_of_the_key():
    first = [permute(range(100), derive_key(length)).tolist() for length in (10**6, 10**6 + 1)]
    assert sum(a == b for a, b in zip(*first, strict=True)) < 3


@pytest.mark.parametrize("length", [-1, MAX_LENGTH + 1, 1.0, True, "10", None])
def test_a_length_that_no_order_has_is_refused(length):
    with pytest.raises(OrderError, match="length"):
        derive_key(length)


@pytest.mark.parametrize(
    ("seed", "epoch", "named"),
    [(0, -1, "epoch"), (0, 2**64, "epoch"), (0, 1.5, "epoch"), (0, True, "epoch"), ("1", 0, "seed"), (None, 0, "seed")],
)
def test_a_seed_or_epoch_out_of_range_is_named(seed, epoch, named):
    with pytest.raises(OptionError, match=named):
        derive_key(10, seed, epoch)


def test_a_key_is_a_value_and_is_pickled_without_its_table():
    key = derive_key(50_000, 3)
    permute(range(10), key)
    copy = pickle.loads(pickle.dumps(key))
    assert copy == key
    assert hash(copy) == hash(key)
    assert len(pickle.dumps(key)) < 1000
    assert permute(range(10), copy).tolist() == permute(range(10), key).tolist()


def test_key_words_are_checked():
    with pytest.raises(OrderError, match="12 key words"):
        OrderKey(10, (1, 2, 3))
    with pytest.raises(OrderError, match="12 key words"):
        OrderKey(10, (2**64,) * 12)


def test_tables_are_two_bytes_an_entry_and_lanes_are_four():
    key = derive_key(65_536)
    assert key.is_table
    assert key.table(is_inverse=False).dtype == np.uint16
    assert key.table(is_inverse=True).dtype == np.uint16
    assert key.lanes.dtype == np.uint32
    assert not derive_key(65_537).is_table
