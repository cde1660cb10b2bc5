from __future__ import annotations

import numpy as np
import pytest

from shufflestore.errors import OptionError
from shufflestore.testing import block_quality


def windowed(blocks, records, opened, rng):
    """Blocks moved whole, then shuffled within windows."""
    order = (rng.permutation(blocks)[:, None] * records + np.arange(records)).reshape(-1, opened * records)
    return rng.permuted(order, axis=1).ravel()


def test_stored_order_has_one_block_a_batch_and_loads_each_once():
    found = block_quality(np.arange(4096), block_records=64, batch_size=64)
    assert found.distinct_blocks == 1
    assert (found.peak_open_blocks, found.loads_per_block) == (1, 1)
    assert found.variance[1] == pytest.approx(64)


def test_the_variance_is_that_of_drawn_values():
    """What is computed from counts alone, against the definition, over many drawings of the blocks' values."""
    rng = np.random.default_rng(1)
    ids = windowed(64, 32, 4, rng)
    found = block_quality(ids, block_records=32, batch_size=32)
    values = rng.normal(size=(20_000, 64))
    values -= values.mean(axis=1, keepdims=True)
    values /= values.std(axis=1, keepdims=True)
    for k in found.variance:
        size = 32 * k
        parts = ids[: len(ids) // size * size].reshape(-1, size) // 32
        counts = np.stack([np.bincount(part, minlength=64) for part in parts]) / size
        drawn = float(((values @ counts.T) ** 2).mean() * size)
        assert found.variance[k] == pytest.approx(drawn, rel=0.03)


@pytest.mark.parametrize("opened", [2, 8, 32])
def test_windows_hold_as_many_blocks_as_they_have(opened):
    found = block_quality(windowed(128, 64, opened, np.random.default_rng(2)), block_records=64, batch_size=64)
    assert (found.peak_open_blocks, found.loads_per_block) == (opened, 1)
    # A simple random sample of 64 out of 64 records of each of so many blocks.
    expected = (1 + 63 * 63 / (opened * 64 - 1) - 64 / 128) * 128 / 127
    assert found.variance[1] == pytest.approx(expected, rel=0.03)


def test_a_true_shuffle_has_a_variance_of_one_and_all_blocks_open():
    found = block_quality(np.random.default_rng(3).permutation(2**16), block_records=256, batch_size=64)
    assert found.peak_open_blocks == 256
    assert list(found.variance) == [1, 4, 16, 64]
    assert list(found.variance.values()) == pytest.approx([1, 1, 1, 0.94], abs=0.06)


def test_a_block_whose_next_record_is_more_than_half_an_epoch_away_is_let_go():
    ids = np.concatenate([np.arange(0, 8), np.arange(16, 64), np.arange(8, 16)])  # block 0 at both ends
    found = block_quality(ids, block_records=16, batch_size=16)
    assert (found.loads_per_block, found.peak_open_blocks) == (5 / 4, 1)


def test_longer_runs_than_half_the_epoch_are_left_out():
    assert list(block_quality(np.arange(100), block_records=10, batch_size=10).variance) == [1, 4]


def test_a_last_block_of_fewer_records_counts_as_one():
    assert block_quality(np.arange(103), block_records=10, batch_size=10).loads_per_block == 1


@pytest.mark.parametrize("ids", [[0, 1, 1, 3], [1, 2, 3, 4], [0.0, 1.0], [[0, 1], [2, 3]]])
def test_what_is_no_epoch_is_refused(ids):
    with pytest.raises(OptionError, match="those of one epoch"):
        block_quality(ids, block_records=1, batch_size=1)


@pytest.mark.parametrize(("name", "value"), [("block_records", 0), ("block_records", 51), ("batch_size", 51)])
def test_sizes_out_of_range_are_named(name, value):
    sizes = {"block_records": 10, "batch_size": 10, name: value}
    with pytest.raises(OptionError, match=rf"{name}={value} with 100 records; it must be in \[1, n / 2\]"):
        block_quality(np.arange(100), **sizes)
