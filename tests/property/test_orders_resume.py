"""A3 and A7: whatever was delivered when a run stopped, the rest comes, once and in the same order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflestore.errors import StateError
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import make_order
from shufflestore.orders.partition import Partition, Topology


def deliver(order, batch, world, remainder, start, first, last):
    """The ids that all ranks deliver in steps [first, last), in global order."""
    out = []
    for step in range(first, last):
        shares = []
        for rank in range(world):
            part = Partition(order.length, batch, Topology(rank, world), remainder, start)
            shares.append(order.ids(part.positions(step, step + 1)[0]).tolist())
        out += [share[place] for place in range(batch) for share in shares if place < len(share)]
    return out


def check_resume(whole, order, batch, worlds, remainder, start):
    """Take up at `start`, deliver half with one world size, save, load, deliver the rest with another."""
    length = order.length
    part = Partition(length, batch, Topology(0, worlds[0]), remainder, start)
    done = (part.step_count + 1) // 2
    got = deliver(order, batch, worlds[0], remainder, start, 0, done)
    saved = Cursor("data", 1, order.name, 5, 2, part.next_start(done), length).to_dict()
    loaded = Cursor.from_dict(json.loads(json.dumps(saved)))
    loaded.check("data", order.name, 5, length)
    rest = Partition(length, batch, Topology(0, worlds[1]), remainder, loaded.position)
    got += deliver(order, batch, worlds[1], remainder, loaded.position, 0, rest.step_count)
    lost = rest.dropped_count if rest.start < length else part.dropped_count
    assert got == whole[start : length - lost]
    assert remainder == "drop" or lost == 0
    assert lost < batch * (worlds[1] if rest.start < length else worlds[0])
    assert rest.next_start(rest.step_count) == (length if rest.step_count else rest.start)


def check_every_resume(lengths):
    count = 0
    for length in lengths:
        for seed in (0, 2**64 - 1):
            order = make_order("global", length, seed, 2)
            whole = order.ids(np.arange(length)).tolist()
            for batch in range(1, 7):
                for worlds in [(a, b) for a in range(1, 5) for b in range(1, 5)]:
                    for remainder in ("drop", "uneven"):
                        for start in range(length + 1):
                            check_resume(whole, order, batch, worlds, remainder, start)
                            count += 1
    return count


def test_every_resume_of_up_to_8_records():
    assert check_every_resume(range(9)) == 45 * 4 * 4 * 6 * 2 * 2


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_every_resume_of_up_to_24_records():
    assert check_every_resume(range(25)) == 124_800


@given(
    length=st.integers(1, 3_000) | st.integers(65_530, 65_600),
    kind=st.sampled_from(["sequential", "global", "once"]),
    seed=st.integers(0, 2**64 - 1),
    legs=st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 400), st.sampled_from(["uneven", "drop"]), st.floats(0, 1)),
        max_size=6,
    ),
)
@settings(max_examples=100, deadline=None)
def test_a_chain_of_resumes_delivers_the_uninterrupted_epoch(length, kind, seed, legs):
    order = make_order(kind, length, seed, 3)
    got, position = [], 0
    for world, batch, remainder, share in legs:
        part = Partition(length, batch, Topology(0, world), remainder, position)
        # Not the last step: with "drop" it ends the epoch, and this is about the middle of one.
        done = int(share * max(0, part.step_count - 1))
        got += deliver(order, batch, world, remainder, position, 0, done)
        position = part.next_start(done)
        assert position == len(got)
        position = Cursor.from_dict(Cursor("d", None, order.name, seed, 3, position, length).to_dict()).position
    rest = Partition(length, 64, Topology(0, 2), "uneven", position)
    got += deliver(order, 64, 2, "uneven", position, 0, rest.step_count)
    assert got == order.ids(np.arange(length)).tolist()


@given(
    field=st.sampled_from(["version", "dataset", "snapshot", "order", "seed", "epoch", "position", "length", "check"]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.lists(st.integers(), max_size=2),
)
@settings(max_examples=500, deadline=None)
def test_no_change_of_a_saved_state_goes_unnoticed(field, value):
    state = Cursor("data", 1, "global", 5, 2, 10, 100).to_dict()
    if type(state[field]) is type(value) and state[field] == value:
        return
    with pytest.raises(StateError):
        Cursor.from_dict({**state, field: value})
