"""How uneven batches of the rolling block order are on the worst data, and that its small permutations show no pattern."""

from __future__ import annotations

import numpy as np
import pytest

from shufflestore.orders.blocks import BlockOrder
from shufflestore.orders.epoch import GlobalOrder
from shufflestore.orders.kernels import warm
from shufflestore.testing import block_quality, shuffle_quality
from tests.quality import battery
from tests.quality.candidates import Family

BLOCKS, RECORDS, BATCH = 512, 1024, 256
TABLE = {8: (32.2, 126, 424, 824), 32: (8.3, 30, 116, 398), 64: (4.25, 14.1, 54, 203), 128: (2.25, 6.1, 24, 91)}
"""Open blocks -> variance of the mean of 1, 4, 16 and 64 batches: the table of docs/design/orders.md."""


@pytest.mark.parametrize("opened", TABLE)
def test_the_variance_of_batches_of_clustered_data_is_that_of_the_table(opened):
    warm(families=True)
    epochs = [BlockOrder(BLOCKS * RECORDS, RECORDS, opened, 3, epoch) for epoch in range(2)]
    found = [block_quality(o.ids(np.arange(o.length)), block_records=RECORDS, batch_size=BATCH) for o in epochs]
    variances = [float(np.mean([each.variance[k] for each in found])) for k in (1, 4, 16, 64)]
    # No values are drawn, so all that is left to chance is which rows a batch gets.
    assert variances == pytest.approx(TABLE[opened], rel=0.04)
    for each in found:
        assert each.peak_open_blocks == opened
        assert each.loads_per_block == 1 + (opened - 1) / BLOCKS


def test_one_batch_has_the_variance_that_sampling_theory_gives():
    """Of a cell with m records of each of E blocks a batch of n takes a simple random sample."""
    warm(families=True)
    for opened in (8, 64):
        order, m = BlockOrder(BLOCKS * RECORDS, RECORDS, opened, 1), RECORDS // opened
        expected = (1 + (BATCH - 1) * (m - 1) / (RECORDS - 1) - BATCH / BLOCKS) * BLOCKS / (BLOCKS - 1)
        found = block_quality(order.ids(np.arange(order.length)), block_records=RECORDS, batch_size=BATCH)
        assert found.variance[1] == pytest.approx(expected, rel=0.01)


def test_the_global_order_has_a_variance_of_one_and_every_block_open():
    warm()
    order = GlobalOrder(BLOCKS * RECORDS, 5)
    found = block_quality(order.ids(np.arange(order.length)), block_records=RECORDS, batch_size=BATCH)
    assert list(found.variance.values()) == pytest.approx([1, 1, 1, 1], abs=0.05)
    assert found.peak_open_blocks == BLOCKS


def test_the_quality_report_tells_blocks_from_a_true_shuffle_and_the_rows_of_a_block_come_shuffled():
    warm(families=True)
    length = 2**17
    ids = [BlockOrder(length, 256, 64, 1, epoch).ids(np.arange(length)) for epoch in range(2)]
    found = shuffle_quality(ids, batch_size=64)
    assert not found.is_like_true_shuffle
    assert abs(found.block_diversity.z) > 6
    # A block's rows, as they come, against their numbers: 512 permutations of 256.
    for epoch in ids:
        rows = epoch[np.argsort(epoch // 256, kind="stable")].reshape(-1, 256) % 256
        centred = np.arange(256) - 127.5
        correlation = ((rows - 127.5) @ centred) / (centred**2).sum()
        assert abs(correlation.mean()) * np.sqrt(512 * 255) < 4.5
        assert correlation.var() * 255 == pytest.approx(1, abs=0.3)
        assert (rows == np.arange(256)).sum() == pytest.approx(512, abs=110)


@pytest.mark.parametrize("length", [2, 3, 4, 12, 16, 31, 64, 97, 256, 1000])
def test_members_of_a_family_show_no_pattern_of_their_own_or_between_neighbours(length):
    """At 5 to 8 the network is measurably not uniform, whatever its key; see docs/design/orders.md."""
    warm(families=True)
    assert battery.judge_small(Family(), length, battery.SMALL_LENGTHS["small"][length]).failures == ()


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("length", [12, 16, 31, 64, 97, 256, 1000, 1024, 4096])
def test_the_full_battery_of_a_family(length):
    warm(families=True)
    assert battery.judge_small(Family(), length, battery.SMALL_LENGTHS["full"][length]).failures == ()
