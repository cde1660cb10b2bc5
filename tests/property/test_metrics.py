"""Figures from a meter's buckets and sums are those of a list of everything that happened."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from shufflestore.loader.metrics import BUCKETS, Stats
from shufflestore.loader.telemetry import Meter
from tests.loops import Clock
from tests.naive.quantiles import quantile

LONGEST = 2**46
"""Nanoseconds: from there on waits are not told apart."""
WAITS = st.integers(0, 200) | st.integers(0, 10**9) | st.integers(0, LONGEST - 1)
BATCHES = st.lists(st.tuples(WAITS, st.integers(0, 10**10), st.integers(0, 5000)), min_size=1, max_size=60)
"""(wait, step behind it, records), times in nanoseconds."""


def play(meter, clock, batches):
    for wait, step, records in batches:
        meter.wait_began()
        clock.now += wait
        meter.delivered(records)
        clock.now += step


def check(stats: Stats, batches, steps):
    """Hold figures against sums over a list; `steps` are those that had ended."""
    waits = [wait for wait, _, _ in batches]
    assert stats.batches == len(batches)
    assert stats.records == sum(records for _, _, records in batches)
    assert math.isclose(stats.waited_seconds, sum(waits) / 1e9, abs_tol=1e-6)
    assert math.isclose(stats.step_seconds, sum(steps) / 1e9, abs_tol=1e-6)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        true = quantile(waits, share)
        assert abs(stats.quantile(share) * 1e9 - true) <= true / 64 + 1e-6 * true, (share, true)


@given(BATCHES)
@example([(63, 0, 1), (64, 0, 1), (127, 0, 1), (128, 0, 1)])
@example([(LONGEST - 1, 0, 1)])
@example([(0, 0, 0)])
def test_quantiles_are_within_a_64th_of_those_of_the_whole_list_and_sums_are_its_sums(batches):
    clock = Clock()
    meter = Meter(clock=clock)
    play(meter, clock, batches)
    check(meter.stats(), batches, [step for _, step, _ in batches[:-1]])


@given(BATCHES, BATCHES)
def test_figures_since_a_moment_are_those_of_what_came_behind_it(before, behind):
    clock = Clock()
    meter = Meter(clock=clock)
    play(meter, clock, before)
    moment = meter.stats()
    play(meter, clock, behind)
    check(meter.stats().since(moment), behind, [before[-1][1], *(step for _, step, _ in behind[:-1])])
    assert meter.stats().since(Stats()) == meter.stats()


@given(st.integers(0, 63))
def test_the_shortest_waits_are_exact(wait):
    clock = Clock()
    meter = Meter(clock=clock)
    play(meter, clock, [(wait, 0, 1)])
    assert round(meter.stats().p50_seconds * 1e9) == wait


@given(st.integers(LONGEST, 2**62))
def test_waits_of_days_are_counted_as_the_longest(wait):
    clock = Clock()
    meter = Meter(clock=clock)
    play(meter, clock, [(wait, 0, 1), (LONGEST - 1, 0, 1)])
    stats = meter.stats()
    assert len(stats.waits) == BUCKETS
    assert stats.waits[-1] == 2
    assert 0.98 * LONGEST <= stats.p99_seconds * 1e9 <= LONGEST
