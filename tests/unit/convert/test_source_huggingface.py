"""Hugging Face data sets: which are read from files, and in what order."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from shufflestore.convert.base import SourceOptions, detect, from_spec
from shufflestore.errors import SchemaError, SourceError

datasets = pytest.importorskip("datasets")

TABLE = pa.table({"a": np.arange(1_000), "b": [f"x{i}" for i in range(1_000)]})


def read(source):
    return [r for p in source.pieces() for b in source.read(p) for r in b.to_pylist()]


@pytest.fixture
def folder(tmp_path):
    datasets.Dataset(TABLE).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("change", "is_files"),
    [
        (lambda d: d, True),
        (lambda d: d.with_format("numpy"), True),
        (lambda d: d.remove_columns("b"), True),
        (lambda d: d.shuffle(seed=0), False),
        (lambda d: d.select([5, 3, 3]), False),
        (lambda d: d.select(range(10, 20)), False),
        (lambda d: d.rename_column("a", "z"), False),
        (lambda d: datasets.concatenate_datasets([d, d]), False),
        (lambda d: d.add_column("c", list(range(1_000))), False),
        (lambda d: datasets.Dataset(d.data.table), False),
    ],
)
def test_records_and_order_are_the_data_sets_own(change, is_files, folder):
    dataset = change(datasets.load_from_disk(str(folder)))
    for options in (SourceOptions(), SourceOptions(piece_bytes=3_000, batch_bytes=500)):
        source = detect(dataset, options=options)
        assert (source.spec() is not None) == is_files
        assert read(source) == dataset.with_format(None).to_list()
        assert b"huggingface" in source.schema().metadata


def test_a_dropped_column_stays_dropped_whatever_is_asked(folder):
    dataset = datasets.load_from_disk(str(folder)).remove_columns("b")
    assert detect(dataset, options=SourceOptions(schema={"a": "int32"})).schema().names == ["a"]
    with pytest.raises(SchemaError, match="no column 'b'"):
        detect(dataset, options=SourceOptions(columns=("b",))).schema()


def test_dictionary_columns_in_another_order_are_gathered():
    table = pa.concat_tables([pa.table({"d": pa.array([w] * 5).dictionary_encode()}) for w in "xyz"])
    dataset = datasets.Dataset(table).select([14, 0, 7, 1])
    assert [r["d"] for r in read(detect(dataset))] == ["z", "x", "y", "x"]


def test_a_saved_order_of_old_versions_is_respected(folder):
    order = np.array([7, 3, 999, 3], np.uint64)
    table = pa.table({"indices": order})
    with pa.OSFile(str(folder / "indices.arrow"), "wb") as file, ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    source = detect(folder)
    assert [r["a"] for r in read(source)] == order.tolist()
    again = from_spec(source.spec().to_json())
    assert read(again) == read(source)


def test_a_saved_folder_needs_no_library(folder):
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from shufflestore.convert.base import detect\n"
        f"s = detect({str(folder)!r}); print(sum(b.num_rows for p in s.pieces() for b in s.read(p)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "1000"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "data-00001-of-00002.arrow").unlink(), "lacks data-00001-of-00002.arrow"),
        (lambda f: (f / "state.json").write_text("{"), "state.json is not what datasets writes"),
        (lambda f: (f / "state.json").write_text("{}"), "state.json is not what datasets writes"),
        (lambda f: (f / "state.json").write_text('{"_data_files": []}'), "names no data files"),
    ],
)
def test_a_damaged_folder_is_refused(spoil, message, folder):
    spoil(folder)
    with pytest.raises(SourceError, match=message):
        detect(folder).pieces()


def test_a_cut_file_of_a_folder_is_named(folder):
    path = folder / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(SourceError, match=r"data-00001-of-00002\.arrow"):
        read(detect(folder))


def test_an_unfinished_dict_is_refused(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(SourceError, match=r"train has no state\.json"):
        detect(tmp_path)


def test_an_iterable_dict_is_refused_with_the_next_step():
    streams = datasets.IterableDatasetDict(train=datasets.Dataset(TABLE).to_iterable_dataset())
    with pytest.raises(SourceError, match="one by one"):
        detect(streams)


def test_a_shuffled_part_of_a_table_of_matrices_is_read_right():
    """pyarrow's take returns wrong values for fixed lists of fixed lists of a slice."""
    rows = [{"m": [[i, -i], [i + 1, 9]], "s": {"m": [[i, i], [0, i]]}} for i in range(20)]
    matrix = pa.list_(pa.list_(pa.int16(), 2), 2)
    table = pa.Table.from_pylist(rows, pa.schema([("m", matrix), ("s", pa.struct([("m", matrix)]))]))
    source = detect(datasets.Dataset(table.slice(5)).select([3, 0, 14, 3]))
    assert read(source) == [rows[5 + i] for i in (3, 0, 14, 3)]
