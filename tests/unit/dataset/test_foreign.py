"""What lies in a folder that others wrote, and what of it matters."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pytest

from shufflestore.dataset.foreign import discover
from shufflestore.dataset.inplace import index
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.errors import CorruptData, FormatError, NotFound, SourceError
from tests.attacks import DICTS, STATES
from tests.invented import arrow_bytes


@pytest.fixture
def saved(tmp_path):
    made = datasets.Dataset.from_dict({"x": list(range(30)), "s": [str(i) for i in range(30)]})
    made.save_to_disk(tmp_path / "saved", num_shards=3)
    return tmp_path / "saved"


def test_a_saved_data_set_is_its_files_in_their_order(saved):
    found = discover(saved)
    assert [len(s.files) for s in found.splits] == [3]
    assert open_dataset(saved).take(range(30))["x"].to_pylist() == list(range(30))


def test_a_saved_dictionary_has_its_splits(tmp_path):
    parts = {n: datasets.Dataset.from_dict({"x": [n]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert [s.name for s in discover(tmp_path / "d").splits] == ["train", "test"]
    assert open_dataset(tmp_path / "d", "test").take([0])["x"].to_pylist() == ["test"]


def test_a_folder_of_arrow_files_is_one_split_by_name(tmp_path):
    for name in ("b.arrow", "a.feather", "c.txt"):
        (tmp_path / name).write_bytes(arrow_bytes(pa.table({"x": [1]})))
    assert discover(tmp_path).splits[0].files == ("a.feather", "b.arrow")


def test_saved_columns_and_indices_are_honoured_and_pinned_by_the_index(saved):
    indices = pa.table({"indices": pa.array([5, 3, 29], pa.uint64())})
    (saved / "indices.arrow").write_bytes(arrow_bytes(indices, stream=True))
    state = json.loads((saved / "state.json").read_text())
    state |= {"_format_columns": ["s"], "_indices_data_files": [{"filename": "indices.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    index(saved)
    opened = open_dataset(saved)
    assert opened.take([0, 1, 2]).to_pydict() == {"s": ["5", "3", "29"]}
    changed = pa.table({"indices": pa.array([5, 4, 29], pa.uint64())})
    (saved / "indices.arrow").write_bytes(arrow_bytes(changed, stream=True))
    with pytest.raises(CorruptData, match="not those that were indexed"):
        open_dataset(saved)


def test_indices_that_are_no_numbers_are_refused(saved):
    (saved / "indices.arrow").write_bytes(arrow_bytes(pa.table({"indices": [1.5, None]}), stream=True))
    state = json.loads((saved / "state.json").read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(CorruptData, match="indices mapping holds double with 1 nulls"):
        open_dataset(saved)


def test_an_index_of_other_splits_is_refused(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})}).save_to_disk(tmp_path / "d")
    index(tmp_path / "d")
    state = tmp_path / "d" / "dataset_dict.json"
    (tmp_path / "d" / "train").rename(tmp_path / "d" / "other")
    state.write_text('{"splits": ["other"]}')
    with pytest.raises(CorruptData, match=r"gone|not those that were indexed"):
        open_dataset(tmp_path / "d")


def test_nothing_and_nothing_of_ours_are_told_apart(tmp_path):
    with pytest.raises(NotFound):
        discover(tmp_path / "missing")
    with pytest.raises(SourceError):
        discover(tmp_path)


@pytest.mark.parametrize("name", list(STATES))
def test_a_hostile_state_is_refused_by_name(tmp_path, name):
    (tmp_path / "state.json").write_bytes(STATES[name])
    with pytest.raises(FormatError, match=r"state\.json"):
        discover(tmp_path)


@pytest.mark.parametrize("name", list(DICTS))
def test_a_hostile_list_of_splits_is_refused_by_name(tmp_path, name):
    (tmp_path / "dataset_dict.json").write_bytes(DICTS[name])
    with pytest.raises(FormatError, match=r"dataset_dict\.json"):
        discover(tmp_path)
