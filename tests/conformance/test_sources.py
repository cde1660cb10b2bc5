"""The Source contract, proved over every kind: the same records in, the same records out, however they are cut."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from shufflestore.convert.base import KINDS, Piece, Source, SourceOptions, SourceSpec, detect, from_spec
from shufflestore.errors import SchemaError, SourceError

zstandard = pytest.importorskip("zstandard")
datasets = pytest.importorskip("datasets")

RECORDS: list[dict[str, Any]] = [
    {
        "id": i,
        "text": f"line {i}\nof ünï\u2028code",
        "tokens": list(range(i % 5)),
        "score": None if i % 7 == 0 else i / 2,
        "inner": {"a": i, "b": ["x"] * (i % 3)},
    }
    for i in range(503)
]
TABLE = pa.Table.from_pylist(RECORDS)
HALF = 200
TOKENS = np.arange(6_000, dtype=np.uint16) % 251


def write_arrow(path: Path, table: pa.Table, new: Callable[..., Any], **options: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=50)


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def arrow_files(folder: Path) -> Any:
    write_arrow(folder / "0.arrow", TABLE[:HALF], ipc.new_file)
    write_arrow(folder / "1.arrow", TABLE[HALF:], ipc.new_file, compression="lz4")
    return folder


def arrow_streams(folder: Path) -> Any:
    write_arrow(folder / "0.arrow", TABLE[:HALF], ipc.new_stream)
    write_arrow(folder / "1.arrow", TABLE[HALF:], ipc.new_stream, compression="zstd")
    return f"{folder}/?.arrow"


def parquet(folder: Path) -> Any:
    pq.write_table(TABLE[:HALF], folder / "0.parquet", row_group_size=64)
    pq.write_table(TABLE[HALF:], folder / "1.parquet", row_group_size=64, compression="zstd")
    return folder


def jsonl(folder: Path) -> Any:
    (folder / "0.jsonl").write_bytes(lines(RECORDS[:HALF]))
    (folder / "1.jsonl").write_bytes(lines(RECORDS[HALF:])[:-1])  # no newline at the end
    return [folder / "0.jsonl", str(folder / "1.jsonl")]


def jsonl_packed(folder: Path) -> Any:
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS[:100])) + gzip.compress(lines(RECORDS[100:HALF])))
    (folder / "1.jsonl.zst").write_bytes(zstandard.compress(lines(RECORDS[HALF:])))
    return folder


def dataset(folder: Path) -> Any:
    return datasets.Dataset(TABLE)


def dataset_shuffled(folder: Path) -> Any:
    order = np.random.default_rng(0).permutation(len(RECORDS))
    return datasets.Dataset(TABLE.take(np.argsort(order))).select(order)


def dataset_saved(folder: Path) -> Any:
    datasets.Dataset(TABLE).save_to_disk(folder / "saved", num_shards=3)
    return folder / "saved"


def dataset_mapped(folder: Path) -> Any:
    return datasets.load_from_disk(str(dataset_saved(folder)))


def records_list(folder: Path) -> Any:
    return RECORDS


def records_function(folder: Path) -> Any:
    def give() -> Iterator[dict[str, Any]]:
        yield from RECORDS

    return give


class MapStyle:
    def __len__(self) -> int:
        return len(RECORDS)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return RECORDS[i]


def records_map_style(folder: Path) -> Any:
    return MapStyle()


MAKERS = [
    arrow_files,
    arrow_streams,
    dataset,
    dataset_mapped,
    dataset_saved,
    dataset_shuffled,
    jsonl,
    jsonl_packed,
    parquet,
    records_function,
    records_list,
    records_map_style,
]
FILE_MAKERS = [arrow_files, arrow_streams, dataset_mapped, dataset_saved, jsonl, jsonl_packed, parquet]
CUTS = [SourceOptions(), SourceOptions(piece_bytes=3_000, batch_bytes=500), SourceOptions(piece_bytes=1, batch_bytes=1)]


def table_of(source: Source) -> pa.Table:
    batches = [batch for piece in source.pieces() for batch in source.read(piece)]
    for batch in batches:
        batch.validate(full=True)
        assert batch.schema.equals(source.schema(), check_metadata=True)
    return pa.Table.from_batches(batches, source.schema())


def name(make: Callable[[Path], Any]) -> str:
    return make.__name__


@pytest.mark.parametrize("options", CUTS, ids=["whole", "small", "smallest"])
@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_the_same_records_come_out_in_order_however_they_are_cut(make, options, tmp_path):
    source = detect(make(tmp_path), options=options)
    assert isinstance(source, Source)
    assert source.kind in KINDS
    assert table_of(source).to_pylist() == RECORDS
    assert source.is_replayable
    assert table_of(source).to_pylist() == RECORDS


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_pieces_are_named_once_and_count_what_they_hold(make, tmp_path):
    source = detect(make(tmp_path), options=CUTS[1])
    pieces = source.pieces()
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert {piece.split for piece in pieces} == {"train"}
    assert all(piece.byte_count >= 0 for piece in pieces)
    for piece in pieces:
        assert Piece.from_json(json.loads(json.dumps(piece.to_json()))) == piece
        if piece.record_count is not None:
            assert sum(batch.num_rows for batch in source.read(piece)) == piece.record_count


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_pieces_read_in_any_order_hold_the_same(make, tmp_path):
    source = detect(make(tmp_path), options=CUTS[1])
    forward = {piece.name: list(source.read(piece)) for piece in source.pieces()}
    backward = {piece.name: list(source.read(piece)) for piece in reversed(source.pieces())}
    assert forward == backward


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_a_second_source_of_the_same_input_is_equal(make, tmp_path):
    value = make(tmp_path)
    a, b = detect(value, options=CUTS[1]), detect(value, options=CUTS[1])
    assert list(a.pieces()) == list(b.pieces())
    assert a.fingerprint() == b.fingerprint()
    assert a.fingerprint() != detect(value, options=SourceOptions(columns=("id",))).fingerprint()


@pytest.mark.parametrize("make", FILE_MAKERS, ids=name)
@pytest.mark.parametrize("columns", [None, ("text", "id")])
def test_a_source_rebuilt_from_its_spec_reads_the_same_batches(make, columns, tmp_path):
    options = SourceOptions(columns=columns, piece_bytes=3_000, schema={"id": "int32"})
    source = detect(make(tmp_path), options=options)
    spec = source.spec()
    assert spec is not None
    again = from_spec(json.loads(json.dumps(spec.to_json())))
    assert SourceSpec.from_json(spec.to_json()) == spec
    assert again.schema().equals(source.schema(), check_metadata=True)
    # Read before anything else is asked: a worker gets its pieces from elsewhere.
    assert [list(again.read(piece)) for piece in source.pieces()] == [list(source.read(p)) for p in source.pieces()]
    assert list(again.pieces()) == list(source.pieces())
    assert again.fingerprint() == source.fingerprint()


@pytest.mark.parametrize("make", [m for m in MAKERS if m not in FILE_MAKERS], ids=name)
def test_what_is_in_memory_has_no_spec(make, tmp_path):
    assert detect(make(tmp_path)).spec() is None


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_columns_come_in_the_order_asked_for(make, tmp_path):
    source = detect(make(tmp_path), options=SourceOptions(columns=("text", "id")))
    assert source.schema().names == ["text", "id"]
    assert table_of(source).to_pylist() == [{"text": r["text"], "id": r["id"]} for r in RECORDS]


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_types_asked_for_are_the_types_delivered(make, tmp_path):
    wanted = {"id": "int16", "text": "large_string", "tokens": pa.large_list(pa.uint16())}
    source = detect(make(tmp_path), options=SourceOptions(schema=wanted))
    assert [source.schema().field(n).type for n in wanted] == [
        pa.int16(),
        pa.large_string(),
        pa.large_list(pa.uint16()),
    ]
    assert table_of(source).to_pylist() == RECORDS


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_a_whole_schema_fixes_all_columns(make, tmp_path):
    full = pa.schema([("tokens", pa.list_(pa.int32())), ("id", pa.int64()), ("extra", pa.string())])
    got = table_of(detect(make(tmp_path), options=SourceOptions(schema=full)))
    assert got.schema.equals(full, check_metadata=False)
    assert got.to_pylist() == [{"tokens": r["tokens"], "id": r["id"], "extra": None} for r in RECORDS]


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_a_column_that_is_not_there_is_named_with_those_that_are(make, tmp_path):
    with pytest.raises(SchemaError, match=r"'nope'.*id, text, tokens"):
        detect(make(tmp_path), options=SourceOptions(columns=("id", "nope"))).schema()


@pytest.mark.parametrize("make", MAKERS, ids=name)
def test_a_type_that_values_do_not_fit_is_refused_with_the_column(make, tmp_path):
    source = detect(make(tmp_path), options=SourceOptions(schema={"id": "int8"}))
    with pytest.raises((SchemaError, SourceError), match=r"id"):
        table_of(source)


@pytest.mark.parametrize("make", [m for m in FILE_MAKERS if m not in (dataset_mapped, dataset_saved)], ids=name)
def test_a_changed_file_changes_the_fingerprint(make, tmp_path):
    value = make(tmp_path)
    before = detect(value).fingerprint()
    path = next(p for p in sorted(tmp_path.iterdir()) if p.name.startswith("1"))
    path.write_bytes(path.read_bytes() + b"\n")
    assert detect(value).fingerprint() != before


@pytest.mark.parametrize("make", [arrow_files, arrow_streams, jsonl_packed, parquet], ids=name)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_an_error_that_names_it(make, keep, tmp_path):
    value = make(tmp_path)
    path = next(p for p in sorted(tmp_path.iterdir()) if p.name.startswith("1"))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(SourceError, match=path.name):
        table_of(detect(value))


@pytest.mark.parametrize("make", [arrow_files, arrow_streams, jsonl, parquet], ids=name)
def test_files_that_disagree_are_both_named(make, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    make(tmp_path / "a")
    other = [{**record, "id": f"#{record['id']}"} for record in RECORDS]
    if make is jsonl:
        (tmp_path / "b/0.jsonl").write_bytes(lines(other))
    elif make is parquet:
        pq.write_table(pa.Table.from_pylist(other), tmp_path / "b/0.parquet")
    else:
        write_arrow(tmp_path / "b/0.arrow", pa.Table.from_pylist(other), ipc.new_file)
    source = detect(tmp_path)
    with pytest.raises(SchemaError, match=r"'id' is int64 in .*/a/0.* but string in .*/b/0.*schema="):
        source.schema()
    if make is not jsonl:  # JSON numbers are never strings; typed files can be cast
        fixed = detect(tmp_path, options=SourceOptions(schema={"id": "string"}))
        assert table_of(fixed)["id"].to_pylist() == [*(str(r["id"]) for r in RECORDS), *(r["id"] for r in other)]
    assert table_of(detect(tmp_path, options=SourceOptions(columns=("text",)))).num_rows == 2 * len(RECORDS)


@pytest.mark.parametrize("make", [arrow_files, jsonl, parquet], ids=name)
def test_a_folders_names_say_splits(make, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        make(tmp_path / split)
    source = detect(tmp_path)
    assert {piece.split for piece in source.pieces()} == {"train", "validation", "test"}
    assert table_of(source).num_rows == 3 * len(RECORDS)
    named = detect({"a": tmp_path / "train", "b": f"{tmp_path}/test/0.*"})
    assert {piece.split for piece in named.pieces()} == {"a", "b"}


def test_a_dataset_dict_has_its_splits(tmp_path):
    both = datasets.DatasetDict(train=datasets.Dataset(TABLE), heldout=datasets.Dataset(TABLE[:7]))
    both.save_to_disk(tmp_path / "saved")
    for source in (detect(both), detect(tmp_path / "saved"), detect(datasets.load_from_disk(tmp_path / "saved"))):
        rows = {}
        for piece in source.pieces():
            rows[piece.split] = rows.get(piece.split, 0) + sum(batch.num_rows for batch in source.read(piece))
        assert rows == {"train": len(RECORDS), "heldout": 7}


@pytest.mark.parametrize("how", [{"record_tokens": 60}, {"end_token": 250}, {"bounds": "b.npy"}], ids=str)
@pytest.mark.parametrize("options", CUTS, ids=["whole", "small", "smallest"])
@pytest.mark.parametrize("file", ["t.bin", "t.npy"])
def test_tokens_keep_the_contract(how, options, file, tmp_path):
    TOKENS.tofile(tmp_path / "t.bin")
    np.save(tmp_path / "t.npy", TOKENS)
    ends = np.flatnonzero(TOKENS == 250) + 1
    bounds = np.array([0, *ends.tolist(), TOKENS.size], np.int64)
    np.save(tmp_path / "b.npy", bounds)
    how = {key: str(tmp_path / value) if key == "bounds" else value for key, value in how.items()}
    options = SourceOptions(piece_bytes=options.piece_bytes, batch_bytes=options.batch_bytes, **how)
    source = detect(tmp_path / file, options=options)
    want = TOKENS.reshape(-1, 60) if "record_tokens" in how else np.split(TOKENS, ends)
    assert [r["tokens"] for r in table_of(source).to_pylist()] == [part.tolist() for part in want]
    spec = source.spec()
    assert spec is not None
    again = from_spec(json.loads(json.dumps(spec.to_json())))
    assert [list(again.read(p)) for p in again.pieces()] == [list(source.read(p)) for p in source.pieces()]


def test_an_iterator_is_read_once_and_says_so():
    source = detect(iter(RECORDS))
    assert not source.is_replayable
    assert table_of(source).to_pylist() == RECORDS
    with pytest.raises(SourceError, match="read already"):
        table_of(source)


def test_an_iterable_dataset_is_an_iterable():
    stream = datasets.Dataset(TABLE).to_iterable_dataset()
    assert detect(stream).kind == "iterable"
    assert table_of(detect(stream)).to_pylist() == RECORDS
