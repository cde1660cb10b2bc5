"""The Store contract, proved over every store on a file system and every engine.

Files are written and read back behind the store's back, so that no store vouches for itself.
"""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflestore.errors import NotFound, ShardTruncated
from shufflestore.storage.base import COPY, HAS_CRC, READ, UNKNOWN_SIZE, WIDEN, ZERO, ReadFailure, Store
from tests.every_store import (
    PATIENCE_SECONDS,
    REMOTE,
    SIZES,
    STORES,
    bytes_of,
    crc32c,
    failure_of,
    made_store,
    reads_of,
    submit_one,
    taken,
    words,
)  # fmt: skip


def test_it_is_a_store_with_a_place(store: Store, folder: Path):
    assert isinstance(store, Store)
    assert folder.name in store.uri


def test_reads_land_in_their_slots_of_their_outputs(store: Store):
    a, b = store.handle("a", SIZES["a"]), store.handle("deep/b", UNKNOWN_SIZE)
    reads = reads_of(
        {"file": a, "offset": 10, "size": 100, "slot": 7, "output": 1},
        {"file": b, "offset": 0, "size": 5_000, "slot": 0, "output": 0},
        {"file": a, "offset": 69_999, "size": 1, "slot": 0, "output": 1},
        {"file": a, "offset": 5, "size": 0, "slot": 107, "output": 1},
    )
    first, second = taken(submit_one(store, reads, 5_000, 107))
    assert np.array_equal(first, bytes_of("deep/b"))
    assert np.array_equal(second[7:], bytes_of("a")[10:110])
    assert second[0] == bytes_of("a")[-1]


def test_outputs_are_the_callers_writable_bytes_and_outlive_the_store(store: Store):
    a = store.handle("a", SIZES["a"])
    (out,) = taken(submit_one(store, reads_of({"file": a, "size": 50}), 50))
    store.close()
    assert out.dtype == np.uint8
    assert out.shape == (50,)
    assert out.flags.writeable
    out += 1
    assert np.array_equal(out, bytes_of("a")[:50] + np.uint8(1))


def test_the_same_name_has_the_same_number(store: Store):
    numbers = [store.handle(name, UNKNOWN_SIZE) for name in ("a", "deep/b", "a", "c", "deep/b")]
    assert numbers == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("pair", WIDEN, ids="-".join)
def test_integers_are_widened_with_their_sign(store: Store, pair: tuple[str, str]):
    source, target = (np.dtype(f"<{kind}") for kind in pair)
    a = store.handle("a", SIZES["a"])
    for size in (0, source.itemsize, 4_096, 64_000 // source.itemsize * source.itemsize):
        raw = bytes_of("a")[3 : 3 + size]
        reads = reads_of({"file": a, "offset": 3, "size": size, "slot": 5, "op": WIDEN[pair]})
        if size <= 4_096:
            reads["flags"], reads["crc"] = HAS_CRC, crc32c(raw.tobytes())
        room = size // source.itemsize * target.itemsize
        (out,) = taken(submit_one(store, reads, 5 + room))
        assert out[5:].tobytes() == raw.view(source).astype(target).tobytes()


def test_zeros_need_no_file(store: Store):
    reads = reads_of({"op": ZERO, "size": 9, "slot": 1, "file": 77}, {"op": ZERO, "size": 0, "slot": 10})
    (out,) = taken(submit_one(store, reads, 10))
    assert not out[1:].any()


def test_a_wrong_checksum_names_the_first_read_and_both_values(store: Store):
    a = store.handle("a", SIZES["a"])
    rows = [{"file": a, "offset": 10 * i, "size": 10, "slot": 10 * i, "flags": HAS_CRC} for i in range(300)]
    reads = reads_of(*rows)
    reads["crc"] = [crc32c(bytes_of("a")[10 * i : 10 * i + 10].tobytes()) for i in range(300)]
    taken(submit_one(store, reads, 3_000))
    found = int(reads["crc"][41])
    reads["crc"][[41, 42, 299]] ^= 1
    pending = submit_one(store, reads, 3_000)
    assert failure_of(pending) == ReadFailure(41, "checksum", 0, found ^ 1, found)
    with pytest.raises(ValueError, match="failed"):
        pending.take()


@pytest.mark.parametrize(("offset", "there"), [(4_990, 10), (5_000, 0), (9_999, 0)])
def test_a_read_beyond_the_end_is_short(store: Store, offset: int, there: int):
    b = store.handle("deep/b", 20_000)
    reads = reads_of({"file": b, "size": 5}, {"file": b, "offset": offset, "size": 100})
    assert failure_of(submit_one(store, reads, 100)) == ReadFailure(1, "short", 0, 100, there)


def test_a_missing_file_is_an_error_of_its_read_alone(store: Store):
    a, missing = store.handle("a", SIZES["a"]), store.handle("nowhere", 10)
    assert failure_of(submit_one(store, reads_of({"file": missing, "size": 1}), 1)) == ReadFailure(0, "errno", 2, 0, 0)
    taken(submit_one(store, reads_of({"file": a, "size": 1}), 1))


def test_a_file_cut_short_after_it_was_read_is_short_or_a_wrong_checksum(local: Store, folder: Path):
    store = local
    a = store.handle("a", SIZES["a"])
    (before,) = taken(submit_one(store, reads_of({"file": a, "size": 70_000}), 70_000))
    os.truncate(folder / "a", 33_000)
    reads = reads_of(*({"file": a, "offset": i, "size": 1_000, "slot": i} for i in range(0, 70_000, 1_000)))
    assert failure_of(submit_one(store, reads, 70_000)).index == 33
    reads["flags"] = HAS_CRC
    reads["crc"] = [crc32c(before[i : i + 1_000].tobytes()) for i in range(0, 70_000, 1_000)]
    failure = failure_of(submit_one(store, reads, 70_000))
    assert (failure.index, failure.kind in ("short", "checksum")) == (33, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slot": 91}, {"slot": 2**64 - 5}, {"size": 101}, {"size": 2**64 - 1}, {"offset": 2**64 - 5},
        {"offset": 2**63}, {"file": 1}, {"output": 1}, {"flags": 2}, {"op": 2}, {"op": 15}, {"op": 255},
        {"op": WIDEN["u2", "i8"], "size": 50}, {"op": WIDEN["u2", "i8"], "size": 5}, {"op": ZERO, "size": 101},
        {"op": WIDEN["u1", "i8"], "size": 2**61},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_descriptor_is_refused_by_its_index(store: Store, wrong: dict[str, int]):
    a = store.handle("a", SIZES["a"])
    good = {"file": a, "offset": 0, "size": 10, "slot": 0}
    with pytest.raises(ValueError, match="read 2 "):
        store.submit(reads_of(good, good, good | wrong), words(1, 3), words(100, 100).reshape(2, 1))


@pytest.mark.parametrize("ends", [(2, 1, 3), (1, 4), (1, 2), ()], ids=str)
def test_ends_must_rise_to_the_number_of_reads(store: Store, ends: tuple[int, ...]):
    a = store.handle("a", SIZES["a"])
    reads = reads_of(*[{"file": a, "size": 1}] * 3)
    with pytest.raises(ValueError, match=r"ends|read"):
        store.submit(reads, words(*ends), np.ones((len(ends), 1), np.uint64))


def test_shapes_that_disagree_are_refused(store: Store):
    reads = reads_of({"op": ZERO})
    with pytest.raises(ValueError, match="output"):
        store.submit(reads, words(1), np.zeros((2, 1), np.uint64))
    with pytest.raises((ValueError, TypeError)):
        store.submit(np.zeros((1, 5), np.float64), words(1), np.zeros((1, 1), np.uint64))


def test_the_descriptors_are_copied(store: Store):
    a = store.handle("a", SIZES["a"])
    reads, ends, sizes = reads_of({"file": a, "size": 10}), words(1), words(10).reshape(1, 1)
    (pending,) = store.submit(reads, ends, sizes)
    reads["offset"] = reads["size"] = reads["slot"] = 2**60
    ends[:] = sizes[:] = 0
    assert np.array_equal(taken(pending)[0], bytes_of("a")[:10])


def test_no_batches_and_empty_batches_are_fine(store: Store):
    nothing = np.zeros(0, READ)
    assert list(store.submit(nothing, words(), np.zeros((0, 3), np.uint64))) == []
    first, second = store.submit(nothing, words(0, 0), words(4, 0).reshape(2, 1))
    assert [len(taken(first)[0]), len(taken(second)[0])] == [4, 0]


def test_many_batches_fly_at_once_and_are_taken_in_any_order(store: Store):
    numbers = {name: store.handle(name, size) for name, size in SIZES.items()}
    rng = np.random.default_rng(0)
    flying = []
    for _ in range(10):
        rows, oracle = [], []
        for _ in range(40):
            name = str(rng.choice(["a", "deep/b"]))
            size = int(rng.integers(0, 3_000))
            offset = int(rng.integers(0, SIZES[name] - size))
            rows.append({"file": numbers[name], "offset": offset, "size": size, "slot": sum(map(len, oracle))})
            oracle.append(bytes_of(name)[offset : offset + size])
        flying.append((submit_one(store, reads_of(*rows), sum(map(len, oracle))), np.concatenate(oracle)))
    for i in rng.permutation(len(flying)):
        pending, expected = flying[i]
        assert np.array_equal(taken(pending)[0], expected)


def test_take_works_once_and_only_after_success(store: Store):
    pending = submit_one(store, reads_of({"op": ZERO, "size": 3}), 3)
    taken(pending)
    with pytest.raises(ValueError, match="before"):
        pending.take()


def test_a_cancelled_batch_ends_and_may_say_closed(store: Store):
    a = store.handle("a", SIZES["a"])
    reads = reads_of(*[{"file": a, "size": 50_000}] * 200)
    batches = [submit_one(store, reads, 50_000) for _ in range(4)]
    batches[-1].cancel()
    batches[-1].cancel()
    assert batches[-1].wait(PATIENCE_SECONDS)
    assert batches[-1].is_done()
    failure = batches[-1].failure()
    assert failure is None or failure.kind == "closed"
    assert np.array_equal(taken(batches[0])[0], bytes_of("a")[:50_000])


def test_close_ends_batches_in_flight_and_may_be_repeated(store: Store):
    a = store.handle("a", SIZES["a"])
    reads = reads_of(*[{"file": a, "size": 50_000}] * 100)
    flying = [submit_one(store, reads, 50_000) for _ in range(5)]
    store.close()
    store.close()
    for pending in flying:
        assert pending.wait(PATIENCE_SECONDS)
        failure = pending.failure()
        assert failure is None or failure.kind == "closed"
    with pytest.raises(ValueError, match="closed"):
        submit_one(store, reads, 50_000)


def test_it_crosses_processes_as_a_place(store: Store):
    store.handle("a", SIZES["a"])
    other = pickle.loads(pickle.dumps(store))
    assert (type(other), other.uri) == (type(store), store.uri)
    b = other.handle("deep/b", SIZES["deep/b"])
    assert np.array_equal(taken(submit_one(other, reads_of({"file": b, "size": 9}), 9))[0], bytes_of("deep/b")[:9])
    other.close()


def test_a_forked_child_reads_on_with_the_same_numbers(store: Store):
    a, b = store.handle("a", SIZES["a"]), store.handle("deep/b", SIZES["deep/b"])
    reads = reads_of({"file": b, "size": 5_000}, {"file": a, "size": 1, "slot": 5_000})
    expected = bytes_of("deep/b").tobytes() + bytes_of("a")[:1].tobytes()
    assert taken(submit_one(store, reads, 5_001))[0].tobytes() == expected
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pending = submit_one(store, reads, 5_001)
            code = 0 if taken(pending)[0].tobytes() == expected else 2
            store.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert taken(submit_one(store, reads, 5_001))[0].tobytes() == expected


def test_size_and_read_give_the_bytes_of_a_file(store: Store):
    data = bytes_of("deep/b").tobytes()
    assert store.size("deep/b") == 5_000
    assert store.read("deep/b") == data
    assert store.read("deep/b", 4_000) == data[4_000:]
    assert store.read("deep/b", 100, 50) == data[100:150]
    assert store.read("deep/b", 5_000) == b""
    with pytest.raises(ShardTruncated, match="5,000"):
        store.read("deep/b", 4_990, 20)
    with pytest.raises(ShardTruncated):
        store.read("deep/b", 5_001)
    for call in (store.size, store.read):
        with pytest.raises(NotFound, match="nowhere"):
            call("nowhere")


def test_put_publishes_once(writable: Store, folder: Path):
    store = writable
    assert store.put_if_absent("new/deeper/name", b"first")
    assert not store.put_if_absent("new/deeper/name", b"second")
    assert (folder / "new/deeper/name").read_bytes() == b"first"
    assert os.listdir(folder / "new/deeper") == ["name"]


def test_of_many_threads_that_put_one_name_one_wins(writable: Store, folder: Path):
    store = writable
    won: list[int] = []
    start = threading.Barrier(8)

    def put(i: int) -> None:
        start.wait()
        if store.put_if_absent("prize", b"%d" % i):
            won.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len(won) == 1
    assert (folder / "prize").read_bytes() == b"%d" % won[0]


def test_list_is_sorted_and_knows_no_temporary_files(writable: Store, folder: Path):
    store = writable
    for name in ("deep/.tmp-1-2-3", ".tmp-x", "deep-er", "deep/er/z", "deep/a"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    assert list(store.list("")) == ["a", "c", "deep-er", "deep/a", "deep/b", "deep/er/z"]
    assert list(store.list("deep/")) == ["deep/a", "deep/b", "deep/er/z"]
    assert list(store.list("deep")) == ["deep-er", "deep/a", "deep/b", "deep/er/z"]
    assert list(store.list("deep/e")) == ["deep/er/z"]
    assert list(store.list("nowhere/")) == []


@pytest.mark.parametrize("kind", REMOTE)
def test_an_object_that_was_replaced_is_named(kind: str, folder: Path, request: pytest.FixtureRequest):
    store = made_store(kind, folder, request)
    a = store.handle("a", SIZES["a"])
    taken(submit_one(store, reads_of({"file": a, "size": 100}), 100))
    (folder / "a").write_bytes(bytes(SIZES["a"]))
    failure = failure_of(submit_one(store, reads_of({"file": a, "offset": 7, "size": 100}), 100))
    assert (failure.index, failure.kind) == (0, "changed")
    store.close()


def test_delete_may_be_repeated(store: Store, folder: Path):
    store.delete("a")
    store.delete("a")
    assert not (folder / "a").exists()


@st.composite
def batches(draw: st.DrawFn) -> list[list[tuple[str, int, int, int]]]:
    """Batches of (file, op, offset, count of integers)."""
    one = st.sampled_from(["a", "deep/b", "c"]).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.sampled_from([COPY, ZERO, *WIDEN.values()]),
            st.integers(0, SIZES[name]),
            st.integers(0, 5_000),
        )
    )
    return draw(st.lists(st.lists(one, max_size=20), max_size=4))


@pytest.mark.parametrize("kind", [*STORES, *REMOTE])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=batches())
def test_any_batches_equal_their_oracle(
    folder: Path, request: pytest.FixtureRequest, kind: str, plan: list[list[tuple[str, int, int, int]]]
):
    sources = {op: pair for pair, op in WIDEN.items()}
    store = made_store(kind, folder, request)
    rows, ends, sizes, oracles = [], [], [], []
    for batch in plan:
        slot, oracle = 0, []
        for name, op, offset, count in batch:
            width = np.dtype(sources[op][0]).itemsize if op in sources else 1
            size = min(count, (SIZES[name] - offset) // width) * width
            raw = bytes_of(name)[offset : offset + size]
            made = np.zeros(size, np.uint8) if op == ZERO else raw
            if op in sources:
                made = raw.view(f"<{sources[op][0]}").astype(f"<{sources[op][1]}").view(np.uint8)
            number = store.handle(name, SIZES[name])
            rows.append({"file": number, "op": op, "offset": offset, "size": size, "slot": slot})
            if size < 300:
                rows[-1] |= {"flags": HAS_CRC, "crc": crc32c(raw.tobytes())}
            oracle.append(made)
            slot += len(made)
        ends.append(len(rows))
        sizes.append(slot)
        oracles.append(oracle)
    pendings = store.submit(reads_of(*rows), words(*ends), words(*sizes).reshape(-1, 1))
    for pending, oracle in zip(pendings, oracles, strict=True):
        (out,) = taken(pending)
        assert out.tobytes() == b"".join(part.tobytes() for part in oracle)
    store.close()
