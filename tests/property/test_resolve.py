"""The native core resolves rows and lays out reads exactly as the naive twin does."""

from __future__ import annotations

import random
from itertools import count

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shufflestore import _native
from shufflestore.dataset.chunks import ChunkTable
from shufflestore.dataset.reading import widening
from shufflestore.format.resolve import RESOLVED, program_for, resolve, wanted_for
from shufflestore.format.schema import Role, build_tree, integer_code, is_whole, plain_type, rebuilt
from shufflestore.storage.base import READ, WIDEN
from tests.arrays import NULLS, TYPES, pool
from tests.invented import arrow_bytes, index_of, joined
from tests.naive import resolve as naive
from tests.property.test_types import cut

SPANS = tuple(name for name in TYPES if not is_whole(pool(name, "none").type))


def declared_for(r, stored):
    """Return a schema of which the shard stores some integers of lists narrower; often just what it stores."""
    if r.random() < 0.3:
        return stored
    tree = build_tree(stored)
    codes = {
        n.number: r.choice([wide for narrow, wide in sorted(WIDEN) if narrow == integer_code(n.type)])
        for n in tree.nodes
        if n.data >= 0
        and tree.buffers[n.data].role == Role.VALUES
        and not tree.buffers[n.data].is_at_row_depth
        and integer_code(n.type) not in (None, "i8", "u8")
        and r.random() < 0.7
    }

    def declared(field, numbers):
        number = next(numbers)
        if number in codes:
            return field.with_type(pa.from_numpy_dtype(np.dtype(codes[number])))
        if pa.types.is_map(field.type):
            next(numbers)  # its entries
        return field.with_type(rebuilt(field.type, lambda child: declared(child, numbers)))

    return pa.schema(
        [
            field if plain_type(field.type) != field.type else declared(field, count(tree.top(i).number))
            for i, field in enumerate(stored)
        ]
    )


def scene(seed):
    """Return the pages of a made index, its header, a projection, and records to resolve: ids, pages, entries."""
    r = random.Random(seed)
    names = r.sample(SPANS, r.randint(1, 6))
    length = r.choice((1, 2, 31, 33, 130))
    columns = {n: pool(n, r.choice(NULLS)).slice(r.randint(0, 17), length) for n in names}
    batches = cut(r, columns)
    schema = declared_for(r, batches[0].schema)
    built = index_of(arrow_bytes(batches), r.random() < 0.8, schema)
    header, tree = built.header, build_tree(schema)
    arena = np.frombuffer(joined(built), np.uint8)[header.pages_at :].copy()
    chosen = tuple(sorted(r.sample(range(len(names)), r.randint(1, len(names)))))
    codes = {b.number: integer_code(tree.nodes[b.node].type) for b in tree.buffers if b.role == Role.VALUES}
    targets = {b: [wide for narrow, wide in sorted(WIDEN) if narrow == code] for b, code in codes.items()}
    wide = {b: r.choice(codes) for b, codes in targets.items() if codes and r.random() < 0.5}
    wanted = wanted_for(tree, chosen, tuple(wide.items()), widening)
    table = ChunkTable.parse(joined(built)[header.header_bytes :][: header.table_bytes], header, "made")
    ids = [r.randrange(length) for _ in range(r.choice((1, 7, 60, 150)))]
    return r, arena, header, table, wanted, ids


def pages_of(header, table, ids):
    """Return the page and entry of each row, by the chunk table alone."""
    per, found = header.layout.rows_per_page, []
    for i in ids:
        chunk = max(c for c in range(header.chunk_count) if table.first_row[c] <= i and table.rows(c))
        within = i - int(table.first_row[chunk])
        found.append((int(table.first_page[chunk]) + within // per, within % per))
    return [page for page, _ in found], [entry for _, entry in found]


def shards_of(r, header, table, layouts):
    """Return the core's shard table: this shard, twice or three times one after the other, each of another layout."""
    rows, pages = header.row_count, header.page_count
    is_regular = bool(header.chunk_rows) and r.random() < 0.7
    one = np.ones(layouts, np.int64)
    return _native.Shards(
        np.arange(layouts + 1) * rows,
        one * header.layout.rows_per_page,
        one * (header.chunk_rows if is_regular else 0),
        one * (header.pages_per_chunk if is_regular else header.chunk_count),
        np.arange(layouts + 1) * pages,
        np.arange(layouts),
        np.arange(layouts, dtype=np.uint32) + np.uint32(7),
        np.zeros(layouts, np.int64),
        np.array(table.first_row[:-1]),
        np.array(table.first_page[:-1]),
    )


FIELDS = ("ends", "output_sizes", "regions", "counts", "offsets", "bits", "shift")
READ_FIELDS = ["offset", "slot", "size", "file", "crc", "output", "op", "flags", "reserved"]


def both(r, arena, header, table, wanted, ids, verify=True):
    """Return the native answer and the twin's: what was resolved, or which record contradicts itself."""
    layout, layouts = header.layout, r.choice((1, 2, 3))
    ends = sorted(r.randint(0, len(ids)) for _ in range(r.randint(0, 4))) + [len(ids)]
    which = [r.randrange(layouts) for _ in ids]
    pages, entries = pages_of(header, table, ids)
    files = [7 + w for w in which]
    expected = naive.resolve(arena, pages, entries, files, ends, layout, wanted, verify)
    # The pages of every shard are those of the one.
    slot_of = np.tile(np.arange(1, header.page_count + 1, dtype=np.int32), layouts)
    here = _native.Arena(arena, slot_of, layout.page_bytes)
    numbers = np.array(ids, np.int64) + np.array(which, np.int64) * header.row_count
    shards = shards_of(r, header, table, layouts)
    found, out = resolve(here, shards, [program_for(layout, wanted)] * layouts, numbers, np.array(ends), wanted, verify)
    return (out if found == RESOLVED else found), expected


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
    r, arena, header, table, wanted, ids = scene(seed)
    assert_same(*both(r, arena, header, table, wanted, ids, verify), wanted)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), damage=st.integers(0, 2**32))
@example(seed=544, damage=544)  # the first element lies beyond all files, in a buffer that the shard lacks
def test_damaged_pages_give_the_twins_reads_or_the_same_refusal(seed, damage):
    _, arena, header, table, wanted, ids = scene(seed)
    r, layout = random.Random(damage), header.layout
    pages, _ = pages_of(header, table, ids)
    for _ in range(r.randint(1, 6)):
        # Anything may stand there: bits, starts, bases, even more or fewer rows than there are.
        at = r.choice(
            (
                r.randrange(len(arena)),
                r.choice(pages) * layout.page_bytes + r.randrange(16, layout.page_head_bytes + 8),
            )
        )
        arena[at] = r.choice((0, 255, r.randrange(256)))
    out, expected = both(r, arena, header, table, wanted, ids)
    if isinstance(expected, int):
        # Records of one layout are looked at together, so another one's contradiction may be met first.
        assert isinstance(out, int)
        assert out >= 0
    else:
        assert_same(out, expected, wanted)
