"""What a value is taken for, and what is said where it is nothing."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import OptionError, SourceError

SAVED = json.dumps({"_data_files": [{"filename": "data.arrow"}]})


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.parquet"], "parquet"),
        (["a.jsonl", "b.jsonl.gz", "c.ndjson.zst"], "jsonl"),
        (["a.arrow", "b.feather", "dataset_info.json"], "arrow"),
        (["a.bin", "a.bin.bounds.npy", "meta.json"], "tokens"),
        (["a.json", "_SUCCESS", ".hidden.parquet"], "jsonl"),
        (["a.csv", "b.tsv", "c.csv.gz", "d.tsv.gz", "README.md"], "csv"),
        (["a.tar", "b.tar.gz", "c.tgz", "a.tar.idx"], "webdataset"),
        (["index.json", "shard.00000.mds", "shard.00001.mds.zstd"], "mds"),
        (["cat/a.JPG", "dog/b.png", "notes.txt"], "imagefolder"),
        (["state.json", "data.arrow"], "huggingface"),
        (["dataset_dict.json", "train/state.json", "train/data.arrow"], "huggingface"),
    ],
)
def test_a_folders_kind_is_that_of_its_files(names, kind, tmp_path):
    touch(tmp_path, *names)
    if kind == "huggingface":
        (tmp_path / "state.json").write_text(SAVED)
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train/state.json").write_text(SAVED)
        if "dataset_dict.json" in names:
            (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert detect(tmp_path).kind == kind


def test_a_folder_of_two_kinds_is_refused_until_one_is_chosen(tmp_path):
    touch(tmp_path, "a.jsonl", "b.jsonl", "c.parquet")
    with pytest.raises(SourceError, match=r"2 jsonl and 1 parquet.*kind="):
        detect(tmp_path)
    assert len(detect(tmp_path, kind="jsonl").pieces()) == 2


def test_bytes_tell_where_a_name_does_not(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p")
    (tmp_path / "j").write_text('{"a": 1}\n')
    (tmp_path / "x").write_text("hello")
    assert detect(tmp_path / "p").kind == "parquet"
    assert detect(tmp_path / "j").kind == "jsonl"
    with pytest.raises(SourceError, match=r"no known kind.*parquet: \.parquet.*kind='jsonl'"):
        detect(tmp_path / "x")


def test_what_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"a/b\.parquet does not exist; the nearest folder"):
        detect(tmp_path / "a/b.parquet")
    with pytest.raises(SourceError, match="no data files"):
        detect(tmp_path)
    with pytest.raises(SourceError, match="no file matches"):
        detect(f"{tmp_path}/*.parquet")
    touch(tmp_path, "note.txt")
    with pytest.raises(SourceError, match=r"1 files of no known kind, such as note\.txt"):
        detect(tmp_path)
    with pytest.raises(SourceError, match=r"holds no parquet files .* but 1 others, such as note\.txt"):
        detect(tmp_path, kind="parquet").pieces()


@pytest.mark.parametrize("value", [3, None, {"a": 1}, b"bytes", 1.5])
def test_values_that_give_no_records_are_refused_with_the_kinds(value):
    with pytest.raises(SourceError, match=r"is no source.*arrow, csv, .*iterable, .*tokens, webdataset"):
        detect(value)


def test_a_url_and_an_unknown_kind_are_refused(tmp_path):
    with pytest.raises(SourceError, match="is a URL"):
        detect("s3://bucket/x.parquet")
    with pytest.raises(OptionError, match="kind is 'xml'; give one of arrow"):
        detect(tmp_path, kind="xml")
    with pytest.raises(SourceError, match="reads files, but the source is a list"):
        detect([{"a": 1}], kind="parquet")


def test_a_file_named_twice_is_refused(tmp_path):
    touch(tmp_path, "a.jsonl")
    with pytest.raises(SourceError, match="named twice"):
        detect([tmp_path / "a.jsonl", tmp_path / "a.jsonl"]).pieces()


def test_files_of_several_kinds_in_a_list_are_refused(tmp_path):
    touch(tmp_path, "a.jsonl", "b.parquet")
    with pytest.raises(SourceError, match=r"a\.jsonl is jsonl but .*b\.parquet is parquet"):
        detect([tmp_path / "a.jsonl", tmp_path / "b.parquet"])


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0.jsonl", "test-0.jsonl", "val.jsonl"], ["test", "train", "validation"]),
        (["data/train-00000-of-00001.jsonl", "data/dev.jsonl"], ["train", "validation"]),
        (["trainer.jsonl", "latest.jsonl", "testament.jsonl"], ["train"]),
    ],
)
def test_only_whole_words_are_splits(names, splits, tmp_path):
    touch(tmp_path, *names)
    assert sorted({piece.split for piece in detect(tmp_path).pieces()}) == splits


@pytest.mark.parametrize(
    "options",
    [
        SourceOptions(),
        SourceOptions(columns=("a", "b"), piece_bytes=5, drop_tail=True, record_tokens=4, token_dtype="uint32"),
        SourceOptions(schema=pa.schema([("a", pa.list_(pa.int8()))], {"k": "v"})),
        SourceOptions(schema={"a": "int8", "b": pa.fixed_shape_tensor(pa.int8(), [2, 2])}),
    ],
)
def test_options_pass_through_json(options):
    assert SourceOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "ab"}, r"columns=\['ab'\]"),
        ({"columns": ["a", "a"]}, "none twice"),
        ({"columns": []}, "at least one"),
        ({"schema": {"a": "list<int>"}}, "'list<int>' for column 'a'"),
        ({"schema": 3}, "schema is a int"),
        ({"piece_bytes": 0}, "piece_bytes is 0; give at least 1"),
        ({"token_header_bytes": -1}, "token_header_bytes is -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        SourceOptions(**options)
