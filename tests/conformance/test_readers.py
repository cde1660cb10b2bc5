"""Other people's readers open our shards directly and see equal values: a shard is a plain Arrow IPC file."""

from __future__ import annotations

import importlib.util
import struct
import zlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

import shufflestore as ss
from tests import stores

TABLE = stores.table(0, 200)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    ss.convert(list(stores.records(0, 200)), folder / "out", schema=stores.SCHEMA, options=stores.small())
    return folder / "out"


def files(store):
    return sorted(str(p) for p in (store / "shards").glob("*.arrow"))


def test_pyarrow_reads_each_shard_as_a_file(store):
    tables = []
    for name in files(store):
        with pa.memory_map(name) as file:
            tables.append(pa.ipc.open_file(file).read_all())
    found = pa.concat_tables(tables)
    found.validate(full=True)
    assert len(tables) > 1
    assert found.to_pylist() == TABLE.to_pylist()


def test_pyarrow_reads_all_shards_as_one_data_set(store):
    # Shards store their integers as narrow as each can: the reader is told what they stand for.
    assert pads.dataset(files(store), format="ipc", schema=TABLE.schema).to_table().equals(TABLE)


def test_polars_reads_the_shards(store):
    polars = pytest.importorskip("polars")
    found = polars.concat([polars.read_ipc(name) for name in files(store)])
    wanted = [name for name in TABLE.column_names if name != "half"]
    assert found.select(wanted).to_dicts() == TABLE.select(wanted).to_pylist()
    lazily = polars.scan_ipc(files(store)).select("id", "tokens").collect()
    assert lazily.to_dicts() == TABLE.select(["id", "tokens"]).to_pylist()


def test_duckdb_reads_the_shards_through_a_pyarrow_data_set(store):
    duckdb = pytest.importorskip("duckdb")
    shards = pads.dataset(files(store), format="ipc")
    columns = ["id", "text", "tokens", "nested"]  # it knows no half floats
    narrow = shards.scanner(columns=columns).to_reader()
    connection = duckdb.connect()
    connection.register("shards", narrow)
    rows = connection.execute("SELECT id, text, tokens, nested FROM shards ORDER BY id").fetchall()
    assert [dict(zip(columns, row, strict=True)) for row in rows] == TABLE.select(columns).to_pylist()
    plain = pads.dataset(files(store), format="ipc", schema=TABLE.select(["id", "text"]).schema)
    connection.register("plain", plain)
    assert connection.execute("SELECT count(*), sum(id) FROM plain WHERE text IS NOT NULL").fetchone() == (
        sum(t is not None for t in TABLE["text"].to_pylist()), sum(i for i in range(200) if i % 11 != 5),
    )  # fmt: skip


def test_hugging_face_reads_the_shards(store, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("arrow", data_files=files(store), cache_dir=str(tmp_path / "cache"))["train"]
    assert found.with_format("arrow")[:].to_pylist() == TABLE.to_pylist()


def picture(shade):
    """A PNG of one grey pixel, made by hand: no image library is needed to convert images."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes([0, shade]))),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    return {"bytes": b"\x89PNG\r\n\x1a\n" + b"".join(chunks), "path": f"{shade}.png"}


@pytest.mark.parametrize("is_saved", [False, True])
def test_the_features_of_a_hugging_face_data_set_come_back(tmp_path, is_saved):
    datasets = pytest.importorskip("datasets")
    features = {
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "tokens": datasets.Sequence(datasets.Value("int32")),
        "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
        "answers": [{"text": datasets.Value("string"), "start": datasets.Value("int32")}],
    }
    rows = [
        {
            "label": i % 2,
            "tokens": list(range(i)),
            "boxes": [[0.5 * i] * 4] * (i % 3),
            "answers": [{"text": "é", "start": i}] * (i % 2),
        }
        for i in range(30)
    ]
    features = datasets.Features({**features, "image": datasets.Image()})
    rows = [{**row, "image": picture(i)} for i, row in enumerate(rows)]
    source = datasets.Dataset(pa.Table.from_pylist(rows, features.arrow_schema))
    assert source.features == features
    if is_saved:
        source.save_to_disk(str(tmp_path / "in"))
    options = stores.small()
    options = replace(options, shards=replace(options.shards, narrow=False))
    ss.convert(str(tmp_path / "in") if is_saved else source, tmp_path / "out", options=options)
    shards = files(tmp_path / "out")
    found = datasets.load_dataset("arrow", data_files=shards, cache_dir=str(tmp_path / "cache"))["train"]
    assert found.features == source.features
    assert found.features["label"].int2str(1) == "dog"
    assert found.with_format("arrow")[:].to_pylist() == source.with_format("arrow")[:].to_pylist()
    assert found.select_columns(["tokens"])[3] == {"tokens": [0, 1, 2]}
    if importlib.util.find_spec("PIL"):
        assert found[3]["image"].getpixel((0, 0)) == 3
    assert stores.seen(tmp_path / "out")["train"] == source.with_format("arrow")[:].to_pylist()
