"""Flatbuffer tables: what we write Arrow reads, and what anybody wrote is checked before it is used."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from shufflestore.errors import FormatError
from shufflestore.format.flatbuffer import Table, root, table

PAIR = np.dtype([("a", "<i8"), ("b", "<i8")])


def example() -> bytes:
    inner = table([("<q", 7), None, ("<b", -1)])
    return table([("<h", 4), ("<B", 3), inner, ("<q", -(2**40)), None, np.array([(1, 2), (3, 4)], PAIR)])


def test_what_is_written_is_read_back():
    top = root(example())
    assert (top.number(0, "<h"), top.number(1, "<B"), top.number(3, "<q")) == (4, 3, -(2**40))
    inner = top.table(2)
    assert inner is not None
    assert (inner.number(0, "<q"), inner.number(1, "<q", 99), inner.number(2, "<b")) == (7, 99, -1)
    assert top.structs(5, PAIR).tolist() == [(1, 2), (3, 4)]


def test_absent_fields_have_their_defaults():
    top = root(example())
    assert top.number(4, "<q", -5) == -5
    assert top.table(4) is None
    assert top.table(40) is None
    assert top.structs(9, PAIR).tolist() == []
    assert top.tables(9) == []


def test_vectors_of_eight_byte_items_stand_at_multiples_of_eight():
    data = example()
    assert len(data) % 8 == 0
    assert data.index(struct.pack("<qqqq", 1, 2, 3, 4)) % 8 == 0


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 8, b"\0" * 64, struct.pack("<I", 2**31) + bytes(60)])
def test_bytes_that_are_no_table_are_refused(data):
    with pytest.raises(FormatError):
        root(data)


def walk(found: Table, depth: int = 0) -> None:
    for field in range(70):
        for code in ("<b", "<h", "<q"):
            found.number(field, code)
    if depth < 3:
        for field in range(8):
            found.structs(field, PAIR)
            for inner in [found.table(field), *found.tables(field)[:4]]:
                if inner is not None:
                    walk(inner, depth + 1)


def test_hostile_tables_end_in_the_named_error_or_in_numbers():
    good, refused = example(), 0
    for seed in range(1500):
        r = random.Random(seed)
        data = bytearray(good)
        for _ in range(r.randint(1, 4)):
            data[r.randrange(len(data))] = r.choice((0, 1, 127, 128, 255, r.randrange(256)))
        try:
            walk(root(bytes(data[: r.choice((len(data), r.randrange(len(data) + 1)))])))
        except FormatError:
            refused += 1
    assert refused > 500
