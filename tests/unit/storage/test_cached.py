"""The cache before a store: the bytes of the store, each block fetched once, a bound that holds, and damage that is healed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflestore._native import crc32c
from shufflestore.errors import NotFound, OptionError
from shufflestore.storage.base import COPY, HAS_CRC, READ, UNKNOWN_SIZE, WIDEN, ZERO
from shufflestore.storage.cache_files import CacheFolder
from shufflestore.storage.cache_room import described
from shufflestore.storage.cached import CachedStore
from shufflestore.storage.posix import PosixStore
from tests.scenes import ROOT, files_of

BLOCK = 1_000
SIZES = {"a": 25_300, "b": 4_000, "c": 1}
DATA = {name: np.random.default_rng(i).integers(0, 256, size, np.uint8) for i, (name, size) in enumerate(SIZES.items())}


class Counting(PosixStore):
    """A store that remembers what it was asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[tuple[int, int, int]] = []

    def submit(self, reads: Any, ends: Any, output_sizes: Any, flow: Any = None) -> Any:
        self.asked += [(int(r["file"]), int(r["offset"]), int(r["size"])) for r in reads if r["op"] != ZERO]
        return super().submit(reads, ends, output_sizes, flow)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return files_of(tmp_path / "source", DATA)


@pytest.fixture
def inner(source: Path) -> Counting:
    return Counting(source)


@pytest.fixture
def store(inner: Counting, tmp_path: Path) -> Iterator[CachedStore]:
    made = CachedStore(inner, tmp_path / "cache", None, block_bytes=BLOCK)
    yield made
    made.close()


def read(store: Any, spans: list[tuple[str, int, int]], checked: bool = True) -> list[bytes]:
    """One batch of spans; the bytes of each."""
    reads = np.zeros(len(spans), READ)
    slot = 0
    for i, (name, offset, size) in enumerate(spans):
        reads[i]["file"] = store.handle(name, SIZES[name])
        reads[i]["offset"], reads[i]["size"], reads[i]["slot"] = offset, size, slot
        if checked:
            reads[i]["crc"], reads[i]["flags"] = crc32c(DATA[name][offset : offset + size].tobytes()), HAS_CRC
        slot += size
    (pending,) = store.submit(reads, np.array([len(reads)], np.uint64), np.array([[slot]], np.uint64))
    assert pending.wait(30)
    assert pending.failure() is None, pending.failure()
    (out,) = pending.take()
    return [out[int(r["slot"]) : int(r["slot"] + r["size"])].tobytes() for r in reads]


def right(spans: list[tuple[str, int, int]]) -> list[bytes]:
    return [DATA[name][offset : offset + size].tobytes() for name, offset, size in spans]


def test_a_block_is_fetched_once_and_then_read_here(store: CachedStore, inner: Counting):
    spans = [("a", 10, 50), ("a", 900, 300), ("a", 25_200, 100), ("a", 15, 5)]
    assert read(store, spans) == right(spans)
    assert inner.asked == [(0, 0, 2_000), (0, 25_000, 300)], (
        "whole blocks, neighbours together, up to the end of the file"
    )
    inner.asked.clear()
    spans = [("a", 1_999, 1), ("a", 0, 2_000), ("a", 25_299, 1)]
    assert read(store, spans) == right(spans)
    assert inner.asked == []
    assert store.files.kept_bytes == 3 * BLOCK


def test_batches_of_one_submission_share_blocks(store: CachedStore, inner: Counting):
    a = store.handle("a", SIZES["a"])
    reads = np.zeros(6, READ)
    reads["file"], reads["offset"], reads["size"] = a, [5, 100, 700, 3_100, 5, 3_900], 10
    reads["slot"] = [0, 10, 0, 10, 0, 10]
    pendings = store.submit(reads, np.array([2, 4, 6], np.uint64), np.full((3, 1), 20, np.uint64))
    outs = []
    for pending in reversed(pendings):
        assert pending.wait(30)
        outs.append(pending.take()[0].tobytes())
    offsets = [(5, 3_900), (700, 3_100), (5, 100)]
    assert outs == [b"".join(DATA["a"][o : o + 10].tobytes() for o in two) for two in offsets]
    assert sorted(inner.asked) == [(0, 0, 1_000), (0, 3_000, 1_000)]


def test_another_process_and_a_second_opening_find_what_is_kept(store: CachedStore, source: Path, tmp_path: Path):
    spans = [("a", i, 300) for i in range(0, 25_000, 300)]
    read(store, spans)
    store.close()
    again = Counting(source)
    second = CachedStore(again, tmp_path / "cache", None, block_bytes=BLOCK)
    assert read(second, spans) == right(spans)
    third = pickle.loads(pickle.dumps(CachedStore(PosixStore(source), tmp_path / "cache", None, block_bytes=BLOCK)))
    assert read(third, spans) == right(spans)
    assert again.asked == []
    second.close()
    third.close()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("what", ["blocks", "map"])
def test_damage_of_the_local_files_is_healed(store: CachedStore, inner: Counting, checked: bool, what: str):
    spans = [("a", 2_100, 500)]
    read(store, spans)
    (path,) = [p for p in store.files.folder.glob(f"*.{what}") if p.stat().st_size]
    data = bytearray(path.read_bytes())
    data[2_300 if what == "blocks" else 2 * 4] ^= 4
    path.write_bytes(data)
    store.close()
    other = Counting(Path(inner.root))
    fresh = CachedStore(other, store.files.root, None, block_bytes=BLOCK)
    assert read(fresh, spans, checked) == right(spans)
    if not (what == "map" and checked):  # there the record's own checksum says that its bytes are good
        assert other.asked, "read from the store again"
        other.asked.clear()
        assert read(fresh, spans, checked) == right(spans)
        other.asked.clear()
        assert read(fresh, spans, checked) == right(spans)
        assert not other.asked, "kept again"
    assert fresh.files.kept_bytes == BLOCK
    fresh.close()


def test_a_limit_holds_and_what_finds_no_room_is_read_as_it_is(inner: Counting, tmp_path: Path):
    store = CachedStore(inner, tmp_path / "cache", 3 * BLOCK, block_bytes=BLOCK)
    spans = [("a", i * BLOCK, 10) for i in range(20)]
    for _ in range(2):
        for span in spans:
            assert read(store, [span]) == right([span])
    assert store.files.kept_bytes == 3 * BLOCK
    assert sum(p.stat().st_blocks * 512 for p in store.files.folder.glob("*.blocks")) <= 8 * 4096
    assert inner.asked.count((0, 5 * BLOCK, 10)) == 2, "only what was asked for, not the block"
    store.close()


@pytest.mark.parametrize("limit", [0, BLOCK - 1])
def test_a_limit_below_a_block_keeps_nothing(inner: Counting, tmp_path: Path, limit: int):
    store = CachedStore(inner, tmp_path / "cache", limit, block_bytes=BLOCK)
    assert read(store, [("b", 1, 5)]) == right([("b", 1, 5)])
    assert store.files.kept_bytes == 0
    store.close()


def test_room_is_made_of_places_that_nobody_reads_and_never_of_those_in_use(source: Path, tmp_path: Path):
    def place(uri: str) -> CachedStore:
        inner = PosixStore(source)
        inner.uri = uri
        return CachedStore(inner, tmp_path / "cache", 4 * BLOCK, block_bytes=BLOCK)

    old, busy = place("old"), place("busy")
    read(old, [("a", 0, 10)])
    read(busy, [("a", 0, 10), ("a", 3_000, 10)])
    old.close()
    new = place("new")
    read(new, [("a", 0, 10), ("a", 3_000, 10)])
    assert new.files.kept_bytes == 4 * BLOCK
    assert [one["place"] for one in described(tmp_path / "cache")] == ["busy", "new"]
    read(new, [("a", 6_000, 10)])  # no room is left: read as it is
    assert read(busy, [("a", 0, 10)]) == right([("a", 0, 10)])
    busy.close()
    new.close()


def test_small_files_are_kept_whole_and_missing_ones_are_not_there(store: CachedStore, source: Path):
    assert store.read("b") == DATA["b"].tobytes()
    assert store.read("b", 10, 5) == DATA["b"][10:15].tobytes()
    (source / "b").unlink()
    assert store.read("b") == DATA["b"].tobytes()
    (path,) = store.files.folder.glob("*.whole")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NotFound):
        store.read("b")


def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_touched(inner: Counting, tmp_path: Path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("precious")
    with pytest.raises(OptionError, match=r"theirs is not empty and no cache"):
        CachedStore(inner, theirs, None)
    with pytest.raises(OptionError, match="is no cache"):
        described(theirs)
    assert os.listdir(theirs) == ["thesis.tex"]


def test_files_of_unknown_length_and_reads_beyond_the_end_go_through(store: CachedStore):
    number = store.handle("b", UNKNOWN_SIZE)
    reads = np.zeros(1, READ)
    reads["file"], reads["offset"], reads["size"] = number, 3_990, 20
    (pending,) = store.submit(reads, np.array([1], np.uint64), np.array([[20]], np.uint64))
    assert pending.wait(30)
    failure = pending.failure()
    assert failure is not None
    assert (failure.kind, failure.found) == ("short", 10)


def test_a_disk_that_is_full_ends_the_keeping_and_not_the_reading(
    store: CachedStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    store.handle("a", SIZES["a"])
    monkeypatch.setattr(os, "pwrite", full)
    for i in range(3):
        assert read(store, [("a", i * 2_000, 10)]) == right([("a", i * 2_000, 10)])
    monkeypatch.undo()
    assert [r.getMessage() for r in caplog.records if "nothing more is kept" in r.getMessage()] == [
        f"{store.files.root}: nothing more is kept here (No space left on device); reading goes on without"
    ]


@st.composite
def plans(draw: st.DrawFn) -> list[list[tuple[str, int, int, int]]]:
    name = draw(st.sampled_from(list(SIZES)))
    one = st.tuples(
        st.just(name),
        st.sampled_from([COPY, ZERO, WIDEN["u2", "i8"]]),
        st.integers(0, SIZES[name]),
        st.integers(0, 2_600),
    )
    return draw(st.lists(st.lists(one, max_size=6), min_size=1, max_size=4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=plans(),
    limit=st.sampled_from([None, 0, 2 * BLOCK, 9 * BLOCK]),
    checked=st.sampled_from([0, 2, 1]),
    budget=st.sampled_from([None, 0, 3_000]),
)
def test_any_submissions_equal_the_store_itself(
    source: Path, tmp_path_factory: Any, plan: Any, limit: int | None, checked: int, budget: int | None
):
    plain = PosixStore(source)
    store = CachedStore(PosixStore(source), tmp_path_factory.mktemp("any"), limit, block_bytes=BLOCK)
    for _ in range(2):  # the second time from what was kept
        found = []
        for each in (plain, store):
            rows, ends, sizes = [], [], []
            for batch in plan:
                slot = 0
                for name, op, offset, count in batch:
                    size = min(count, SIZES[name] - offset) // 2 * 2
                    row = np.zeros(1, READ)
                    row["file"], row["op"], row["offset"] = each.handle(name, SIZES[name]), op, offset
                    row["size"], row["slot"] = size, slot
                    if checked and len(rows) % checked == 0 and op != ZERO:  # all, or every other one
                        row["flags"], row["crc"] = HAS_CRC, crc32c(DATA[name][offset : offset + size].tobytes())
                    rows.append(row)
                    slot += size * (4 if op == WIDEN["u2", "i8"] else 1)
                ends.append(len(rows))
                sizes.append([slot])
            reads = np.concatenate([np.zeros(0, READ), *rows])
            flow = each.flow(budget)
            pendings = each.submit(reads, np.array(ends, np.uint64), np.array(sizes, np.uint64), flow)
            outs = []
            for pending in pendings:
                assert pending.wait(30)
                outs.append(pending.take()[0].tobytes())
            found.append(outs)
        assert found[0] == found[1]
    if limit is not None:
        assert store.files.kept_bytes <= limit
    store.close()


CHILD = """
    import sys, random
    from pathlib import Path
    import numpy as np
    from shufflestore.storage.cached import CachedStore
    from shufflestore.storage.posix import PosixStore
    from tests.unit.storage.test_cached import BLOCK, SIZES, read, right
    store = CachedStore(PosixStore(sys.argv[1]), sys.argv[2], int(sys.argv[3]), block_bytes=BLOCK)
    rng = random.Random(sys.argv[4])
    for _ in range(int(sys.argv[5])):
        spans = [(n, rng.randrange(SIZES[n] - 1), 1) for n in rng.choices(["a", "b"], k=8)]
        assert read(store, spans) == right(spans)
    print("good", flush=True)
    store.close()
"""


def _children(source: Path, cache: Path, limit: int, rounds: int, count: int) -> list[subprocess.Popen[str]]:
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(CHILD)
    return [
        subprocess.Popen(
            [sys.executable, "-c", text, str(source), str(cache), str(limit), str(i), str(rounds)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip


def test_processes_share_one_folder_and_its_bound(source: Path, tmp_path: Path):
    limit = 12 * BLOCK
    for child in _children(source, tmp_path / "cache", limit, 40, 4):
        told, errors = child.communicate(timeout=120)
        assert (told, child.returncode) == ("good\n", 0), errors
    kept = CacheFolder(tmp_path / "cache", str(source), limit, BLOCK)
    assert 0 < kept.kept_bytes <= limit
    kept.close()


def test_a_forked_child_reads_on(store: CachedStore):
    from tests.scenes import child_code

    read(store, [("a", 0, 10)])

    def work() -> None:
        spans = [("a", 5, 10), ("a", 9_000, 10)]
        assert read(store, spans) == right(spans)

    assert child_code(work) == 0
    assert read(store, [("a", 12_000, 10)]) == right([("a", 12_000, 10)])
