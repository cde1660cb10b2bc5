"""A2 and A5: over all ranks every position is owned once, and every rank has the same steps."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflestore.orders.partition import Partition, Topology
from tests.naive import orders as naive

SCALE = float(os.environ.get("SHUFFLESTORE_SCALE", "1"))
REMAINDERS = ("drop", "pad", "uneven")
PRIMES = (2, 3, 5, 7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191)


@st.composite
def cases(draw):
    """(length, batch, world, remainder, start), lengths biased to where off-by-one errors live."""
    batch = draw(st.integers(1, 16) | st.integers(1, 4096))
    world = draw(st.integers(1, 8) | st.integers(1, 64))
    step = batch * world
    edges = {0, 1, batch - 1, batch, batch + 1, world - 1, world, step - 1, step, step + 1, 2 * step - 1, 2 * step + 1}
    length = draw(st.sampled_from(sorted(edges)) | st.sampled_from(PRIMES) | st.integers(0, 20_000))
    starts = {0, 1, length - 1, length, length - step, length - step - 1, length - step + 1, length // 2}
    start = draw(st.just(0) | st.sampled_from(sorted(s for s in starts if 0 <= s <= length)) | st.integers(0, length))
    return length, batch, world, draw(st.sampled_from(REMAINDERS)), start


def check_exactly_once(length, batch, world, remainder, start):
    parts = [Partition(length, batch, Topology(rank, world), remainder, start) for rank in range(world)]
    steps = parts[0].step_count
    given_out = []
    for part in parts:
        positions, ends = part.positions(0, steps)
        assert positions.dtype == ends.dtype == np.int64
        sizes = np.diff(ends, prepend=0)
        # A5: the same steps on all ranks, and lengths that are exact before the first batch.
        assert part.step_count == steps == ends.size
        assert part.record_count == positions.size == (ends[-1] if steps else 0)
        assert (sizes[:-1] == batch).all()
        assert remainder == "uneven" or (sizes == batch).all()
        given_out.append(positions)
        cut = steps // 3
        head, head_ends = part.positions(0, cut)
        tail, tail_ends = part.positions(cut, steps)
        assert np.array_equal(np.concatenate([head, tail]), positions)
        assert np.array_equal(np.concatenate([head_ends, tail_ends + head.size]), ends)
    shares = [positions.size for positions in given_out]
    assert max(shares) - min(shares) <= (1 if remainder == "uneven" else 0)
    # A2: nothing lost, nothing extra, and what is padded or dropped is declared.
    counts = np.bincount(np.concatenate(given_out), minlength=length) if length else np.zeros(0, int)
    assert counts.size == length
    total = sum(shares)
    left = length - start
    if remainder == "pad":
        assert total == left + parts[0].padded_count
        assert (counts[start:] >= 1).all() or not steps
        assert bool(steps) == bool(left)
        extra = counts.copy()
        extra[start:] -= 1 if steps else 0
        assert extra.sum() == parts[0].padded_count
        assert extra.size == 0 or extra.max() - extra.min() <= 1  # wrapped evenly, from the head on
        assert not np.any(np.diff(extra) > 0)
    else:
        stop = length - parts[0].dropped_count
        assert (counts[start:stop] == 1).all()
        assert counts.sum() == total == stop - start
        assert parts[0].dropped_count < batch * world
        assert parts[0].dropped_count == 0 or remainder == "drop"
    for delivered in {0, steps // 2, steps}:
        position = parts[0].next_start(delivered)
        assert position == (length if delivered and delivered == steps else start + delivered * batch * world)
        assert all(part.next_start(delivered) == position for part in parts)


@given(case=cases())
@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_position_is_owned_once_and_steps_are_equal(case):
    check_exactly_once(*case)


@pytest.mark.campaign
@given(case=cases())
@settings(max_examples=int(20_000 * SCALE), deadline=None, suppress_health_check=list(HealthCheck))
def test_every_position_is_owned_once_and_steps_are_equal_in_20_000_cases(case):
    check_exactly_once(*case)


@given(
    length=st.integers(0, 120),
    batch=st.integers(1, 40),
    world=st.integers(1, 9),
    remainder=st.sampled_from(REMAINDERS),
    start=st.integers(0, 120),
)
@settings(max_examples=500, deadline=None)
def test_positions_are_those_of_the_naive_twin(length, batch, world, remainder, start):
    start = min(start, length)
    wanted = naive.partition(length, batch, world, remainder, start)
    for rank in range(world):
        part = Partition(length, batch, Topology(rank, world), remainder, start)
        positions, ends = part.positions(0, part.step_count)
        steps = [step.tolist() for step in np.split(positions, ends[:-1])] if ends.size else []
        assert steps == wanted[rank]


def test_every_small_partition_is_the_naive_twins():
    for length in range(11):
        for batch in (1, 2, 3, 7):
            for world in (1, 2, 3, 5):
                for remainder in REMAINDERS:
                    for start in range(length + 1):
                        check_exactly_once(length, batch, world, remainder, start)
