"""Placing fetched bytes: what the naive twin says, and nothing at all for a descriptor that is wrong."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflestore._native import crc32c, place
from shufflestore.storage.base import COPY, HAS_CRC, READ, WIDEN, ZERO
from tests.naive.place import is_sound, naive_place

DATA = np.random.default_rng(3).integers(0, 256, 200, dtype=np.uint8).tobytes()
EDGES = [0, 1, 2**31, 2**32, 2**63 - 200, 2**63 - 1, 2**63, 2**64 - 200, 2**64 - 1]


def rows(reads: Any) -> Any:
    return reads.view(np.uint64).reshape(len(reads), 5)


def made(*fields: dict[str, int]) -> Any:
    reads = np.zeros(len(fields), READ)
    for i, one in enumerate(fields):
        for name, value in one.items():
            reads[i][name] = value
    return reads


@st.composite
def sound(draw: st.DrawFn, data_offset: int) -> dict[str, int]:
    op = draw(st.sampled_from([COPY, COPY, ZERO, *WIDEN.values()]))
    width, wide = next(((int(s[1]), int(t[1])) for (s, t), code in WIDEN.items() if code == op), (1, 1))
    count = draw(st.integers(0, 40))
    begin = draw(st.integers(0, len(DATA) - count * width))
    read = {
        "op": op,
        "offset": data_offset + begin,
        "size": count * width,
        "slot": draw(st.integers(0, 400 - count * wide)),
    }
    read["output"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        read["flags"] = HAS_CRC
        read["crc"] = crc32c(DATA[begin : begin + count * width]) ^ draw(st.sampled_from([0, 0, 0, 0, 1]))
    return read


@st.composite
def hostile(draw: st.DrawFn, data_offset: int) -> dict[str, int]:
    read = draw(sound(data_offset))
    field = draw(st.sampled_from(["offset", "size", "slot", "output", "op", "flags"]))
    most = {"output": 2**16 - 1, "op": 255, "flags": 255}.get(field, 2**64 - 1)
    near = [
        value
        for edge in [*EDGES, read.get(field, 0), data_offset + len(DATA), 400]
        for value in (edge - 1, edge, edge + 1)
    ]
    read[field] = draw(st.sampled_from([value for value in near if 0 <= value <= most]) | st.integers(0, most))
    return read


@settings(max_examples=600, deadline=None)
@given(st.data(), st.sampled_from([0, 5_000, 2**40, 2**63 - 1 - len(DATA)]))
def test_slots_hold_what_the_twin_says_or_nothing_was_touched(data: st.DataObject, data_offset: int) -> None:
    reads = made(*data.draw(st.lists(sound(data_offset) | sound(data_offset) | hostile(data_offset), max_size=6)))
    outputs = [np.full(400, 0xAA, np.uint8) for _ in range(2)]
    twin = [bytearray(b"\xaa" * 400) for _ in range(2)]
    if not all(is_sound(read, len(DATA), data_offset, twin) for read in reads):
        with pytest.raises(ValueError, match=r"read \d"):
            place(DATA, data_offset, rows(reads), outputs)
        assert all((output == 0xAA).all() for output in outputs)
        return
    wrong = place(DATA, data_offset, rows(reads), outputs)
    assert wrong == naive_place(DATA, data_offset, reads, twin)
    if wrong is not None:  # its own slot holds anything: compare with what stands there
        failed = reads[wrong[0]]
        touched = {k: int(failed[k]) for k in ("output", "slot", "size")}
        for k in range(2):
            same = np.array(outputs[k] == np.frombuffer(twin[k], np.uint8))
            if k == touched["output"]:
                same[touched["slot"] : touched["slot"] + 8 * touched["size"]] = True
            assert same.all()
        return
    assert [output.tobytes() for output in outputs] == [bytes(output) for output in twin]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_bytes_will_do(kind: Any) -> None:
    output = np.zeros(10, np.uint8)
    assert place(kind(DATA), 7, rows(made({"offset": 17, "size": 10})), [output]) is None
    assert output.tobytes() == DATA[10:20]


def test_outputs_and_rows_are_never_converted() -> None:
    reads, output = rows(made({"size": 4})), np.zeros(8, np.uint8)
    read_only = output.copy()
    read_only.flags.writeable = False
    for wrong in (output.view(np.int8), output[::2], read_only, output.reshape(2, 4), [0] * 8, None):
        with pytest.raises(TypeError):
            place(DATA, 0, reads, [wrong])
    for wrong in (reads.astype(np.int64), reads[:, :4], reads.reshape(-1), np.zeros((5, 2), np.uint64).T[:1]):
        with pytest.raises(TypeError):
            place(DATA, 0, wrong, [output])
    for wrong in (np.zeros(8, np.uint16), DATA.decode("latin1"), None):
        with pytest.raises(TypeError):
            place(wrong, 0, reads, [output])
    for offset in (-1, 2**64, 1.5):
        with pytest.raises(TypeError):
            place(DATA, offset, reads, [output])
    assert not output.any()


def test_an_output_that_is_the_data_is_refused() -> None:
    both = np.zeros(20, np.uint8)
    with pytest.raises(ValueError, match="output 0 shares memory"):
        place(both[:11], 0, rows(made({"size": 4})), [both[10:]])
    assert place(both[:10], 0, rows(made({"size": 4})), [both[10:]]) is None


def test_other_threads_run_while_much_is_placed() -> None:
    data = np.zeros(64 << 20, np.uint8)
    reads = rows(made({"size": len(data), "flags": HAS_CRC, "crc": crc32c(data)}))
    output, results = np.ones_like(data), []
    began = threading.Event()

    def work() -> None:
        began.set()
        for _ in range(20):
            results.append(place(data, 0, reads, [output]))

    thread = threading.Thread(target=work)
    thread.start()
    began.wait(10)
    steps = 0
    while thread.is_alive():
        steps += 1
        thread.join(0.0005)
    # With the GIL held, this thread would come to a turn between two calls at most.
    assert steps > 40
    assert results == [None] * 20
    assert not output.any()
