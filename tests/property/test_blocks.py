"""The rolling block order: every record once, the same from any position and at any world size, and computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shufflestore.errors import StateError
from shufflestore.orders.blocks import BlockOrder
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import make_order
from shufflestore.orders.kernels import warm
from shufflestore.orders.partition import Partition, Topology
from tests.naive import blocks as naive

SHAPES = [
    (0, 1, 1), (1, 1, 1), (2, 1, 2), (7, 10, 3), (10, 10, 3), (11, 10, 3), (19, 10, 3), (20, 10, 3), (999, 10, 64),
    (1000, 1, 64), (1000, 999, 64), (1000, 7, 1000), (1023, 64, 8), (4096, 64, 8), (5003, 100, 16), (70_001, 512, 64),
    (70_001, 3, 64), (140_000, 70_000, 2), (200_003, 2, 8), (131_072, 1024, 128),
]  # fmt: skip
"""Records, records of a block, open blocks: tails of 0, 1 and one less than a block, cells and blocks with tables and
without, more blocks than 65,536."""
sizes = st.integers(1, 40) | st.integers(1, 3_000)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_record_comes_once_in_each_of_4_epochs_and_is_found_again(shape, compiled, monkeypatch):
    """160 orders."""
    warm(families=True)
    if not compiled:
        monkeypatch.setattr("shufflestore.orders.kernels._family_kernel", None)
    everything = np.arange(shape[0], dtype=np.int64)
    for epoch in range(4):
        order = BlockOrder(*shape, seed=11, epoch=epoch)
        ids = order.ids(everything)
        seen = np.zeros(shape[0], np.int64)
        np.add.at(seen, ids, 1)
        assert (seen == 1).all()
        assert np.array_equal(order.positions(ids), everything)


@given(
    length=st.integers(0, 60) | st.integers(0, 2_000),
    records=sizes,
    opened=sizes,
    seed=st.integers(-(2**64), 2**65),
    epoch=st.integers(0, 2**64 - 1),
)
@settings(max_examples=150, deadline=None)
@example(length=1000, records=10, opened=4, seed=0, epoch=0)
@example(length=1999, records=1000, opened=1, seed=2**64 - 1, epoch=2**64 - 1)
def test_the_order_is_the_naive_twins(length, records, opened, seed, epoch):
    order = BlockOrder(length, records, opened, seed, epoch)
    ids = order.ids(np.arange(length))
    assert ids.tolist() == naive.whole(length, records, opened, seed, epoch)
    assert np.array_equal(order.positions(ids), np.arange(length))
    for position in range(0, length, max(1, length // 5)):
        assert naive.id_at(position, length, records, opened, seed, epoch) == ids[position]


@given(
    length=st.integers(1, 2**62) | st.sampled_from([2**40, 2**40 + 1023, 10**12, 2**53 + 1, 2**62 - 1, 2**62]),
    records=st.integers(1, 5_000) | st.sampled_from([1, 2**20, 2**31, 2**33, 2**62]),
    opened=st.integers(1, 200) | st.just(2**62),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=12),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=200, deadline=None)
@example(length=2**62, records=1, opened=2**62, places=[0.5], seed=1)
@example(length=2**62 - 1, records=2**31, opened=64, places=[0.5], seed=1)
def test_orders_of_any_length_stay_in_range_undo_themselves_and_are_the_naive_twins(
    length, records, opened, places, seed
):
    order = BlockOrder(length, records, opened, seed)
    positions = sorted({min(int(place * length), length - 1) for place in places} | {0, length - 1, length // 2})
    ids = order.ids(np.array(positions, np.int64))
    assert ids.tolist() == [naive.id_at(p, length, records, opened, seed, 0) for p in positions]
    assert 0 <= int(ids.min()) <= int(ids.max()) < length
    assert order.positions(ids).tolist() == positions


@given(length=st.integers(1, 400), records=sizes, opened=sizes, start=st.floats(0, 1), count=st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_a_piece_of_the_order_is_what_the_whole_has_there(length, records, opened, start, count):
    order = BlockOrder(length, records, opened, 5, 1)
    whole = order.ids(np.arange(length))
    first = int(start * (length - 1))
    piece = np.arange(first, min(first + count, length))
    assert np.array_equal(order.ids(piece), whole[piece])
    assert np.array_equal(order.ids(piece[::-1]), whole[piece[::-1]])
    assert np.array_equal(order.positions(whole[piece]), piece)


def delivered(order, batch, world, start=0):
    """The ids that all ranks deliver from a position to the end, in global order."""
    out = []
    parts = [Partition(order.length, batch, Topology(rank, world), "uneven", start) for rank in range(world)]
    for step in range(parts[0].step_count):
        shares = [order.ids(part.positions(step, step + 1)[0]).tolist() for part in parts]
        out += [share[place] for place in range(batch) for share in shares if place < len(share)]
    return out


@pytest.mark.parametrize("shape", [(0, 4, 2), (1, 4, 2), (23, 4, 2), (40, 8, 3), (53, 10, 64), (60, 7, 3)])
def test_every_position_of_a_short_epoch_can_be_resumed_from_at_world_sizes_1_to_7(shape):
    order = BlockOrder(*shape, seed=9, epoch=2)
    whole = order.ids(np.arange(shape[0])).tolist()
    for position in range(shape[0] + 1):
        saved = Cursor("data", 1, order.name, 9, 2, position, shape[0]).to_dict()
        cursor = Cursor.from_dict(json.loads(json.dumps(saved)))
        again = make_order(cursor.order, cursor.length, cursor.seed, cursor.epoch)
        for world in range(1, 8):
            assert delivered(again, 3, world, cursor.position) == whole[position:]


@pytest.mark.parametrize("other", ["global", "sequential", "once", "blocks:10:5", "blocks:11:4", "blocks:1:04"])
def test_a_state_of_another_order_is_refused(other):
    cursor = Cursor("data", 1, "blocks:10:4", 9, 2, 5, 100)
    cursor.check("data", "blocks:10:4", 9, 100)
    with pytest.raises(StateError, match=f"of order 'blocks:10:4', but the order here is '{other}'"):
        cursor.check("data", other, 9, 100)


@pytest.mark.campaign
@pytest.mark.parametrize("shape", [(10**7 + 7, 2048, 64), (10**7, 9, 64), (2**23 + 1, 2**17, 8)])
def test_ten_million_records_come_once(shape):
    warm(families=True)
    order = BlockOrder(*shape, seed=1)
    seen = np.zeros(shape[0], bool)
    for start in range(0, shape[0], 2**20):
        positions = np.arange(start, min(start + 2**20, shape[0]))
        ids = order.ids(positions)
        assert not seen[ids].any()
        seen[ids] = True
        assert np.array_equal(order.positions(ids), positions)
    assert seen.all()
