from __future__ import annotations

import pickle

import numpy as np
import pytest

from shufflestore.errors import OptionError, OrderError
from shufflestore.orders.partition import MAX_BATCH_SIZE, Partition, Topology


@pytest.mark.parametrize(
    ("rank", "world_size", "named"),
    [
        (1, 1, "rank"),
        (-1, 2, "rank"),
        (0, 0, "world_size"),
        (0, -3, "world_size"),
        (True, 2, "rank"),
        (0, 2.0, "world_size"),
        ("0", 1, "rank"),
        (0, 2**31, "world_size"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_by_name(rank, world_size, named):
    with pytest.raises(OptionError, match=f"^{named} "):
        Topology(rank, world_size)


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"length": -1}, OrderError, "length"),
        ({"length": 2**62 + 1}, OrderError, "length"),
        ({"length": 2.5}, OrderError, "length"),
        ({"length": True}, OrderError, "length"),
        ({"start": -1}, OrderError, "start"),
        ({"start": 11}, OrderError, "start"),
        ({"batch_size": 0}, OptionError, "batch_size"),
        ({"batch_size": 2**31}, OptionError, "batch_size"),
        ({"batch_size": 1.0}, OptionError, "batch_size"),
        ({"remainder": "keep"}, OptionError, "'drop', 'pad', 'uneven'"),
        ({"remainder": None}, OptionError, "remainder"),
    ],
)
def test_a_partition_that_cannot_be_is_refused_by_name(fields, error, named):
    with pytest.raises(error, match=named):
        Partition(**{"length": 10, "batch_size": 2, **fields})


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
def test_an_empty_order_and_a_finished_epoch_have_no_steps(remainder):
    for part in (Partition(0, 4, Topology(1, 2), remainder), Partition(9, 4, Topology(1, 2), remainder, 9)):
        positions, ends = part.positions(0, 0)
        assert (part.step_count, part.record_count, positions.size, ends.size) == (0, 0, 0, 0)
        assert part.next_start(0) == part.start
        assert part.padded_count == part.dropped_count == 0


def test_padding_wraps_as_often_as_it_must():
    part = Partition(3, 4, Topology(1, 2), "pad")
    positions, ends = part.positions(0, 1)
    assert positions.tolist() == [1, 0, 2, 1]  # 1, 3, 5, 7 modulo 3
    assert ends.tolist() == [4]
    assert part.padded_count == 5


def test_padding_of_a_resumed_epoch_comes_from_the_head_of_the_order():
    assert Partition(10, 4, Topology(0, 1), "pad", start=7).positions(0, 1)[0].tolist() == [7, 8, 9, 0]


def test_uneven_shares_may_be_empty_but_the_step_exists():
    part = Partition(9, 2, Topology(3, 4), "uneven")
    positions, ends = part.positions(0, 2)
    assert part.step_count == 2
    assert positions.tolist() == [3, 7]
    assert ends.tolist() == [2, 2]
    assert part.positions(1, 2)[0].size == 0
    assert part.positions(1, 2)[1].tolist() == [0]


def test_dropped_records_end_the_epoch_too():
    part = Partition(11, 2, Topology(0, 2))
    assert part.dropped_count == 3
    assert [part.next_start(steps) for steps in range(part.step_count + 1)] == [0, 4, 11]


def test_with_too_few_records_for_one_step_nothing_is_dropped_before_it_was_asked_for():
    part = Partition(3, 4)
    assert part.step_count == 0
    assert part.next_start(0) == 0


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 4), (2, 1), (4, 4)])
def test_steps_that_are_not_there_are_refused(first, last):
    with pytest.raises(OrderError, match=r"\[0, 3\)"):
        Partition(6, 2).positions(first, last)


@pytest.mark.parametrize("steps", [-1, 4])
def test_more_steps_than_there_are_cannot_have_been_delivered(steps):
    with pytest.raises(OrderError, match=r"\[0, 3\]"):
        Partition(6, 2).next_start(steps)


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
def test_positions_and_ends_are_int64_and_exact_at_the_largest_length(remainder):
    length, rank, world = 2**62, 2**31 - 3, 2**31 - 1
    part = Partition(length, MAX_BATCH_SIZE, Topology(rank, world), remainder, start=0)
    assert part.step_count == (1 if remainder == "drop" else 2)
    small = Partition(length, 1000, Topology(rank, world), remainder, start=length - 1500 * world)
    positions, ends = small.positions(0, small.step_count)
    assert positions.dtype == ends.dtype == np.int64
    assert positions[0] == length - 1500 * world + rank
    assert positions.min() >= 0
    assert positions.max() < length
    assert int(ends[-1]) == positions.size == small.record_count
    if remainder == "pad":
        assert positions[-1] == (length - 1500 * world + rank + 1999 * world) % length


def test_a_window_in_the_middle_is_part_of_the_whole():
    for remainder in ("drop", "pad", "uneven"):
        part = Partition(1003, 7, Topology(2, 5), remainder, 11)
        whole, ends = part.positions(0, part.step_count)
        for first in range(part.step_count):
            window, own = part.positions(first, min(first + 4, part.step_count))
            begin = 0 if first == 0 else ends[first - 1]
            assert window.tolist() == whole[begin : begin + window.size].tolist()
            assert own.tolist() == (ends[first : first + 4] - begin).tolist()


def test_a_partition_is_a_value():
    part = Partition(10, 2, Topology(1, 2), "pad", 4)
    assert pickle.loads(pickle.dumps(part)) == part
    assert hash(part) == hash(Partition(10, 2, Topology(1, 2), "pad", 4))
