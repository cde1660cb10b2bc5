"""JSON lines: what types are guessed, and which line is to blame."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import SchemaError, SourceError

CUTS = [SourceOptions(), SourceOptions(piece_bytes=5, batch_bytes=3)]


def read(source):
    return [r for piece in source.pieces() for batch in source.read(piece) for r in batch.to_pylist()]


def write(path, *lines, end=b"\n"):
    path.write_bytes(b"\n".join(lines) + end)
    return path


@pytest.mark.parametrize("options", CUTS, ids=["whole", "cut"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "Expecting value at character"),
        (b"[1]", "it is a JSON list, a record is an object"),
        (b'{"a": 1, "a": 2}', "specified twice"),
        (b'{"a": 1} x', "Extra data at character"),
        (b'{"a": "\xff"}', "0xff"),
        (b'"text"', "it is a JSON str"),
    ],
)
def test_a_bad_line_is_named_by_file_number_and_reason(line, reason, options, tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"a": null}', b"", b'{"a": null}', line, b'{"a": null}')
    with pytest.raises(SourceError, match=rf"x\.jsonl line 4: .*{reason}"):
        read(detect(path, options=options))
    packed = tmp_path / "y.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(SourceError, match=rf"y\.jsonl\.gz line 4: .*{reason}"):
        read(detect(packed, options=options))


def test_a_value_of_another_type_is_named_by_its_line(tmp_path):
    path = write(tmp_path / "x.jsonl", *[b'{"a": 1}'] * 1_000, b'{"a": "x"}', b'{"a": 1}')
    with pytest.raises(
        SourceError, match=r"x\.jsonl line 1,001: .*changed from number to string.*begins b'{\"a\": \"x\"}'"
    ):
        detect(path).schema()


def test_a_json_array_is_told_apart_from_lines(tmp_path):
    path = write(tmp_path / "x.jsonl", b"[", b'{"a": 1},', b'{"a": 2}]')
    with pytest.raises(SourceError, match=r"one JSON array.*jq"):
        detect(path).schema()


@pytest.mark.parametrize("options", CUTS, ids=["whole", "cut"])
def test_types_are_guessed_over_all_files_before_any_is_read(options, tmp_path):
    write(tmp_path / "a.jsonl", b'{"n": null, "f": 1, "l": [], "s": {"x": null}, "u": 5}')
    write(tmp_path / "b.jsonl", b'{"n": "t", "f": 1.5, "l": [2], "s": {"y": true}, "u": 18446744073709551615}', end=b"")
    source = detect(tmp_path, options=options)
    inner = pa.struct([("x", pa.null()), ("y", pa.bool_())])
    assert source.schema() == pa.schema(
        [("n", pa.string()), ("f", pa.float64()), ("l", pa.list_(pa.int64())), ("s", inner), ("u", pa.uint64())]
    )
    assert read(source) == [
        {"n": None, "f": 1.0, "l": [], "s": {"x": None, "y": None}, "u": 5},
        {"n": "t", "f": 1.5, "l": [2], "s": {"x": None, "y": True}, "u": 2**64 - 1},
    ]


def test_what_looks_like_a_date_stays_text_unless_asked(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"d": "2020-01-01"}')
    assert read(detect(path)) == [{"d": "2020-01-01"}]
    dated = detect(path, options=SourceOptions(schema={"d": "timestamp[s]"}))
    assert dated.schema().field("d").type == pa.timestamp("s")
    assert read(dated)[0]["d"].year == 2020


def test_types_pyarrow_cannot_parse_are_cast_to(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"a": 1.5, "b": [1, 2], "c": "x", "d": [1, 2, 3, 4]}')
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 2])
    types = {"a": "float16", "b": pa.list_(pa.int8(), 2), "c": pa.dictionary(pa.int8(), pa.string()), "d": tensor}
    source = detect(path, options=SourceOptions(schema=types))
    [batch] = source.read(source.pieces()[0])
    assert batch.schema.types == list(source.schema().types)
    assert batch["d"].to_numpy_ndarray().tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"{}\n"])
def test_files_without_records_are_refused(data, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(SourceError, match="holds no"):
        detect(tmp_path / "x.jsonl").schema()


def test_an_empty_file_among_others_holds_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    write(tmp_path / "b.jsonl", b'{"a": 1}')
    assert read(detect(tmp_path)) == [{"a": 1}]


def test_conflicting_blocks_of_one_file_are_told_by_their_bytes(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"a": 1}', b'{"a": "x"}')
    with pytest.raises(SchemaError, match=r"int64 in .*\(bytes \[0, 9\)\) but string in .*\(bytes \[9, 20\)\)"):
        detect(path, options=CUTS[1]).schema()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=20),
    piece=st.integers(1, 200),
    block=st.integers(1, 200),
    end=st.sampled_from([b"", b"\n", b"\r\n", b"\n\n"]),
)
def test_every_line_is_read_once_wherever_pieces_end(tmp_path, texts, piece, block, end):
    data = (end or b"\n").join(json.dumps({"t": t}, ensure_ascii=False).encode() for t in texts) + end
    (tmp_path / "x.jsonl").write_bytes(data)
    source = detect(tmp_path / "x.jsonl", options=SourceOptions(piece_bytes=piece, batch_bytes=block))
    assert [r["t"] for r in read(source)] == texts
