"""Parquet and Arrow files: cuts, metadata, and what files must agree on."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import SchemaError, SourceError


def table_of(source):
    return pa.Table.from_batches([b for p in source.pieces() for b in source.read(p)], source.schema())


def write_stream(path, table, rows=10):
    with pa.OSFile(str(path), "wb") as file, ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def test_parquet_pieces_are_runs_of_row_groups_up_to_the_limit(tmp_path):
    pq.write_table(pa.table({"a": np.arange(1_000)}), tmp_path / "x.parquet", row_group_size=100)
    size = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).total_byte_size
    source = detect(tmp_path / "x.parquet", options=SourceOptions(piece_bytes=4 * size + size // 2))
    assert [piece.name for piece in source.pieces()] == [
        "x.parquet[row groups 0:4]",
        "x.parquet[row groups 4:8]",
        "x.parquet[row groups 8:10]",
    ]
    assert [piece.record_count for piece in source.pieces()] == [400, 400, 200]


def test_extension_types_dictionaries_and_metadata_survive_parquet(tmp_path):
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))
    )
    features = {"info": {"features": {name: {"_type": "Value"} for name in "tdn"}}}
    table = pa.table({"t": tensor, "d": pa.array(["x", "y"]).dictionary_encode(), "n": [1, 2]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features), "mine": "kept"})
    pq.write_table(table, tmp_path / "x.parquet")
    assert table_of(detect(tmp_path / "x.parquet")).equals(table, check_metadata=True)
    some = detect(tmp_path / "x.parquet", options=SourceOptions(columns=("n", "t"))).schema()
    assert list(json.loads(some.metadata[b"huggingface"])["info"]["features"]) == ["n", "t"]
    cast = detect(tmp_path / "x.parquet", options=SourceOptions(schema={"n": "int8"})).schema()
    assert set(cast.metadata) == {b"mine"}  # features would tell the old type


def test_batches_stay_small_where_rows_are_large(tmp_path):
    pq.write_table(pa.table({"a": [b"x" * 1_000 + bytes([i % 251]) for i in range(1_000)]}), tmp_path / "x.parquet")
    source = detect(tmp_path / "x.parquet", options=SourceOptions(batch_bytes=10_000))
    assert max(batch.nbytes for batch in source.read(source.pieces()[0])) < 100_000


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_widths_are_widened_and_nulls_given_a_type(kind, tmp_path):
    tables = [
        pa.table({"a": pa.array([1], pa.int8()), "n": pa.nulls(1), "s": ["x"]}),
        pa.table({"s": pa.array(["y"], pa.large_string()), "n": [1.5], "a": pa.array([200], pa.uint8())}),
    ]
    for i, table in enumerate(tables):
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{i}.parquet")
        else:
            write_stream(tmp_path / f"{i}.arrow", table)
    source = detect(tmp_path)
    assert source.schema() == pa.schema([("a", pa.int16()), ("n", pa.float64()), ("s", pa.large_string())])
    assert table_of(source).to_pylist() == [{"a": 1, "n": None, "s": "x"}, {"a": 200, "n": 1.5, "s": "y"}]


def test_a_column_that_one_file_lacks_is_an_error_until_it_is_given_a_type(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [2]}), tmp_path / "1.parquet")
    with pytest.raises(SchemaError, match=r"'b' \(string\) is in .*0\.parquet but not in .*1\.parquet"):
        detect(tmp_path).schema()
    source = detect(tmp_path, options=SourceOptions(schema={"b": "string"}))
    assert table_of(source)["b"].to_pylist() == ["x", None]


def test_columns_in_folder_names_are_not_lost_silently(tmp_path):
    (tmp_path / "lang=en").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "lang=en/0.parquet")
    with pytest.raises(SourceError, match=r"lang=en says column 'lang'"):
        detect(tmp_path).schema()
    assert detect(tmp_path, options=SourceOptions(columns=("a",))).schema().names == ["a"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    write_stream(tmp_path / "x.arrow", pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]))
    with pytest.raises(SchemaError, match="two columns named 'a'"):
        detect(tmp_path / "x.arrow").schema()


def test_nulls_where_the_schema_rules_them_out_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [1, None]}), tmp_path / "x.parquet")
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    with pytest.raises(SchemaError, match=r"x\.parquet rows \[0, 2\).*'a' has nulls"):
        table_of(detect(tmp_path / "x.parquet", options=SourceOptions(schema=schema)))


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
def test_dictionary_columns_of_arrow_files_are_read(new, tmp_path):
    table = pa.table({"d": pa.array([f"w{i % 7}" for i in range(100)]).dictionary_encode()})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    assert table_of(detect(tmp_path / "x.arrow", options=SourceOptions(piece_bytes=1))).equals(table)


def test_uncompressed_arrow_batches_are_views_of_the_file(tmp_path):
    write_stream(tmp_path / "x.arrow", pa.table({"a": np.arange(1_000_000)}), rows=1_000_000)
    source = detect(tmp_path / "x.arrow")
    before = pa.total_allocated_bytes()
    batches = list(source.read(source.pieces()[0]))
    assert pa.total_allocated_bytes() - before < 100_000
    assert batches[0].nbytes == 8_000_000


def test_no_records_at_all_is_an_error(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="holds no records in 1 Parquet files"):
        detect(tmp_path / "x.parquet").pieces()
    write_stream(tmp_path / "x.arrow", pa.table({"a": pa.array([], pa.int64())}))
    with pytest.raises(SourceError, match="holds no records in 1 Arrow files"):
        detect(tmp_path / "x.arrow").pieces()


def test_what_is_not_parquet_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"hello" * 100)
    with pytest.raises(SourceError, match=r"x\.parquet cannot be read as Parquet"):
        detect(tmp_path / "x.parquet").schema()


def test_a_file_that_shrank_after_the_pieces_were_cut_is_noticed(tmp_path):
    pq.write_table(pa.table({"a": np.arange(100)}), tmp_path / "x.parquet", row_group_size=10)
    source = detect(tmp_path / "x.parquet")
    pieces = source.pieces()
    source.schema()
    pq.write_table(pa.table({"a": np.arange(50)}), tmp_path / "x.parquet", row_group_size=10)
    with pytest.raises(SourceError, match="has 5 row groups now"):
        list(source.read(pieces[0]))
