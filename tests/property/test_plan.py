"""The planner: every read within its fetch, each byte fetched once, and what the naive twin says."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflestore.storage.base import COPY, READ, ZERO
from shufflestore.storage.plan import Plan, plan
from tests.naive.plan import Fetch, naive_plan


def served(made: Plan) -> list[Any]:
    """For each fetch, the indices of its reads."""
    order, starts = made.by_fetch()
    return [order[a:b] for a, b in pairwise(starts.tolist())]


END = 2**63 - 1
SPREAD = 340


@dataclass
class Asked:
    """Reads, and the knobs that they are planned with."""

    reads: Any
    groups: Any
    knobs: dict[str, Any]

    def plan(self, **other: Any) -> Plan:
        return plan(self.reads, **{"group_of": self.groups, **self.knobs, **other})

    def twin(self) -> list[Fetch]:
        knobs = self.knobs
        return naive_plan(
            self.reads, self.groups, knobs["gap_bytes"], knobs["most_bytes"], knobs["most_waste"], knobs["block_bytes"],
            knobs["file_sizes"],
        )  # fmt: skip


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """Reads near each other in few files, up to the largest offset, some that need nothing; of a few groups in any order."""
    base = draw(st.sampled_from([0, 0, 0, 2**32 - 100, END - SPREAD]))
    grain = draw(st.sampled_from([1, 10]))  # coarse: reads that just touch, gaps that are just small enough
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 0, 1, 2]),
                st.integers(0, 300 // grain).map(lambda n: n * grain),
                st.integers(0, 40 // grain).map(lambda n: n * grain),
                st.booleans(),
                st.integers(0, 2),
            ),
            min_size=draw(st.sampled_from([0, 8])),
            max_size=40,
        )
    )
    names = np.array(draw(st.sampled_from([[0, 0, 0], [0, 0, 0], [0, 1, 2], [5, 2**40, 2**62], [-7, 3, -1]])), np.int64)
    reads = np.zeros(len(rows), READ)
    for i, (file, offset, size, is_zero, _) in enumerate(rows):
        reads[i]["file"], reads[i]["offset"], reads[i]["size"] = file, base + offset, size
        reads[i]["op"] = ZERO if is_zero and size % 5 == 0 else COPY
    sizes = st.lists(st.integers(0, SPREAD).map(lambda more: base + more), min_size=3, max_size=3)
    knobs = {
        "gap_bytes": draw(st.integers(0, 30 // grain)) * grain,
        "most_bytes": draw(st.integers(1, 200 // grain).map(lambda n: n * grain) | st.just(2**62)),
        "most_waste": draw(st.sampled_from([1.0, 1.5, 3.0, 1e9])),
        "block_bytes": draw(st.sampled_from([1, 1, 2, 16, 100, 2**40]))
        if base
        else draw(st.sampled_from([1, 1, 2, 16, 100])),
        "file_sizes": draw(st.none() | sizes.map(lambda ends: np.array(ends, np.int64))),
    }
    if knobs["block_bytes"] == 2**40:
        knobs["most_waste"] = 1e18  # the twin counts byte by byte: never ask it to
    return Asked(reads, names[[row[4] for row in rows]] if rows else np.zeros(0, np.int64), knobs)


def needed(reads: Any) -> list[int]:
    return [i for i, read in enumerate(reads) if read["op"] != ZERO and read["size"] > 0]


def ranges(made: Plan, asked: Asked) -> list[tuple[int, int, int, int]]:
    """(group, file, first byte, end) of each fetch, in order of place."""
    groups = [int(asked.groups[one[0]]) for one in served(made)]
    starts = made.offset.tolist()
    ends = [start + size for start, size in zip(starts, made.size.tolist(), strict=True)]
    return list(zip(groups, made.file.tolist(), starts, ends, strict=True))


@settings(max_examples=300, deadline=None)
@given(asked())
def test_a_plan_is_the_twins(asked: Asked) -> None:
    made, twin = asked.plan(), asked.twin()
    assert ranges(made, asked) == [(fetch.group, fetch.file, fetch.low, fetch.high) for fetch in twin]
    assert [one.tolist() for one in served(made)] == [sorted(fetch.reads) for fetch in twin]
    assert made.bytes_fetched == sum(fetch.high - fetch.low for fetch in twin)
    assert made.bytes_used == len(
        {(int(g), int(r["file"]), b) for r, g in zip(asked.reads, asked.groups, strict=True) if r["op"] != ZERO
         for b in range(int(r["offset"]), int(r["offset"]) + int(r["size"]))}
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(asked())
def test_every_read_lies_in_its_fetch_and_the_first_needed_comes_first(asked: Asked) -> None:
    made = asked.plan()
    assert np.flatnonzero(made.fetch_of >= 0).tolist() == needed(asked.reads)
    for i in needed(asked.reads):
        k, offset, size = int(made.fetch_of[i]), int(asked.reads[i]["offset"]), int(asked.reads[i]["size"])
        assert int(made.file[k]) == asked.reads[i]["file"]
        assert int(made.offset[k]) <= offset
        assert offset + size <= int(made.offset[k]) + int(made.size[k]) <= END
    order, starts = made.by_fetch()
    assert starts[0] == 0
    assert starts[-1] == len(order)
    firsts = [int(order[a]) for a in starts[:-1]]
    assert firsts == sorted(firsts)
    assert [int(made.fetch_of[i]) for i in order] == np.repeat(np.arange(len(made)), np.diff(starts)).tolist()


@settings(max_examples=300, deadline=None)
@given(asked())
def test_fetches_keep_their_bounds_and_none_could_be_joined(asked: Asked) -> None:
    made, knobs = asked.plan(), asked.knobs
    block, ends = knobs["block_bytes"], knobs["file_sizes"]
    for fetch in asked.twin():
        if block < 2**40:
            assert fetch.high - fetch.low <= knobs["most_waste"] * fetch.held
        assert fetch.high - fetch.low <= knobs["most_bytes"] or len(fetch.clusters) == 1
    if block == 1:
        assert made.bytes_fetched <= knobs["most_waste"] * made.bytes_used
    for k, (_, file, begin, end) in enumerate(ranges(made, asked)):
        reach = max(int(asked.reads[i]["offset"] + asked.reads[i]["size"]) for i in served(made)[k])
        assert begin % block == 0
        assert end % block == 0 or end in (reach, END) or (ends is not None and end == ends[file])
        assert ends is None or end <= max(int(ends[file]), reach)
    sorted_ranges = sorted(ranges(asked.plan(most_waste=1e18), asked))
    for one, next_one in zip(sorted_ranges, sorted_ranges[1:], strict=False):
        if one[:2] == next_one[:2] and next_one[2] - one[3] <= knobs["gap_bytes"]:
            assert next_one[3] - one[2] > knobs["most_bytes"], "they would fit into one"


@settings(max_examples=300, deadline=None)
@given(asked())
def test_no_byte_is_fetched_twice_unless_a_block_is_parted(asked: Asked) -> None:
    made = sorted(ranges(asked.plan(), asked))
    for one, next_one in zip(made, made[1:], strict=False):
        if one[:2] == next_one[:2] and next_one[2] < one[3]:
            assert asked.knobs["block_bytes"] > 1
            assert next_one[3] - one[2] > asked.knobs["most_bytes"]
            assert one[3] - next_one[2] <= asked.knobs["block_bytes"]


@settings(max_examples=150, deadline=None)
@given(asked(), st.booleans())
def test_a_plan_of_the_fetches_is_the_same_plan(asked: Asked, is_aligned: bool) -> None:
    other = {"most_bytes": 2**62} if is_aligned else {"block_bytes": 1}
    made = asked.plan(**other)
    again = np.zeros(len(made), READ)
    again["file"], again["offset"], again["size"] = made.file, made.offset, made.size
    groups = np.array([row[0] for row in ranges(made, asked)], np.int64)
    second = Asked(again, groups, {**asked.knobs, **other}).plan()
    assert second.fetch_of.tolist() == list(range(len(made)))
    assert second.offset.tolist() == made.offset.tolist()
    assert second.size.tolist() == made.size.tolist()


def test_reads_of_one_block_are_one_fetch():
    reads = np.zeros(2, READ)
    reads["offset"], reads["size"] = [0, 8], 4
    made = plan(reads, group_of=None, gap_bytes=0, most_bytes=99, most_waste=1, block_bytes=16, file_sizes=None)
    assert (made.offset.tolist(), made.size.tolist(), made.fetch_of.tolist()) == ([0], [16], [0, 0])


def test_a_wasteful_fetch_is_parted_at_its_gaps_alone():
    reads = np.zeros(3, READ)
    reads["offset"], reads["size"] = [0, 10, 40], 10
    made = plan(reads, group_of=None, gap_bytes=30, most_bytes=99, most_waste=1.5, block_bytes=1, file_sizes=None)
    assert (made.offset.tolist(), made.size.tolist()) == ([0, 40], [20, 10])
    made = plan(reads, group_of=None, gap_bytes=30, most_bytes=99, most_waste=1.7, block_bytes=1, file_sizes=None)
    assert (made.offset.tolist(), made.size.tolist()) == ([0], [50])


def test_reads_that_share_bytes_move_to_the_next_fetch_together():
    reads = np.zeros(3, READ)
    reads["offset"], reads["size"] = [0, 60, 80], [60, 30, 60]
    made = plan(reads, group_of=None, gap_bytes=9, most_bytes=100, most_waste=1, block_bytes=1, file_sizes=None)
    assert (made.offset.tolist(), made.size.tolist()) == ([0, 60], [60, 80])


def test_the_fetch_that_is_needed_first_comes_first():
    reads = np.zeros(4, READ)
    reads["offset"], reads["size"], reads["file"] = [900, 100, 500, 910], 10, [0, 0, 0, 0]
    made = plan(reads, group_of=None, gap_bytes=0, most_bytes=100, most_waste=2, block_bytes=1, file_sizes=None)
    assert made.offset.tolist() == [900, 100, 500]
    assert made.fetch_of.tolist() == [0, 1, 2, 0]
    assert made.waste == 1.0


def test_two_batches_share_what_both_need():
    reads = np.zeros(3, READ)
    reads["offset"], reads["size"] = [0, 5_000, 0], 100
    shared = plan(reads, group_of=None, gap_bytes=0, most_bytes=9, most_waste=1, block_bytes=1, file_sizes=None)
    apart = plan(
        reads, group_of=np.array([0, 0, 1]), gap_bytes=0, most_bytes=9, most_waste=1, block_bytes=1, file_sizes=None
    )
    assert (len(shared), shared.bytes_fetched, shared.bytes_used) == (2, 200, 200)
    assert (len(apart), apart.bytes_fetched) == (3, 300)


def test_nothing_to_read_is_an_empty_plan():
    reads = np.zeros(2, READ)
    reads["op"] = ZERO
    made = plan(reads, group_of=None, gap_bytes=0, most_bytes=1, most_waste=1, block_bytes=1, file_sizes=None)
    assert (len(made), made.fetch_of.tolist(), served(made), made.waste) == (0, [-1, -1], [], 1.0)


@pytest.mark.parametrize(
    "wrong", [{"gap_bytes": -1}, {"most_bytes": 0}, {"block_bytes": 0}, {"most_waste": 0.5}], ids=lambda one: next(iter(one))
)  # fmt: skip
def test_a_knob_out_of_range_is_named(wrong: dict[str, Any]):
    knobs = {"group_of": None, "gap_bytes": 0, "most_bytes": 1, "most_waste": 1, "block_bytes": 1, "file_sizes": None}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plan(np.zeros(0, READ), **{**knobs, **wrong})
