"""The native core resolves rows and lays out reads exactly as the naive twin does."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shufflestore.errors import CorruptData
from shufflestore.format.layout import PAGE_HEAD
from shufflestore.format.resolve import Arena, Window, program_for, resolve, wanted_for
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
        (p, slot)
        for p in range(header.page_count)
        for slot in range(int(arena[p * header.layout.page_bytes + 16 :][:4].view("<u4")[0]))
    ]
    picked = [r.choice(records) for _ in range(r.choice((1, 7, 60)))]
    return r, arena, header.layout, wanted, [p for p, _ in picked], [s for _, s in picked]


FIELDS = ("ends", "output_sizes", "regions", "counts", "offsets", "bits", "shift")
READ_FIELDS = ["offset", "slot", "size", "file", "crc", "output", "op", "flags", "reserved"]


def both(r, arena, layout, wanted, pages, slots, verify=True):
    """Return the native answer and the twin's: what was resolved, or which record contradicts itself."""
    ends = sorted(r.randint(0, len(pages)) for _ in range(r.randint(0, 4))) + [len(pages)]
    files = [r.randrange(2**32) for _ in pages]
    expected = naive.resolve(arena, pages, slots, files, ends, layout, wanted, verify)
    here = Arena(arena, np.arange(1, len(arena) // layout.page_bytes + 1, dtype=np.int32), layout.page_bytes)
    # As if records of another layout lay between them, or all were of one.
    programs, which = [program_for(layout, wanted)], None
    if r.random() < 0.5:
        programs, which = programs * 3, np.array([r.randrange(3) for _ in pages], np.int64)
    window = Window(
        np.array(pages, np.int64), np.array(slots, np.int64), np.array(files, np.uint32), which, np.array(ends)
    )
    try:
        return resolve(here, programs, window, wanted, verify), expected
    except CorruptData as error:
        return str(error), expected


def assert_same(out, expected, wanted):
    theirs, reads = expected
    for field in FIELDS:
        assert np.array_equal(getattr(out, field), getattr(theirs, field)), field
    for at, width in wanted.copied.values():
        assert np.array_equal(out.copied(at, width, None, ()), theirs.copied(at, width, None, ()))
    assert out.reads.view(READ).reshape(-1)[READ_FIELDS].tolist() == reads


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), verify=st.booleans())
@example(seed=0, verify=True)
def test_native_reads_are_those_of_the_naive_twin(seed, verify):
    r, arena, layout, wanted, pages, slots = scene(seed)
    for row in wanted.lay:  # as if some buffers were widened
        row[1:3] = r.choice(((0, 1), (16, 2), (37, 4)))
    try:
        assert_same(*both(r, arena, layout, wanted, pages, slots, verify), wanted)
    finally:
        wanted.lay[:, 1:3] = (0, 1)  # the projection is cached, others use it


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), damage=st.integers(0, 2**32))
def test_damaged_pages_give_the_twins_reads_or_the_same_refusal(seed, damage):
    _, arena, layout, wanted, pages, slots = scene(seed)
    r = random.Random(damage)
    for _ in range(r.randint(1, 6)):
        # Anything may stand there: bits, starts, bases, even more rows than there is room for.
        at = r.choice(
            (
                r.randrange(len(arena)),
                r.choice(pages) * layout.page_bytes + r.randrange(PAGE_HEAD.size, layout.page_head_bytes + 8),
            )
        )
        arena[at] = r.choice((0, 255, r.randrange(256)))
    for i in range(len(slots)):
        if r.random() < 0.1:
            slots[i] = r.choice((layout.rows_per_page, layout.rows_per_page + 1, 2**31))
    out, expected = both(r, arena, layout, wanted, pages, slots)
    if isinstance(expected, int):
        assert isinstance(out, str)
        # Records of one layout are looked at together, so another one's contradiction may be met first.
        assert "contradicts itself at entry" in out
    else:
        assert_same(out, expected, wanted)


@pytest.mark.parametrize("page", [-1, 2**40, -(2**62)])
def test_a_page_outside_the_arena_is_refused_and_not_read(page):
    r, arena, layout, wanted, pages, slots = scene(3)
    out, expected = both(r, arena, layout, wanted, [*pages, page], [*slots, 0])
    assert isinstance(out, str)
    assert f"entry 0 of page {page}:" in out
    assert expected == len(pages)
