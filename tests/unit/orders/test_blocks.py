from __future__ import annotations

import pickle

import numpy as np
import pytest

from shufflestore.errors import OptionError, OrderError
from shufflestore.orders.blocks import OPEN_BLOCKS, BlockOrder, block_order_name, block_order_parts
from shufflestore.orders.epoch import make_order, order_named
from shufflestore.orders.kernels import derive_key, permute_each, warm


def all_ids(order):
    return order.ids(np.arange(order.length))


# -- what it promises ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ((1000, 10, 4, 0, 0), [465, 462, 912, 914, 563, 561, 467, 573]),
        ((10**6 + 3, 1024, 64, 42, 3), [936254, 350311, 845027, 66106, 151674, 499240, 215978, 615424]),
        (
            (10**12, 2048, 64, 2**63 + 5, 17),
            [
                737629456270,
                230366895679,
                261344000300,
                261982754236,
                356055499798,
                15453617511,
                600548772488,
                737629454743,
            ],
        ),
    ],
)
def test_the_order_is_the_promised_one(arguments, ids):
    """Written down when the order was made, and equal to the naive twin's, which tests/property compares."""
    order = BlockOrder(*arguments)
    middle = order.length // 2
    assert order.ids(np.arange(middle, middle + 8)).tolist() == ids
    assert order.positions(np.array(ids)).tolist() == list(range(middle, middle + 8))


@pytest.mark.parametrize(("records", "opened"), [(64, 8), (60, 7), (16, 16), (33, 1)])
def test_a_cell_draws_from_as_many_blocks_as_are_open_and_a_block_is_used_up_in_as_many_cells(records, opened):
    order = BlockOrder(records * 40, records, opened, seed=3)
    cells = all_ids(order).reshape(40, records) // records
    assert {len(set(cell)) for cell in cells.tolist()} == {opened}
    for block in range(40):
        drawn = np.flatnonzero((cells == block).any(axis=1))
        first = next(c for c in drawn.tolist() if (c - 1) % 40 not in drawn)
        assert sorted((drawn - first) % 40) == list(range(opened)), "consecutive cells, round the end of the epoch"


def test_one_block_is_opened_a_cell():
    cells = all_ids(BlockOrder(32 * 50, 32, 5)).reshape(50, 32) // 32
    for before, after in zip(cells[:-1].tolist(), cells[1:].tolist(), strict=True):
        assert len(set(after) - set(before)) == 1


def test_more_open_blocks_than_rows_of_a_block_lie_further_apart():
    """A block of 9 rows, 63 open: its rows are drawn from cells 0, 7, 14 ... after it was opened."""
    cells = all_ids(BlockOrder(9 * 200, 9, 63)).reshape(200, 9) // 9
    for block in range(200):
        drawn = np.flatnonzero((cells == block).any(axis=1))
        assert len(drawn) == 9
        assert {int(gap) for gap in np.diff(np.sort((drawn - drawn[0]) % 200))} <= {7, 200 - 56}


@pytest.mark.parametrize(("length", "records"), [(1009, 100), (10_063, 1000), (131, 66)])
def test_records_behind_the_last_whole_block_are_spread_one_to_each_equal_part(length, records):
    rest = length % records
    places = np.flatnonzero(all_ids(BlockOrder(length, records, 4)) >= length - rest)
    assert (places // (length // rest)).tolist() == list(range(rest))


def test_they_stand_elsewhere_and_in_another_order_each_epoch():
    orders = [all_ids(BlockOrder(1007, 100, 4, 0, epoch)) for epoch in range(4)]
    assert len({tuple(np.flatnonzero(ids >= 1000).tolist()) for ids in orders}) == 4
    assert len({tuple(ids[ids >= 1000].tolist()) for ids in orders}) > 1


def test_seed_epoch_length_and_both_sizes_each_change_the_order():
    orders = [
        (1000, 10, 4, 0, 0),
        (1000, 10, 4, 1, 0),
        (1000, 10, 4, 0, 1),
        (1001, 10, 4),
        (1000, 20, 4),
        (1000, 10, 5),
    ]
    assert len({tuple(all_ids(BlockOrder(*each))[:30].tolist()) for each in orders}) == len(orders)
    assert np.array_equal(all_ids(BlockOrder(1000, 10, 4, -1)), all_ids(BlockOrder(1000, 10, 4, 2**64 - 1)))


@pytest.mark.parametrize("records", [5, 6, 10**9, 2**62])
def test_a_block_larger_than_the_data_is_all_of_it(records):
    assert sorted(all_ids(BlockOrder(5, records, 64)).tolist()) == [0, 1, 2, 3, 4]
    assert len({tuple(all_ids(BlockOrder(5, records, 64, seed)).tolist()) for seed in range(40)}) > 20


def test_with_all_blocks_open_a_cell_draws_from_all():
    cells = all_ids(BlockOrder(1600, 40, 10**6)).reshape(40, 40) // 40
    assert {len(set(cell)) for cell in cells.tolist()} == {40}


def test_arrays_of_any_layout_are_taken_and_left_alone():
    order = BlockOrder(100, 7, 3)
    given = np.arange(0, 100, dtype=np.int32)[::2]
    assert order.ids(given).tolist() == all_ids(order)[::2].tolist()
    mine = np.arange(100)
    order.ids(mine)[:] = -1
    order.positions(mine)[:] = -1
    assert mine.tolist() == list(range(100))


def test_an_order_is_a_value():
    order = BlockOrder(1000, 10, 4, 1, 2)
    again = pickle.loads(pickle.dumps(order))
    assert again == order
    assert np.array_equal(all_ids(again), all_ids(order))
    assert order != BlockOrder(1000, 10, 4, 1, 3)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 100, 2**63 - 1])
def test_the_first_value_out_of_range_is_named(bad):
    order = BlockOrder(100, 7, 3)
    with pytest.raises(OrderError, match=rf"position {bad} \(entry 1\) is outside \[0, 100\)"):
        order.ids(np.array([0, bad]))
    with pytest.raises(OrderError, match=rf"id {bad} \(entry 1\)"):
        order.positions(np.array([0, bad]))


@pytest.mark.parametrize("bad", [0, -1, 2**62 + 1, 1.5, True, "8", None])
def test_sizes_out_of_range_are_refused_by_name(bad):
    with pytest.raises(OptionError, match="block_records="):
        BlockOrder(10, bad, 4)
    with pytest.raises(OptionError, match="open_blocks="):
        BlockOrder(10, 4, bad)


def test_length_and_epoch_are_checked_as_those_of_other_orders():
    with pytest.raises(OrderError, match="length"):
        BlockOrder(2**62 + 1, 4, 4)
    with pytest.raises(OptionError, match="epoch"):
        BlockOrder(10, 4, 4, 0, -1)


# -- its name --------------------------------------------------------------------------------------


def test_the_name_says_both_sizes_and_makes_the_order_again():
    order = BlockOrder(1000, 10, 4, 7, 2)
    assert order.name == block_order_name(10, 4) == "blocks:10:4"
    assert make_order(order.name, 1000, 7, 2) == order


@pytest.mark.parametrize("name", ["blocks", "blocks:", "blocks:1", "blocks:0:1", "blocks:1:01", "blocks:1:2:3", "blocks:-1:2",
                                  "blocks:1:2\n", "blocks:\u0661:2", "blocks:1:9999999999999999999", "global", ""])  # fmt: skip
def test_other_names_are_no_block_order(name):
    assert block_order_parts(name) is None
    if name != "global":
        with pytest.raises(OptionError, match="there is no order"):
            make_order(name, 10)


def test_what_users_say_becomes_a_name():
    assert [order_named(shuffle) for shuffle in (None, False, True)] == ["sequential", "sequential", "global"]
    assert order_named("blocks", usual_records=512) == f"blocks:512:{OPEN_BLOCKS}"
    assert order_named("blocks", 100, 3, usual_records=512) == "blocks:100:3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("block",), "shuffle='block'; allowed are"),
        ((True, 100), "block_records=100 goes with shuffle='blocks'"),
        ((False, None, 4), "open_blocks=4 goes with shuffle='blocks'"),
        (("blocks",), "needs block_records="),
        (("blocks", 0), "block_records=0; an integer"),
        (("blocks", 10, 0), "open_blocks=0; an integer"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        order_named(*arguments)


# -- one permutation a cell and a block ------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 5, 9, 64, 1000, 70_000])
@pytest.mark.parametrize("compiled", [False, True])
def test_each_member_of_a_family_is_a_bijection_of_its_own(length, compiled):
    key, members = derive_key(length, 5), [0, 1, 2, 10**9, 2**62]
    tables = set()
    for member in members:
        values = np.arange(length)
        numbers = np.full(length, member)
        out = permute_each(values, numbers, key, compiled=compiled)
        assert np.array_equal(np.sort(out), values)
        assert np.array_equal(permute_each(out, numbers, key, is_inverse=True, compiled=compiled), values)
        tables.add(tuple(out.tolist()))
    assert length < 9 or len(tables) == len(members)


def test_kernel_and_twin_of_a_family_agree_where_members_alternate():
    rng = np.random.default_rng(0)
    for length in (2, 7, 17, 1000, 2**31, 2**62):
        values, members = rng.integers(0, length, 20_000), rng.integers(0, 2**62, 20_000)
        key = derive_key(length, 1)
        out = permute_each(values, members, key, compiled=True)
        assert np.array_equal(out, permute_each(values, members, key, compiled=False))
        assert np.array_equal(permute_each(out, members, key, is_inverse=True, compiled=True), values)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_family_names_a_value_out_of_range(compiled):
    for bad in (-1, 10):
        with pytest.raises(OrderError, match=rf"value {bad} \(entry 2\) is outside \[0, 10\)"):
            permute_each(np.array([0, 9, bad]), np.zeros(3, np.int64), derive_key(10), compiled=compiled)


def test_a_family_needs_a_member_for_each_value():
    with pytest.raises(OrderError, match=r"values of shape \(3,\) and members of shape \(2,\)"):
        permute_each(np.zeros(3, np.int64), np.zeros(2, np.int64), derive_key(10), compiled=True)


def test_warming_families_is_done_once():
    warm(families=True)
    assert warm(families=True) == 0.0
    assert warm() == 0.0
