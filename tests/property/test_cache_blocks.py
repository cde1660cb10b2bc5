"""The states of a cache's blocks agree with a dictionary, whatever is registered, set and asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shufflestore.storage.base import COPY, HAS_CRC, READ, WIDEN, ZERO
from shufflestore.storage.cache_blocks import Blocks, reads_of_blocks
from tests.naive import cache_blocks as twin

SIZES = st.lists(st.none() | st.integers(0, 400), min_size=1, max_size=40)


@st.composite
def reads(draw: st.DrawFn, files: int) -> np.ndarray:
    """Of files that are there or not, right or wrong."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, files),
                st.integers(0, 420) | st.sampled_from([2**63, 2**64 - 1]),
                st.integers(0, 300),
                st.sampled_from([COPY, COPY, ZERO, WIDEN["u2", "i4"]]),
                st.sampled_from([0, HAS_CRC]),
            ),
            max_size=12,
        )
    )
    made = np.zeros(len(rows), READ)
    for i, (file, offset, size, op, flags) in enumerate(rows):
        made[i]["file"], made[i]["offset"], made[i]["size"] = file, offset, min(size, 2**64 - 1 - offset)
        made[i]["op"], made[i]["flags"] = op, flags
    return made


@given(sizes=SIZES, block=st.sampled_from([1, 7, 16, 64, 1_000]), data=st.data())
def test_blocks_agree_with_their_naive_twin(sizes: list[int | None], block: int, data: st.DataObject):
    ours, plain = Blocks(block), twin.Blocks(block)
    for size in sizes:
        ours.add(size)
        plain.sizes.append(size)
    every = [(file, b) for file, size in enumerate(sizes) for b in range(-(-(size or 0) // block))]
    for _ in range(3):
        if every:
            chosen = data.draw(st.lists(st.sampled_from(every), unique=True))
            state = data.draw(st.integers(0, 2))
            ours.set([ours.first(file) + b for file, b in chosen], state)
            plain.state.update(dict.fromkeys(chosen, state))
        asked = data.draw(reads(len(sizes)))
        found, right = ours.held(asked).tolist(), plain.held(asked)
        for read, mine, theirs in zip(asked, found, right, strict=True):
            assert mine == theirs or plain.needs(read) is None, "only of wrong reads it may say what it likes"
        assert ours.places(ours.lacking(asked)) == plain.lacking(asked)
        files = {int(read["file"]) for read in asked if plain.needs(read)}
        assert set(ours.touched(asked)) == files


def test_a_read_that_is_not_of_a_kept_file_is_not_held_while_anything_is_absent():
    blocks = Blocks(16)
    blocks.add(100)
    asked = np.zeros(3, READ)
    asked["size"], asked["flags"] = 10, HAS_CRC
    asked["file"], asked["offset"] = [0, 1, 0], [0, 0, 110]
    assert blocks.held(asked).tolist() == [False, False, False]


@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), unique=True, min_size=1).map(sorted),
    block=st.sampled_from([10, 16, 64]),
)
def test_blocks_are_fetched_end_to_end_each_once(places: list[tuple[int, int]], block: int):
    size = 9 * block + 1  # the last block is one byte
    made, ranges = reads_of_blocks(places, [size] * 3, block)
    covered = []
    at = 0
    for read, (file, offset, length, slot) in zip(made, ranges, strict=True):
        assert (int(read["file"]), int(read["offset"]), int(read["size"]), int(read["slot"])) == (
            file,
            offset,
            length,
            at,
        )
        at += length
        covered += [(file, (offset + i) // block) for i in range(0, length, block)]
        assert (offset % block, min(offset + length, size) - offset) == (0, length)
    assert sorted(covered) == places
    assert len(made) == sum(1 for i, (f, b) in enumerate(places) if i == 0 or places[i - 1] != (f, b - 1))
