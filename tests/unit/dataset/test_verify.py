"""Verify reads every byte, lists each damaged record, and finds what no record reads."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shufflestore.dataset.inplace import index
from shufflestore.dataset.verify import Report, check_split, verify
from shufflestore.errors import CorruptData, NotFound
from tests.invented import MemoryStore, arrow_bytes, memory_store, opened

TABLE = pa.table({"x": range(60), "s": [f"text {i:02d}" for i in range(60)]})


@pytest.fixture
def store() -> MemoryStore:
    return memory_store(
        [arrow_bytes(TABLE.slice(0, 30), 11), arrow_bytes(TABLE.slice(30), 11), arrow_bytes(TABLE.slice(0, 0))]
    )


def report_of(store: MemoryStore) -> Report:
    report = Report("memory://")
    check_split(opened(store), report)
    return report


def test_a_sound_data_set_is_sound_and_counted(store):
    report = report_of(store)
    assert report.is_sound
    assert (report.record_count, report.shard_count) == (60, 3)
    assert report.byte_count == sum(len(d) for n, d in store.files.items() if n.startswith("shards/"))


def test_every_damaged_record_is_listed_and_no_other(store):
    for text in (b"text 07", b"text 44", b"text 45"):
        name = "shards/00000.arrow" if text == b"text 07" else "shards/00001.arrow"
        store.files[name] = store.files[name].replace(text, b"TEXT" + text[4:])
    report = report_of(store)
    assert report.problem_count == 3
    assert [p.split("record ")[1].split(" ")[0] for p in report.problems] == ["7", "44", "45"]


def test_bytes_that_no_record_reads_are_checked_too(store):
    data = bytearray(store.files["shards/00000.arrow"])
    data[-20] ^= 4
    store.files["shards/00000.arrow"] = bytes(data)
    assert opened(store).take(range(60)) == TABLE
    assert "bytes between records" in report_of(store).problems[0]


def test_bytes_that_hide_under_nulls_are_checked_too():
    buffers = pa.array(["a", "secret", "c"]).buffers()
    hidden = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x05"), *buffers[1:]])
    wide = pa.Array.from_buffers(pa.binary(12), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(b"0123456789ab" * 3)])
    store = memory_store([arrow_bytes(pa.table({"s": hidden, "w": wide}))])
    assert report_of(store).is_sound
    good = opened(store).take([0, 1, 2])
    store.files["shards/00000.arrow"] = store.files["shards/00000.arrow"].replace(b"secret", b"sacred")
    assert opened(store).take([0, 1, 2]) == good
    assert "bytes between records" in report_of(store).problems[0]


def test_shards_without_records_are_checked_too(store):
    for name in ("shards/00002.arrow", "shards/00002.rows"):
        damaged = MemoryStore(store.files)
        for at in range(0, len(store.files[name]), 13):
            data = bytearray(store.files[name])
            data[at] ^= 1
            damaged.files[name] = bytes(data)
            assert name in report_of(damaged).problems[0]


def test_bytes_behind_the_end_are_damage(store):
    for name in [n for n in store.files if n.startswith("shards/")]:
        damaged = MemoryStore(store.files)
        damaged.files[name] += b"\0"
        assert name in report_of(damaged).problems[0]


def test_one_bad_shard_keeps_no_other_from_being_checked(store):
    del store.files["shards/00000.rows"]
    store.files["shards/00001.arrow"] = store.files["shards/00001.arrow"].replace(b"text 44", b"text 4!")
    report = report_of(store)
    assert report.problem_count == 2
    assert report.shard_count == 3


def test_at_most_a_hundred_problems_are_listed_and_all_are_counted():
    table = pa.table({"s": [f"text {i:03d}" for i in range(150)]})
    store = memory_store([arrow_bytes(table)])
    store.files["shards/00000.arrow"] = store.files["shards/00000.arrow"].replace(b"text", b"TEXT")
    report = report_of(store)
    assert (report.problem_count, len(report.problems)) == (150, 100)


def test_every_split_is_verified(tmp_path):
    import datasets

    parts = {n: datasets.Dataset.from_dict({"s": [f"{n} {i:03d}" for i in range(20)]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    index(tmp_path / "d")
    seen = []
    assert verify(tmp_path / "d", progress=lambda *step: seen.append(step)).record_count == 40
    assert seen[-1] == (40, 40)
    file = next((tmp_path / "d" / "test").glob("*.arrow"))
    file.write_bytes(file.read_bytes().replace(b"test 013", b"test 0!3"))
    report = verify(tmp_path / "d")
    assert report.problem_count == 1
    assert "test/data-" in report.problems[0]


def test_nothing_there_and_a_manifest_that_cannot_be_read_are_raised(tmp_path):
    with pytest.raises(NotFound):
        verify(tmp_path / "missing")
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_bytes(TABLE))
    root = next(index(path).glob("snapshots/*.json"))
    root.write_bytes(root.read_bytes()[:-30])
    with pytest.raises(CorruptData):
        verify(path)
