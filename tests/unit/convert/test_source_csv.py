"""CSV and TSV: what types are found, wherever blocks, pieces and files end."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import OptionError, SchemaError, SourceError
from tests import pieces

RECORDS = [
    {"id": i, "score": None if i % 7 == 0 else i / 4, "ok": i % 3 == 0, "text": f'é, "{i}"', "zip": f"{i:05d}"}
    for i in range(400)
]


def text_of(records, delimiter=",", end="\r\n"):
    out = io.StringIO()
    writer = csv.DictWriter(out, records[0], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("csv")
    (here / "0.csv").write_bytes(text_of(RECORDS[:150]))
    (here / "1.tsv").write_bytes(text_of(RECORDS[150:250], "\t", "\n")[:-1])  # no newline at the end
    lines = text_of(RECORDS[250:]).replace(b"\r\n", b"\r\n\r\n\n")  # empty lines are passed over
    (here / "2.csv.gz").write_bytes(gzip.compress(lines[:1_000]) + gzip.compress(lines[1_000:]))
    return here


def test_records_are_those_written_however_they_are_cut(folder):
    pieces.check_contract(folder, RECORDS, "csv")
    assert detect(folder).schema().types == [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string()]
    assert len(detect(folder / "0.csv", options=SourceOptions(piece_bytes=700)).pieces()) > 5


def test_a_conversion_holds_them_and_can_be_killed_and_resumed(folder, tmp_path):
    pieces.check_conversion(folder, {"train": RECORDS}, tmp_path / "home")


@pytest.mark.parametrize(
    ("values", "type_", "want"),
    [
        (["1", "-2", " 3"], "int64", [1, -2, 3]),
        (["1", "", "NA"], "int64", [1, None, None]),
        (["9223372036854775808", "0"], "uint64", [2**63, 0]),
        (["9223372036854775808", "-1"], "string", None),
        (["9223372036854775808", "0.5"], "string", None),
        (["18446744073709551616", "1"], "string", None),
        (["1", "0.5", "-1e3"], "double", [1.0, 0.5, -1000.0]),
        (["nan", "1.5"], "double", [None, 1.5]),
        (["true", "False", ""], "bool", [True, False, None]),
        (["true", "1"], "string", None),
        (["007", "1"], "string", None),
        (["+1", "1"], "string", None),
        (["1,5", "2"], "string", None),
        (["0x10", "1"], "string", None),
        (["1", "x"], "string", None),
        (["2020-01-01", "12:30"], "string", None),
        (["x", "", "NA", "nan"], "string", None),
        (["", "NA"], "null", [None, None]),
    ],
)
def test_a_type_is_one_that_all_values_are_spelt_as(values, type_, want, tmp_path):
    for order in (values, values[::-1]):
        path = tmp_path / "x.csv"
        path.write_bytes(text_of([{"v": v, "other": "x"} for v in order]))
        source = detect(path)
        assert str(source.schema().field("v").type) == type_
        got = [r["v"] for r in pieces.records_of(source)]
        assert got == (order if want is None else want if order is values else want[::-1])


def test_types_are_found_over_all_of_a_file_not_its_first_block(tmp_path):
    """A block is at least a megabyte; the one value that is no integer stands in the third."""
    rows = [f"{i},{'p' * 100}" for i in range(30_000)] + ["x,p"]
    (tmp_path / "x.csv").write_text("\n".join(["v,pad", *rows]))
    source = detect(tmp_path / "x.csv", options=SourceOptions(batch_bytes=1))
    assert source.schema().field("v").type == pa.string()
    assert [r["v"] for r in pieces.records_of(source)] == [*map(str, range(30_000)), "x"]


def test_an_end_of_line_in_a_value_near_any_block_is_kept(tmp_path):
    values = [("ab\n" * (i % 50)) + "\r\n" + 'q"' * (i % 3) for i in range(40_000)]
    (tmp_path / "x.csv").write_bytes(text_of([{"i": i, "v": v} for i, v in enumerate(values)]))
    source = detect(tmp_path / "x.csv", options=SourceOptions(piece_bytes=1_000, batch_bytes=1))
    assert [piece.name for piece in source.pieces()] == ["x.csv"]  # cannot be cut at ends of lines
    assert [r["v"] for r in pieces.records_of(source)] == values


def test_files_may_differ_in_order_and_numbers_but_in_nothing_else(tmp_path):
    (tmp_path / "a.csv").write_text("n,u,t,z\n1,1,x,\n")
    (tmp_path / "b.csv").write_text("t,u,n,z\ny,9223372036854775808,0.5,3\n")
    source = detect(tmp_path)
    assert source.schema() == pa.schema({"n": pa.float64(), "u": pa.uint64(), "t": pa.string(), "z": pa.int64()})
    assert pieces.records_of(source)[1] == {"n": 0.5, "u": 2**63, "t": "y", "z": 3}
    (tmp_path / "c.csv").write_text("t,u,n,z\nz,1,two,4\n")
    with pytest.raises(SchemaError, match=r"'n' is int64 in .*a\.csv but .* in .*\.csv; give the type"):
        detect(tmp_path).schema()
    assert [r["n"] for r in pieces.records_of(detect(tmp_path, options=SourceOptions(schema={"n": "string"})))] == [
        "1", "0.5", "two"
    ]  # fmt: skip
    (tmp_path / "c.csv").write_text("t,u\nz,1\n")
    with pytest.raises(SchemaError, match=r"'n' .* is in .*a\.csv but not in .*c\.csv"):
        detect(tmp_path).schema()


def test_types_asked_for_are_parsed_from_the_text(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,c,d,e\n1,2020-01-02,007,1.5,NA\n")
    wanted = {"a": "int8", "b": "date32", "c": "int16", "d": "float16", "e": "string"}
    source = detect(tmp_path / "x.csv", options=SourceOptions(schema=wanted))
    [record] = pieces.records_of(source)
    assert [str(f.type) for f in source.schema()] == ["int8", "date32[day]", "int16", "halffloat", "string"]
    assert (record["a"], str(record["b"]), record["c"], record["d"], record["e"]) == (1, "2020-01-02", 7, 1.5, "NA")
    full = pa.schema({"c": pa.string(), "new": pa.int64()})
    assert pieces.records_of(detect(tmp_path / "x.csv", options=SourceOptions(schema=full))) == [
        {"c": "007", "new": None}
    ]
    (tmp_path / "x.csv").write_text("a\n1\n300\n")
    with pytest.raises(SourceError, match=r"x\.csv cannot be read as CSV .*int8: invalid value '300'"):
        pieces.records_of(detect(tmp_path / "x.csv", options=SourceOptions(schema={"a": "int8"})))


def test_delimiters(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n1;2,5\n")
    with pytest.raises(SourceError, match=r"one column, 'a;b'; .*delimiter=';'"):
        detect(tmp_path / "x.csv").schema()
    source = detect(tmp_path / "x.csv", options=SourceOptions(delimiter=";"))
    assert pieces.records_of(source) == [{"a": 1, "b": "2,5"}]
    assert SourceOptions.from_json(json.loads(json.dumps(SourceOptions(delimiter=";").to_json()))).delimiter == ";"
    for wrong in ("", ";;", '"', "\n", "é"):
        with pytest.raises(OptionError, match="delimiter is .*one ASCII character"):
            SourceOptions(delimiter=wrong)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n3,4\n")
    for cut in pieces.CUTS:
        assert pieces.records_of(detect(tmp_path / "x.csv", options=cut)) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no records: its 1 files have at most a header"),
        (b"a,b\n", "holds no records: its 1 files have at most a header"),
        (b"a,b\n1,2\n3\n", r"x\.csv cannot be read as CSV .*Row #3: Expected 2 columns, got 1"),
        (b"a,a\n1,2\n", r"x\.csv has two columns named 'a'"),
        (b"a,b\n1,\xff\n", r"x\.csv cannot be read as CSV .*UTF8"),
        (b'a,b\n1,"x\n2,y\n3,z\n', r"x\.csv record 1: a quote is opened and never closed"),
    ],
)
def test_what_is_no_csv_is_refused_with_the_file(text, message, tmp_path):
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(SourceError, match=message):
        pieces.records_of(detect(tmp_path / "x.csv"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_gzipped_file_cut_short_is_an_error_that_names_it(keep, tmp_path):
    data = gzip.compress(text_of(RECORDS))
    (tmp_path / "x.csv.gz").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(SourceError, match=r"x\.csv\.gz"):
        pieces.records_of(detect(tmp_path / "x.csv.gz"))


def test_a_record_larger_than_a_block_is_refused_with_the_option(tmp_path):
    (tmp_path / "x.csv").write_text(f"a,b\n1,2\n3,{'z' * 3_000_000}\n")
    with pytest.raises(SourceError, match=r"x\.csv holds a record larger than batch_bytes"):
        detect(tmp_path / "x.csv", options=SourceOptions(batch_bytes=1)).schema()
    assert [len(r["b"]) for r in pieces.records_of(detect(tmp_path / "x.csv"))] == [1, 3_000_000]


def test_an_empty_file_among_others_holds_nothing(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"a,b\n1,2\n")
    assert pieces.records_of(detect(tmp_path)) == [{"a": 1, "b": 2}]


VALUES = st.text(st.sampled_from('ab",\n\r 01.-'), max_size=6) | st.sampled_from(["1", "-2.5", "true", "", "NA"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    piece=st.integers(1, 80),
)
@example(rows=[("a\nb", ""), ("", "")], end="\n", piece=1)
def test_text_comes_out_as_python_wrote_it_wherever_pieces_end(tmp_path, rows, end, piece):
    out = io.StringIO()
    # Python quotes an end of line only where it is the writer's own, though readers take each for one.
    quoting = (
        csv.QUOTE_ALL if any(sign in value for row in rows for value in row for sign in "\r\n") else csv.QUOTE_MINIMAL
    )
    writer = csv.writer(out, lineterminator=end, quoting=quoting)
    writer.writerows([("first", "second"), *rows])
    (tmp_path / "x.csv").write_bytes(out.getvalue().encode())
    options = SourceOptions(piece_bytes=piece, schema={"first": "string", "second": "string"})
    got = pieces.records_of(detect(tmp_path / "x.csv", options=options))
    assert [(r["first"], r["second"]) for r in got] == rows


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
        min_size=1,
        max_size=8,
    )
)
def test_numbers_are_never_changed(tmp_path, values):
    (tmp_path / "x.csv").write_bytes(text_of([{"v": v, "o": "x"} for v in values]))
    source = detect(tmp_path / "x.csv")
    got = [r["v"] for r in pieces.records_of(source)]
    if source.schema().field("v").type == pa.string():
        assert got == [str(v) for v in values]
    elif all(isinstance(v, float) or abs(v) < 2**53 for v in values):
        assert got == values
    else:
        assert got == values or [float(v) for v in values] == got
