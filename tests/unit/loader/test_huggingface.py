"""Hugging Face data sets served from their files: the same batches and records as `datasets` and torch make."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import default_collate

datasets = pytest.importorskip("datasets")

import shufflestore as ss  # noqa: E402
from shufflestore.dataset.stream import Stream, planned  # noqa: E402
from shufflestore.errors import CorruptData  # noqa: E402
from shufflestore.loader.huggingface import Served, recognise  # noqa: E402
from shufflestore.orders.epoch import make_order  # noqa: E402
from shufflestore.orders.partition import Partition, Topology  # noqa: E402
from tests.huggingface import COLUMNS, COUNT, compared, difference, outcome, read, saved  # noqa: E402

pytestmark = [
    # Of datasets' own numpy format, and of torch that is given its read-only arrays.
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning"),  # of datasets' sort
]

FORMATS = (None, "torch", "numpy")
BATCHES = ([3], [5], [0, 1], [7, 7], [3, 10, 17], [10, 3, 59, 7, 8, 9, 20, 11, 12, 4], list(range(COUNT - 1, -1, -1)))
FEW = ["int32", "float64", "text", "list_int32", "list_equal"]


def served(dataset) -> Served:
    found = recognise(dataset)
    assert found is not None
    assert len(found.dataset) == len(dataset)
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    dataset = saved(tmp_path_factory.mktemp("saved") / "all")
    ss.index(dataset.cache_files[0]["filename"])  # else each test would: each has a cache of its own
    return dataset


@pytest.fixture
def few(tmp_path):
    return saved(tmp_path / "few", FEW, shards=3)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", list(COLUMNS))
def test_every_feature_is_what_datasets_and_torch_make_of_it(name, format, everything):
    dataset = everything.select_columns([name]).with_format(format)
    found = served(dataset)
    for ids in BATCHES:
        assert compared(found, dataset, ids) is None, ids


@pytest.mark.parametrize("format", FORMATS)
def test_columns_of_all_features_stand_in_the_data_set_s_order(format, everything):
    refused = [n for n in ("timestamp", "date", "decimal") if format == "torch"]  # datasets has no tensors for them
    dataset = everything.with_format(format).remove_columns(refused)
    found = served(dataset)
    assert list(found.records(*read(found, [4]))[0]) == [name for name in COLUMNS if name not in refused]
    assert difference(found.records(*read(found, [4, 1, 8])), dataset.__getitems__([4, 1, 8])) is None
    assert isinstance(outcome(lambda: default_collate(dataset.__getitems__([4, 1, 8]))), type)
    assert compared(found, dataset, [4, 1, 8]) is None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("output_all", [False, True])
@pytest.mark.parametrize("columns", [["list_equal", "int32"], ["text"], FEW])
def test_a_format_for_some_columns_leaves_out_the_others_or_gives_them_plain(format, output_all, columns, few):
    dataset = few.with_format(format, columns=columns, output_all_columns=output_all)
    found = served(dataset)
    assert sorted(found.dataset.column_names) == sorted(FEW if output_all else columns)  # no other is read
    for ids in ([5], [9, 1, 30, 31]):
        assert compared(found, dataset, ids) is None


def test_a_batch_of_no_records_fails_as_torch_fails(few):
    found = served(few.with_format("torch"))
    assert found.records(*read(found, [])) == few.with_format("torch").__getitems__([]) == []
    with pytest.raises(IndexError):
        default_collate([])
    with pytest.raises(IndexError):
        found.collate(*read(found, []))


def test_columns_that_the_core_did_not_widen_give_the_same(few):
    found = served(few.with_format("torch"))
    numbers = found.dataset.selection.ids(np.array([8, 2]))
    columns = found.dataset.columns_at(numbers, found.dataset.projection())
    assert difference(found.records(numbers, columns), few.with_format("torch").__getitems__([8, 2])) is None


@pytest.mark.parametrize("name", ["float64", "list_equal_f32", "list_float64"])
def test_a_record_s_tensors_take_part_in_gradients_as_those_of_datasets_do(name, everything):
    dataset = everything.select_columns([name]).with_format("torch")
    found = served(dataset)
    scale = torch.ones((), requires_grad=True)
    for records in (dataset.__getitems__([2, 3, 4]), found.records(*read(found, [2, 3, 4]))):
        records[0][name].mul_(scale).sum().backward()  # refused for the views that `unbind` and `split` make


# -- transforms ------------------------------------------------------------------------------------


def doubled(batch):
    return {"twice": [2 * x for x in batch["int32"]], "text": batch["text"]}


@pytest.mark.parametrize(
    "view",
    [
        lambda d: d.with_transform(doubled),
        lambda d: d.with_transform(doubled, columns=["text", "int32"]),
        lambda d: d.with_transform(doubled, columns=["text", "int32"], output_all_columns=True),
        lambda d: d.with_transform(lambda batch: {"n": torch.tensor(batch["int32"]), "a": np.array(batch["float64"])}),
        lambda d: d.with_transform(lambda batch: {"t": batch["list_int32"]}),
        lambda d: d.with_transform(lambda batch: batch["nothing"]),
        lambda d: d.with_transform(lambda batch: [1], columns=["text"], output_all_columns=True),
        lambda d: d.with_transform(lambda batch: {"x": [1, 2, 3]}),
        lambda d: d.with_transform(lambda batch: {}),
    ],
)
def test_a_transform_gets_and_gives_what_it_does_in_datasets(view, few):
    dataset = view(few)
    found = served(dataset)
    assert found.runs_user_code
    for ids in ([5], [9, 1, 30, 31], [40, 40]):
        assert compared(found, dataset, ids) is None


def test_a_transform_sees_the_very_batch(few):
    seen: list[dict] = []

    def note(batch):
        seen.append(copy.deepcopy(batch))
        batch["new"] = batch.pop("int32")  # changed in place, as users do
        return batch

    dataset = few.with_transform(note)
    found = served(dataset)
    assert compared(found, dataset, [50, 2, 31]) is None
    assert len(seen) == 4
    assert all(difference(batch, seen[0]) is None for batch in seen)
    assert list(seen[0]) == FEW


# -- views -----------------------------------------------------------------------------------------

VIEWS = {
    "whole": lambda d: d,
    "select a range": lambda d: d.select(range(7, 45)),
    "select a range of a range": lambda d: d.select(range(7, 45)).select(range(3, 30)),
    "select a list": lambda d: d.select([50, 3, 3, 17]),
    "select a list of a range": lambda d: d.select(range(10, 50)).select([5, 1, 39]),
    "shuffled": lambda d: d.shuffle(seed=3),
    "shuffled and selected": lambda d: d.shuffle(seed=3).select(range(5, 25)),
    "sorted": lambda d: d.sort("float64", reverse=True),
    "filtered": lambda d: d.filter(lambda r: r["int32"] % 2 == 0),
    "skipped and taken": lambda d: d.skip(11).take(20),
    "shard": lambda d: d.shard(4, 1),
    "test split": lambda d: d.train_test_split(0.3, seed=1)["test"],
    "mapped": lambda d: d.map(lambda r: {"more": r["int32"] + 1}),
    "cast": lambda d: d.cast_column("int32", datasets.Value("int16")),
    "flattened indices": lambda d: d.shuffle(seed=1).flatten_indices(),
    "twice": lambda d: datasets.concatenate_datasets([d, d]),
    "parts": lambda d: datasets.concatenate_datasets([d.select(range(30, 50)), d.select(range(2, 9))]),
    "parts shuffled": lambda d: datasets.concatenate_datasets([d.select(range(30, 50)), d]).shuffle(seed=2),
    "neighbours": lambda d: datasets.concatenate_datasets([d.select(range(10)), d.select(range(10, 31))]),
    "removed": lambda d: d.remove_columns(["text", "float64"]),
    "chosen": lambda d: d.select_columns(["list_equal", "int32"]),
    "renamed": lambda d: d.rename_column("int32", "text2").rename_columns({"text": "int32", "text2": "text"}),
    "renamed and removed": lambda d: d.rename_column("int32", "n").remove_columns(["text"]).select(range(20)),
    "label": lambda d: d.cast_column("int32", datasets.ClassLabel(num_classes=120)),
}


@pytest.mark.parametrize("name", list(VIEWS))
def test_a_view_has_the_same_records_in_the_same_order(name, few):
    dataset = VIEWS[name](few).with_format("torch")
    found = served(dataset)
    ids = list(range(len(dataset)))
    assert compared(found, dataset, ids) is None
    assert compared(found, dataset, ids[::-2]) is None


def test_data_sets_of_several_folders_stand_one_after_another(tmp_path):
    one, two = saved(tmp_path / "one", FEW, shards=2), saved(tmp_path / "two", FEW)
    dataset = datasets.concatenate_datasets([two, one.select(range(20, 40)), two.select([1, 2, 3]).flatten_indices()])
    dataset = dataset.with_format("numpy")
    found = served(dataset)
    assert compared(found, dataset, list(range(len(dataset)))) is None
    assert compared(served(dataset.shuffle(seed=4)), dataset.shuffle(seed=4), [70, 3, 3, 1]) is None


def test_files_with_compressed_buffers_are_served_too(everything, tmp_path):
    path = str(tmp_path / "compressed.arrow")
    names = ["int32", "null_int64", "text", "text_zeros", "list_int32", "list_fixed", "array2d", "struct", "bool"]
    table = everything.select_columns(names).data.table
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=25)
    for format in FORMATS:
        dataset = datasets.Dataset.from_file(path).with_format(format)
        assert compared(served(dataset), dataset, [59, 0, 24, 25, 4, 24]) is None


def test_an_epoch_has_every_record_once_and_as_torch_would_have_it(few):
    dataset = few.shuffle(seed=9).with_format("torch", columns=["int32", "list_equal", "text"])
    found = served(dataset)
    data = found.dataset
    order = make_order("global", len(data), 5, 0)
    partition = Partition(len(data), 8, Topology(0, 1), "uneven", 0)
    stream = Stream(
        data.reading, data.projection(None, found.widen), planned(partition, order, data.selection), found.collate, None
    )
    batches = list(stream)
    ids = order.ids(np.arange(len(data))).tolist()
    assert sorted(ids) == list(range(COUNT))
    due = [default_collate(dataset.__getitems__(ids[i : i + 8])) for i in range(0, len(ids), 8)]
    assert difference(batches, due) is None


# -- what is not recognised ------------------------------------------------------------------------


class Own(datasets.Dataset):
    """A user's own class may do anything with a record."""


OTHERS = {
    "in memory": lambda d: datasets.Dataset(d.data.table),
    "in part": lambda d: datasets.concatenate_datasets([d, datasets.Dataset(d.data.table)]),
    "stand side by side": lambda d: d.add_column("more", list(range(len(d)))),
    "changed after it was read from the file .cast": lambda d: _cast(d),
    "changed after it was read from the file .flatten": lambda d: _flat(d),
    "made from whole tables": lambda d: d.with_format("arrow"),
    "'pandas' is made": lambda d: d.with_format("pandas"),
    r"was given \['dtype'\]": lambda d: d.with_format("torch", dtype=torch.float64),
    "decoded record by record": lambda d: _with_images(d),
    "within its type": lambda d: _nested(d),
    "no records": lambda d: d.select([]),
    "no columns": lambda d: d.with_format("torch", columns=[]),
    "subclass": lambda d: Own(d.data),
    "do not have the same columns": lambda d: _other_files(d),
}


def _cast(dataset):
    made = copy.copy(dataset)
    schema = pa.schema([f.with_type(pa.int64()) if f.name == "int32" else f for f in dataset.data.schema])
    made._data = dataset.data.cast(schema)
    return made


def _flat(dataset):
    made = copy.copy(dataset)
    made._data = dataset.data.flatten()
    return made


def _with_images(dataset):
    return dataset.cast_column("text", datasets.Image())


def _nested(dataset):
    folder = dataset.cache_files[0]["filename"] + ".nested"
    features = datasets.Features({"a": datasets.List(datasets.Array2D((2, 2), "int32"))})
    datasets.Dataset.from_dict({"a": [[[[1, 2], [3, 4]]]]}, features=features).save_to_disk(folder)
    return datasets.load_from_disk(folder)


def _other_files(dataset):
    folder = dataset.cache_files[0]["filename"] + ".other"
    dataset.select_columns(FEW[::-1]).flatten_indices().save_to_disk(folder)
    return datasets.concatenate_datasets([dataset, datasets.load_from_disk(folder)])


@pytest.mark.parametrize("reason", list(OTHERS))
def test_what_is_not_the_files_as_they_stand_goes_through_datasets_and_is_said_once(reason, few, caplog):
    dataset = OTHERS[reason](few)
    with caplog.at_level(logging.INFO, "shufflestore"):
        assert recognise(dataset) is None
    (line,) = [r for r in caplog.records if "Hugging Face" in r.message]
    assert line.levelno == logging.INFO
    assert re.search(reason, line.message)


def test_a_file_that_is_gone_or_an_index_that_cannot_be_kept_is_no_reason_to_fail(few, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHUFFLESTORE_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.INFO, "shufflestore"):
        assert recognise(few) is None
    assert "SHUFFLESTORE_CACHE" in caplog.text
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "few")
    with caplog.at_level(logging.INFO, "shufflestore"):
        assert recognise(few) is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("other", [[1, 2], range(3), {"a": 1}, None])
def test_other_data_sets_are_passed_by_in_silence(other, caplog):
    with caplog.at_level(logging.DEBUG, "shufflestore"):
        assert recognise(other) is None
    assert not caplog.records


def test_asking_does_not_import_datasets():
    program = (
        "import sys; from shufflestore.loader.huggingface import recognise;"
        "assert recognise([1]) is None; assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# -- files and processes ---------------------------------------------------------------------------


def test_nothing_is_indexed_before_the_first_use_and_nothing_twice(few, caplog):
    with caplog.at_level(logging.WARNING, "shufflestore"):
        found = served_lazily(few)
        assert not caplog.records
        assert len(found.dataset) == COUNT
        assert len(caplog.records) == 3  # one a file
        assert len(served_lazily(few.shuffle(seed=1)).dataset) == COUNT
        assert len(caplog.records) == 3


def served_lazily(dataset) -> Served:
    found = recognise(dataset)
    assert found is not None
    return found


def test_it_travels_to_other_processes_as_paths(few):
    dataset = datasets.concatenate_datasets([few.select(range(30)), few]).with_format("torch")
    found = served(dataset)
    again = pickle.loads(pickle.dumps(found))
    assert compared(again, dataset, [80, 5, 31]) is None
    data = pickle.loads(pickle.dumps(found.dataset))
    assert data.identity == found.dataset.identity
    assert data.take([80, 5, 31]).equals(found.dataset.take([80, 5, 31]))
    assert len(pickle.dumps(served(few).dataset)) < 4096


def test_a_copy_elsewhere_has_the_same_identity_and_other_records_another(few, tmp_path):
    shutil.copytree(tmp_path / "few", tmp_path / "copy")
    copied = datasets.load_from_disk(str(tmp_path / "copy"))
    assert served(copied).dataset.identity == served(few).dataset.identity
    assert served(few.select(range(9))).dataset.identity != served(few).dataset.identity
    assert served(few.shuffle(seed=0)).dataset.identity != served(few).dataset.identity


def test_a_format_set_in_place_is_noticed(few):
    found = served(few)
    assert found.is_current
    few.set_format("torch")
    assert not found.is_current
    few.reset_format()
    assert found.is_current
    few.set_transform(doubled)
    assert not found.is_current
    assert difference(found.records(*read(found, [1])), few.with_format(None).__getitems__([1])) is None


def test_a_file_that_lost_records_since_it_was_opened_is_refused(few):
    found = served_lazily(few)
    path = few.cache_files[1]["filename"]
    with pa.memory_map(path) as file:
        table = pa.ipc.open_stream(file).read_all().slice(0, 3)
    other = path + ".other"
    with pa.OSFile(other, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    shutil.move(other, path)  # the open data set keeps the file that it has mapped
    with pytest.raises(CorruptData, match="has 3 records, but 20"):
        _ = found.dataset
