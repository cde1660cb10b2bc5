"""Everything that can be converted is converted end to end: what a source holds is what readers get."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import shufflestore as ss
from shufflestore.convert.base import SourceOptions
from shufflestore.convert.run import ConvertOptions
from tests import stores

datasets = pytest.importorskip("datasets")
small = stores.small


def save_arrow(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return str(path)


def saved(folder, value):
    value.save_to_disk(str(folder))
    return str(folder)


TABLE = stores.table(0, 90)
PLAIN = TABLE.select(["id", "text", "tokens"])
MAKERS = {
    "parquet glob": lambda t: f"{stores.parquet(t / 'in', 3, 30)}/*.parquet",
    "parquet folder": lambda t: stores.parquet(t / "in", 3, 30),
    "arrow": lambda t: save_arrow(t / "in.arrow", TABLE),
    "Dataset": lambda t: datasets.Dataset(TABLE),
    "Dataset saved": lambda t: saved(t / "in", datasets.Dataset(TABLE)),
    "jsonl": lambda t: stores.jsonl(t / "in.jsonl", 0, 90),
    "list": lambda t: list(stores.records(0, 90)),
    "iterator": lambda t: stores.records(0, 90),
    "function": lambda t: lambda: stores.records(0, 90),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_source_holds_is_what_readers_get(tmp_path, kind, workers):
    if workers == 2 and kind not in ("parquet glob", "Dataset saved"):
        pytest.skip("one piece, or one process only")
    report = ss.convert(MAKERS[kind](tmp_path), tmp_path / "out", options=small(workers))
    expected = PLAIN if kind == "jsonl" else TABLE
    found = stores.seen(tmp_path / "out")
    if kind in ("list", "iterator", "function"):  # their schema is a guess: 0.5 is no half there
        found = {"train": [{**r, "half": list(r["half"])} for r in found["train"]]}
    assert found == {"train": expected.to_pylist()}
    assert (report.record_count, report.snapshot, report.splits) == (90, 1, {"train": 90})
    assert report.shard_count == len(list((tmp_path / "out/shards").glob("*.arrow")))
    assert report.byte_count == sum(p.stat().st_size for p in (tmp_path / "out/shards").iterdir())
    assert ss.verify(tmp_path / "out").is_sound
    assert not stores.leftovers(tmp_path / "out")


def test_token_files_become_records_of_tokens(tmp_path):
    tokens = np.arange(1_000, dtype=np.uint16)
    np.save(tmp_path / "x.npy", tokens)
    options = ConvertOptions(source=SourceOptions(record_tokens=100))
    ss.convert(tmp_path / "x.npy", tmp_path / "out", options=options)
    (column,) = (data := ss.open(tmp_path / "out")).schema.names
    assert data.take([0, 9]).column(column).to_pylist() == [tokens[:100].tolist(), tokens[900:].tolist()]


@pytest.mark.parametrize("is_saved", [False, True])
def test_the_splits_of_a_dataset_dict_are_splits_of_the_store(tmp_path, is_saved):
    parts = {"train": datasets.Dataset(stores.table(0, 50)), "test": datasets.Dataset(stores.table(50, 20))}
    source = datasets.DatasetDict(parts)
    report = ss.convert(saved(tmp_path / "in", source) if is_saved else source, tmp_path / "out", options=small())
    assert report.splits == {"train": 50, "test": 20}
    assert stores.seen(tmp_path / "out") == {
        "train": stores.table(0, 50).to_pylist(),
        "test": stores.table(50, 20).to_pylist(),
    }


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_split_without_records_stays_a_split(tmp_path, is_saved):
    empty = datasets.Dataset(stores.table(0, 1)).select([])
    source = datasets.DatasetDict({"train": datasets.Dataset(stores.table(0, 5)), "none": empty})
    ss.convert(saved(tmp_path / "in", source) if is_saved else source, tmp_path / "out", options=small())
    assert stores.seen(tmp_path / "out") == {"train": stores.table(0, 5).to_pylist(), "none": []}
    assert len(ss.open(tmp_path / "out", "none")) == 0


def test_features_nested_and_with_names_survive(tmp_path):
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "turns": [{"role": datasets.Value("string"), "tokens": datasets.List(datasets.Value("int32"))}],
        }
    )
    rows = [{"label": i % 2, "turns": [{"role": "a", "tokens": [i] * i}] * (i % 3)} for i in range(20)]
    source = datasets.Dataset.from_list(rows, features=features)
    ss.convert(source, tmp_path / "out", options=small())
    schema = stores.manifest(tmp_path / "out").schema
    assert datasets.Features.from_arrow_schema(schema) == features
    assert stores.seen(tmp_path / "out") == {"train": rows}
