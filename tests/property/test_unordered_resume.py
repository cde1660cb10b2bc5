"""Delivery out of order, broken off anywhere and resumed at any world size: each record exactly once."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shufflestore as ss
from shufflestore.errors import StateError
from shufflestore.loader.course import Course, Plot, Progress, Records
from shufflestore.loader.iterators import Tally
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import GlobalOrder
from shufflestore.orders.holes import HoledOrder, Holes, merged


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(0, 40))
def test_holes_are_what_is_left_out(positions, begin):
    holes = Holes(np.array(positions, np.int64))
    left = [p for p in range(200) if p not in positions]
    assert holes.actual(np.arange(100)).tolist() == left[:100]
    kept = sorted({p for p in positions if p > begin})
    assert Holes.of(holes.ranges(begin)).positions.tolist() == kept


def test_ranges_of_ranks_in_turn_are_few():
    assert Holes(np.arange(3, 4000, 7)).ranges() == ((3, 3994, 7),)
    assert Holes(np.array([4, 5, 6, 9])).ranges() == ((4, 7, 1), (9, 10, 1))


@given(st.sets(st.integers(0, 49), max_size=20), st.integers(0, 9))
def test_a_holed_order_is_the_order_without_them(holes, seed):
    order = GlobalOrder(50, seed)
    holed = HoledOrder(order, Holes(np.array(sorted(holes), np.int64)))
    expected = [i for p, i in enumerate(order.ids(np.arange(50)).tolist()) if p not in holes]
    assert holed.ids(np.arange(holed.length)).tolist() == expected
    assert holed.positions(np.array(expected, np.int64)).tolist() == list(range(holed.length))


def epoch_of(r, length, world, batch, state, breaks):
    """Let ranks deliver steps in any order within a window; return what came and the merged state."""
    got, states = [], []
    for rank in range(world):
        course = Course(lambda: Records(length, "data"), Plot("global", 3, batch, "uneven", rank, world))
        if state is not None:
            course.load(Cursor.from_dict(state))
        progress = Progress()
        course.begin(progress)
        order = course.bind(progress)
        part, tally = progress.partition, Tally()
        batches = [part.positions(step, step + 1)[0] for step in range(part.step_count)]
        for positions in batches:
            tally.send(len(positions))
        steps = list(range(len(batches)))
        for i in range(len(steps)):  # each step comes at most 5 places before or after its turn
            j = min(len(steps) - 1, i + r.randrange(6))
            steps[i], steps[j] = steps[j], steps[i]
        for step in steps[: r.randint(0, len(steps)) if breaks else len(steps)]:
            tally.arrive(None, step)
            got += order.ids(batches[step]).tolist()
        states.append(json.loads(json.dumps(course.share(tally.records, tally.beyond()).to_dict())))
    if world == 1:
        return got, states[0]
    r.shuffle(states)
    return got, ss.merge_states(states)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_any_chain_of_breaks_and_world_sizes_delivers_each_record_once(seed):
    r = random.Random(seed)
    length, state, seen = r.choice([1, 7, 40, 103, 512]), None, []
    for _ in range(r.randint(1, 4)):
        got, state = epoch_of(r, length, r.randint(1, 4), r.randint(1, 9), state, breaks=True)
        seen += got
    got, state = epoch_of(r, length, r.randint(1, 3), r.randint(1, 9), state, breaks=False)
    assert sorted(seen + got) == list(range(length))
    assert state["position"] == length
    assert "finished" not in state


def shares(world, records):
    base = Cursor(dataset="d", snapshot=None, order="global", seed=1, epoch=0, position=0, length=50)
    from dataclasses import replace

    from shufflestore.orders.cursor import Share

    return [replace(base, share=Share(rank, world, n)) for rank, n in zip(range(world), records, strict=True)]


def test_merging_refuses_what_is_not_one_iteration():
    from dataclasses import replace

    three = shares(3, [4, 5, 6])
    assert merged(three).position == 12
    for bad, words in (
        ([], "no state to merge"),
        (three[:2], "states of all ranks are needed"),
        ([three[0], three[0], three[1]], "once each"),
        ([three[0], three[1], replace(three[2], epoch=1)], "not of one iteration"),
    ):
        with pytest.raises(StateError, match=words):
            merged(bad)
    loader = ss.DataLoader(range(50), 4, shuffle=True, seed=1)
    state = three[0].to_dict() | {"dataset": "range:50"}
    with pytest.raises(StateError, match="corrupted"):
        loader.load_state_dict(state)
    state = replace(three[0], dataset="range:50").to_dict()
    with pytest.raises(StateError, match="rank 0 of 3 alone"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("field", ["finished", "share"])
@pytest.mark.parametrize(
    "value", [3, "x", [1], [[1, 2]], [[9, 3, 1]], [[-1, 3, 1]], [[1, 3, 0]], [0, 1, 2], [2, 1, 3, []], None]
)
def test_damaged_ranges_are_refused_by_name(field, value):
    state = shares(1, [3])[0].to_dict()
    with pytest.raises(StateError, match=f"{field}|corrupted"):
        Cursor.from_dict(state | {field: value})


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 4])
def test_a_loader_that_delivers_as_workers_finish_resumes_exactly(threads):
    class Uneven(list):
        thread_safe = True

        def __getitem__(self, number):
            import time

            time.sleep(0.02 if number % 16 < 4 else 0)
            return number

    data = Uneven(range(103))
    loader = ss.DataLoader(data, 4, True, num_workers=2, in_order=False, fetch_threads=threads, prefetch_factor=4)
    iterator, got, out_of_turn = iter(loader), [], 0
    for _ in range(9):
        got += next(iterator).tolist()
        state = json.loads(json.dumps(loader.state_dict()))
        out_of_turn += "finished" in state
        assert len(json.dumps(state)) < 1024
        after = ss.DataLoader(data, 7, True, num_workers=2, in_order=False)
        after.load_state_dict(state)
        again = iter(after)
        part = next(again).tolist()
        last = ss.DataLoader(data, 5, True)
        last.load_state_dict(after.state_dict())
        assert sorted(got + part + [n for batch in last for n in batch.tolist()]) == list(range(103))
    assert out_of_turn, "nothing came out of its turn"
