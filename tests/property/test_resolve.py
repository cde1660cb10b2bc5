"""The native core resolves rows and lays out reads exactly as the naive twin does."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shufflestore.errors import CorruptData
from shufflestore.format.layout import PAGE_HEAD
from shufflestore.format.resolve import Located, lay_out, locate, program_for, wanted_for
from shufflestore.format.schema import is_whole
from shufflestore.storage.base import READ
from tests.arrays import NULLS, TYPES, pool
from tests.invented import arrow_bytes, index_of, joined
from tests.naive import resolve as naive
from tests.property.test_types import cut

SPANS = tuple(name for name in TYPES if not is_whole(pool(name, "none").type))


def scene(seed):
    """Return the pages of a made index, its layout, a projection, and records to resolve."""
    r = random.Random(seed)
    names = r.sample(SPANS, r.randint(1, 6))
    length = r.choice((1, 2, 31, 33, 130))
    columns = {n: pool(n, r.choice(NULLS)).slice(r.randint(0, 17), length) for n in names}
    built = index_of(arrow_bytes(cut(r, columns)), checksums=r.random() < 0.8)
    header = built.header
    arena = np.frombuffer(joined(built), np.uint8)[header.pages_at :].copy()
    tree = header.layout.tree
    chosen = tuple(sorted(r.sample(range(len(names)), r.randint(1, len(names)))))
    wanted = wanted_for(tree, chosen, ())
    records = [
        (p * header.layout.page_bytes, slot)
        for p in range(header.page_count)
        for slot in range(int(arena[p * header.layout.page_bytes + 16 :][:4].view("<u4")[0]))
    ]
    picked = [r.choice(records) for _ in range(r.choice((1, 7, 60)))]
    return r, arena, header.layout, wanted, [p for p, _ in picked], [s for _, s in picked]


def both(arena, layout, wanted, pages, slots):
    """Return the native answer and the twin's: ranges, or the number of the record that contradicts itself."""
    out = Located.empty(len(pages), wanted)
    program = program_for(layout, wanted)
    expected = naive.locate(arena, pages, slots, layout, wanted)
    at = np.array(pages, np.int64), np.array(slots, np.int64), np.arange(len(pages))
    try:
        locate(arena, *at, program, out)
    except CorruptData as error:
        return str(error), expected
    return out, expected


def assert_same(out, expected):
    for field in ("offset", "size", "slot", "crc", "shift", "counts", "bits", "fixed"):
        ours, theirs = getattr(out, field), getattr(expected, field)
        assert np.array_equal(ours, theirs), (field, np.argwhere(ours != theirs)[:3].tolist())


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
@example(seed=0)
def test_native_ranges_are_those_of_the_naive_twin(seed):
    _, arena, layout, wanted, pages, slots = scene(seed)
    assert_same(*both(arena, layout, wanted, pages, slots))


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), damage=st.integers(0, 2**32))
def test_damaged_pages_give_the_twins_ranges_or_the_same_refusal(seed, damage):
    _, arena, layout, wanted, pages, slots = scene(seed)
    r = random.Random(damage)
    for _ in range(r.randint(1, 6)):
        # Anything may stand there: bits, starts, bases, even more rows than there is room for.
        at = r.choice(
            (r.randrange(len(arena)), r.choice(pages) + r.randrange(PAGE_HEAD.size, layout.page_head_bytes + 8))
        )
        arena[at] = r.choice((0, 255, r.randrange(256)))
    for i in range(len(slots)):
        if r.random() < 0.1:
            slots[i] = r.choice((layout.rows_per_page, layout.rows_per_page + 1, 2**31))
    out, expected = both(arena, layout, wanted, pages, slots)
    if isinstance(expected, int):
        assert isinstance(out, str)
        assert f"entry {slots[expected]} of the page at {pages[expected]}" in out
    else:
        assert_same(out, expected)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), verify=st.booleans())
def test_native_layout_of_reads_is_that_of_the_naive_twin(seed, verify):
    r, arena, layout, wanted, pages, slots = scene(seed)
    located, _ = both(arena, layout, wanted, pages, slots)
    for i in range(len(wanted.lay)):  # as if some buffers were widened
        wanted.lay[i, 1:] = r.choice(((0, 1), (16, 2), (37, 4)))
    ends = sorted(r.randint(0, len(pages)) for _ in range(r.randint(0, 4))) + [len(pages)]
    files = np.array([r.randrange(2**32) for _ in pages], np.uint32)
    try:
        placed = lay_out(located, files, np.array(ends), wanted, verify)
        reads, read_ends, sizes, regions = naive.lay_out(located, files.tolist(), ends, wanted, verify)
    finally:
        wanted.lay[:, 1:] = (0, 1)  # the projection is cached, others use it
    fields = ("offset", "slot", "size", "file", "crc", "output", "op", "flags", "reserved")
    assert placed.reads.view(READ).reshape(-1)[list(fields)].tolist() == reads
    assert placed.ends.tolist() == read_ends
    assert placed.output_sizes.tolist() == sizes
    assert placed.regions.tolist() == [[list(region) for region in batch] for batch in regions]


@pytest.mark.parametrize("page", [-4096, 2**40, -(2**62)])
def test_a_page_outside_the_arena_is_refused_and_not_read(page):
    _, arena, layout, wanted, pages, slots = scene(3)
    out, expected = both(arena, layout, wanted, [*pages, page], [*slots, 0])
    assert isinstance(out, str)
    assert expected == len(pages)
