"""Open finds what is there: a store, data with an index, data without; and names what is not."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shufflestore.dataset.inplace import index
from shufflestore.dataset.opening import load_manifest, open_store, snapshots_of, splits_of
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.errors import CorruptData, EngineUnavailable, NotFound, OptionError, SchemaError, SourceError
from shufflestore.storage.posix import PosixStore
from tests.invented import MemoryStore, arrow_bytes, memory_store, opened

TABLE = pa.table({"x": range(10)})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.arrow"
    path.write_bytes(arrow_bytes(TABLE, 3))
    index(path)
    return path


def test_a_store_of_any_kind_is_opened_through_the_contract(file):
    folder = str(file) + ".shufflestore"
    store = PosixStore(folder, roots={"data": str(file.parent)})
    dataset = open_store(store, load_manifest(store, None), None)
    assert dataset.take([9, 0])["x"].to_pylist() == [9, 0]


def test_the_newest_snapshot_is_opened_unless_another_is_asked_for(file):
    index(file)
    store = MemoryStore({})
    for number in (1, 2):
        name = f"snapshots/{number:010d}.json"
        store.files[name] = (file.with_name("data.arrow.shufflestore") / name).read_bytes()
    assert snapshots_of(store) == [1, 2]
    assert load_manifest(store, None).snapshot == 2
    assert load_manifest(store, 1).snapshot == 1
    with pytest.raises(OptionError, match=r"no snapshot 7; there are \[1, 2\]"):
        load_manifest(store, 7)


def test_an_older_root_under_a_newer_name_is_refused(file):
    folder = file.with_name("data.arrow.shufflestore") / "snapshots"
    (folder / "0000000002.json").write_bytes((folder / "0000000001.json").read_bytes())
    with pytest.raises(CorruptData, match="says that it is snapshot 1"):
        open_dataset(file)


def test_a_store_without_a_snapshot_says_what_to_do(tmp_path):
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(NotFound, match="no snapshot was committed here"):
        open_dataset(tmp_path)


def test_splits_are_listed_and_opened_by_name():
    store = memory_store([arrow_bytes(TABLE), arrow_bytes(TABLE.slice(0, 4))], splits=["train", "test"])
    assert len(opened(store, "test")) == 4
    assert opened(store, "train").take([9])["x"].to_pylist() == [9]
    with pytest.raises(OptionError, match="say which"):
        opened(store)


def test_splits_of_a_path_are_its_names(file):
    assert splits_of(file) == ["train"]


def test_data_in_place_has_no_snapshots_to_choose_from(file):
    with pytest.raises(OptionError, match="no snapshot 1"):
        open_dataset(file, snapshot=1)


def test_what_cannot_be_opened_is_named(tmp_path, file):
    with pytest.raises(NotFound, match="missing"):
        open_dataset(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        open_dataset(tmp_path / "empty")
    with pytest.raises((OptionError, EngineUnavailable), match="engine"):
        open_dataset(file, engine="warp")


def test_a_data_set_over_a_store_object_cannot_travel_and_says_so():
    dataset = opened(memory_store([arrow_bytes(TABLE)]))
    with pytest.raises(SchemaError, match="store object"):
        dataset.split("train")
