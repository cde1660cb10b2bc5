"""The planner: every read within its fetch, each byte fetched once, and what the naive twin says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflestore.storage.base import COPY, READ, ZERO
from shufflestore.storage.plan import plan
from tests.naive.plan import naive_plan

FAR = 2**63 - 2**20


@st.composite
def submissions(draw: st.DrawFn) -> tuple[Any, Any]:
    """Reads near each other in few files, some far out, some that need nothing; and their groups, in rising order."""
    base = draw(st.sampled_from([0, 0, 0, 2**32 - 100, FAR]))
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 40), st.booleans(), st.integers(0, 1)),
            max_size=40,
        )
    )
    reads = np.zeros(len(rows), READ)
    for i, (file, offset, size, is_zero, _) in enumerate(rows):
        reads[i]["file"], reads[i]["offset"], reads[i]["size"] = file, base + offset, size
        reads[i]["op"] = ZERO if is_zero and size % 5 == 0 else COPY
    return reads, np.sort(np.array([row[4] for row in rows], np.int64))


def needed(reads: Any) -> list[int]:
    return [i for i, read in enumerate(reads) if read["op"] != ZERO and read["size"] > 0]


@settings(max_examples=400, deadline=None)
@given(
    submissions(), st.integers(0, 30), st.integers(1, 200), st.sampled_from([1.0, 1.5, 3.0, 1e9]),
    st.sampled_from([1, 2, 16]), st.booleans(),
)  # fmt: skip
def test_a_plan_serves_all_reads_and_is_the_twins(
    submission: Any, gap: int, most: int, waste: float, block: int, grouped: bool
) -> None:
    reads, groups = submission
    if not grouped:
        groups = np.zeros(len(reads), np.int64)
    made = plan(
        reads, group_of=groups if grouped else None, gap_bytes=gap, most_bytes=most, most_waste=waste,
        block_bytes=block, file_sizes=None,
    )  # fmt: skip
    twin = naive_plan(reads, groups, gap, most, waste)
    assert len(made) == len(twin)
    for k, fetch in enumerate(twin):
        assert int(made.file[k]) == fetch.file
        assert int(made.offset[k]) == fetch.begin // block * block
        assert int(made.offset[k] + made.size[k]) == -(-fetch.end // block) * block
    assert [sorted(one.tolist()) for one in made.served()] == [sorted(fetch.reads) for fetch in twin]
    assert sorted(np.flatnonzero(made.fetch_of >= 0).tolist()) == needed(reads)
    used = {(int(r["file"]), int(g), b) for r, g in zip(reads, groups, strict=True) if r["op"] != ZERO
            for b in range(int(r["offset"]), int(r["offset"]) + int(r["size"]))}  # fmt: skip
    assert made.bytes_used == len(used)
    if block == 1:
        covered = Counter(
            (fetch.file, fetch.group, b) for fetch in twin for b in range(fetch.begin, fetch.end)
        )  # fmt: skip
        assert not covered or max(covered.values()) == 1, "a byte is fetched twice"
        assert made.bytes_fetched == sum(covered.values()) <= waste * len(used) + 1e-6
    else:
        assert made.bytes_fetched <= waste * len(used) + 2 * block * len(made)


@settings(max_examples=100, deadline=None)
@given(submissions(), st.integers(0, 30), st.sampled_from([1, 16]))
def test_no_fetch_passes_the_end_of_its_file_unless_a_read_does(submission: Any, gap: int, block: int) -> None:
    reads, _ = submission
    ends = np.array(
        [max((int(r["offset"]) + int(r["size"]) for r in reads if r["file"] == f), default=0) for f in range(3)]
    )
    made = plan(reads, group_of=None, gap_bytes=gap, most_bytes=100, most_waste=1e9, block_bytes=block, file_sizes=ends)
    assert (made.offset + made.size <= ends[made.file]).all()


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
    assert (len(made), made.fetch_of.tolist(), made.served(), made.waste) == (0, [-1, -1], [], 1.0)


@pytest.mark.parametrize(
    "wrong", [{"gap_bytes": -1}, {"most_bytes": 0}, {"block_bytes": 0}, {"most_waste": 0.5}], ids=lambda one: next(iter(one))
)  # fmt: skip
def test_a_knob_out_of_range_is_named(wrong: dict[str, Any]):
    knobs = {"group_of": None, "gap_bytes": 0, "most_bytes": 1, "most_waste": 1, "block_bytes": 1, "file_sizes": None}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plan(np.zeros(0, READ), **{**knobs, **wrong})
