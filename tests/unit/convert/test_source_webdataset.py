"""WebDataset tars: what makes a record, what becomes of its members, and where a tar is wrong."""

from __future__ import annotations

import gzip
import io
import random
import tarfile

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.convert.sources.webdataset.source import split_name
from shufflestore.errors import SchemaError, SourceError
from tests import pieces

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path, members, form=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=form) as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def invented(start, count):
    """Members, and the records that they are."""
    members, records = [], []
    for i in range(start, start + count):
        r = random.Random(i)
        key = f"{'folder/' * (i % 30)}{i:06d}"
        image, mask = r.randbytes(r.choice([0, 1, 511, 512, 513, 2_000])), r.randbytes(5)
        record = {"__key__": key, "jpg": image, "txt": None, "cls": None, "seg.png": mask, "json": '{"é": 1}'}
        members += [(f"{key}.JPG", image)]
        if i % 3:
            record["txt"] = f"t漢 {i}"
            members += [(f"{key}.txt", record["txt"].encode())]
        if i % 5:
            record["cls"] = i - 7
            members += [(f"{key}.cls", f" {i - 7}\n".encode())]
        members += [(f"{key}.seg.png", mask), (f"{key}.json", record["json"].encode())]
        records.append(record)
    return members, records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("tars")
    records = []
    for i, (name, form) in enumerate(FORMATS.items()):
        members, these = invented(12 * i + 1, 12)
        write(here / f"{i}-{name}.tar{'.gz' if i == 1 else ''}", members, form)
        records += these
    return here, records


def test_records_are_those_that_were_packed_however_they_are_cut(folder):
    path, records = folder
    pieces.check_contract(path, records, "webdataset")


def test_a_conversion_holds_them_and_can_be_killed_and_resumed(folder, tmp_path):
    path, records = folder
    pieces.check_conversion(path, {"train": records}, tmp_path / "home")


def test_a_plain_tar_is_cut_at_records_and_a_gzipped_one_is_one_piece(folder):
    names = [piece.name for piece in detect(folder[0], options=SourceOptions(piece_bytes=5_000)).pieces()]
    assert sum(name.startswith("0-ustar.tar[bytes ") for name in names) > 2
    assert names.count("1-gnu.tar.gz") == 1


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("a.jpg", ("a", "jpg")),
        ("./a.jpg", ("./a", "jpg")),
        ("x/v1.2/a.b.C", ("x/v1.2/a", "b.c")),
        ("a.", ("a", "")),
        ("a", None),
        ("v1.2/a", None),
        (".a.jpg", None),
        ("x/._a.jpg", None),
        ("__index__.json", ("__index__", "json")),
        ("__index__", None),
        ("__x__/a.jpg", None),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_base_name(name, want):
    assert split_name(name) == want


def test_only_consecutive_members_make_a_record_and_others_are_passed_over(tmp_path):
    folder_entry = tarfile.TarInfo("a")
    folder_entry.type = tarfile.DIRTYPE
    members = [("a", folder_entry), ("a.x", b"1"), ("README", b"?"), ("a.y", b"2"), ("b.x", b"3"), ("a.x", b"4")]
    source = detect(write(tmp_path / "t.tar", members))
    assert pieces.records_of(source) == [
        {"__key__": "a", "x": b"1", "y": b"2"},
        {"__key__": "b", "x": b"3", "y": None},
        {"__key__": "a", "x": b"4", "y": None},
    ]


def test_an_extension_twice_in_a_record_is_refused_with_its_byte(tmp_path):
    path = write(tmp_path / "t.tar", [("a.jpg", b"1"), ("a.JPG", b"2")])
    with pytest.raises(SourceError, match=r"t\.tar byte 1,024: a\.JPG is the second member of record 'a' .*'jpg'"):
        detect(path).schema()


def test_columns_left_out_are_not_read_and_types_asked_for_are_parsed(folder):
    path, records = folder
    wanted = {"cls": "int16", "json": "binary", "jpg": "large_binary"}
    source = detect(path, options=SourceOptions(columns=("cls", "json", "__key__", "jpg"), schema=wanted))
    assert source.schema().types == [pa.int16(), pa.binary(), pa.string(), pa.large_binary()]
    assert pieces.records_of(source) == [
        {"cls": r["cls"], "json": r["json"].encode(), "__key__": r["__key__"], "jpg": r["jpg"]} for r in records
    ]


def test_values_that_do_not_fit_are_named_by_file_and_record(tmp_path):
    path = write(tmp_path / "t.tar", [("a.txt", b"x"), ("b.txt", b"\xff"), ("b.cls", b"cat")])
    with pytest.raises(SchemaError, match=r"t\.tar: b\.txt is not UTF-8 at its byte 0; .*schema="):
        pieces.records_of(detect(path))
    with pytest.raises(SchemaError, match=r"t\.tar records 'a' to 'b': column 'cls'.*'cat'"):
        pieces.records_of(detect(path, options=SourceOptions(schema={"txt": "binary"})))


def test_folders_say_splits(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "0.tar", [(f"{split}.x", b"1")])
    assert [piece.split for piece in detect(tmp_path).pieces()] == ["train", "validation"]


@pytest.mark.parametrize("end", [".tar", ".tar.gz"])
def test_a_tar_cut_short_anywhere_is_an_error_that_names_file_and_byte(end, tmp_path):
    """Also between two members, which Python's tarfile takes for the end."""
    whole = write(tmp_path / f"whole{end}", invented(0, 3)[0]).read_bytes()
    text = gzip.decompress(whole) if end == ".tar.gz" else whole
    last = len(text.rstrip(b"\0")) if end == ".tar" else len(whole) - 1
    path = tmp_path / f"t{end}"
    for size in sorted({*range(0, last, 97), *range(512, last, 512), last}):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=rf"t{end}( byte [\d,]+:| has no bytes| cannot be read behind byte)"):
            pieces.records_of(detect(path))


def test_a_damaged_header_in_the_middle_is_an_error_with_its_byte(tmp_path):
    path = write(tmp_path / "t.tar", [("a.x", b"1"), ("b.x", b"2")])
    data = bytearray(path.read_bytes())
    data[1_024 + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"t\.tar byte 1,024: the header there is damaged"):
        detect(path).schema()


@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bits_are_an_error_that_names_the_file_or_change_only_names_and_values(form, tmp_path):
    """Of a tar, headers have a sum; long names and values have none."""
    path = write(tmp_path / "t.tar", [*invented(29, 1)[0], *invented(2, 2)[0]], FORMATS[form])
    whole, r, refused = path.read_bytes(), random.Random(form), []
    for _ in range(300):
        data = bytearray(whole)
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
        path.write_bytes(data)
        try:
            assert pieces.records_of(detect(path))
        except (SourceError, SchemaError) as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(str(path) in message for message in refused)


def test_what_is_no_record_by_itself_is_refused_by_name(tmp_path):
    link = tarfile.TarInfo("a.x")
    link.type, link.linkname = tarfile.SYMTYPE, "b.x"
    with pytest.raises(SourceError, match=r"byte 0: a\.x is a link; .*--dereference"):
        detect(write(tmp_path / "l.tar", [("a.x", link)])).schema()
    sparse = tarfile.TarInfo("a.x")
    sparse.type = b"S"
    with pytest.raises(SourceError, match=r"byte 0: a\.x is a member of kind b'S'"):
        detect(write(tmp_path / "s.tar", [("a.x", sparse)])).schema()
    joined = tmp_path / "j.tar"
    joined.write_bytes(write(tmp_path / "a.tar", [("a.x", b"1")]).read_bytes() * 2)
    with pytest.raises(SourceError, match=r"j\.tar byte 1,536: there are bytes behind the mark of its end"):
        detect(joined).schema()
    with pytest.raises(SourceError, match="holds no records: no member of its 1 tar files is named"):
        detect(write(tmp_path / "n.tar", [("a", b"1")])).pieces()
    many = write(tmp_path / "m.tar", [(f"img.{i}.jpg", b"") for i in range(300)])
    with pytest.raises(SourceError, match=r"more than 256 extensions, such as '256\.jpg'.*before the first dot"):
        detect(many).schema()


def test_long_names_and_large_sizes_of_all_formats_are_read(tmp_path):
    name = "é" * 40 + "/" + "n" * 90
    for form in ("gnu", "pax"):
        path = write(tmp_path / f"{form}.tar", [(f"{name * 3}.x", b"1"), (f"{name}.x", b"2")], FORMATS[form])
        assert [r["__key__"] for r in pieces.records_of(detect(path))] == [name * 3, name]
    data = bytearray((tmp_path / "gnu.tar").read_bytes())
    at = data.index(b"ustar", data.index(b"ustar") + 5) - 257  # the first member's own header, behind its long name
    data[at + 124 : at + 136] = b"\x80" + (1).to_bytes(11, "big")
    header = bytes(data[at : at + 512])
    total = sum(header) - sum(header[148:156]) + 256
    data[at + 148 : at + 156] = f"{total:06o}\0 ".encode()
    (tmp_path / "base256.tar").write_bytes(data)
    assert pieces.records_of(detect(tmp_path / "base256.tar"))[0]["x"] == b"1"


def test_a_huge_size_in_a_header_is_no_allocation(tmp_path):
    path = write(tmp_path / "t.tar", [("a.x", b"1")])
    data = bytearray(path.read_bytes())
    data[124:136] = b"77777777777\0"
    data[148:156] = f"{sum(data[:512]) - sum(data[148:156]) + 256:06o}\0 ".encode()
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"t\.tar byte [\d,]+: it ends there or before"):
        detect(path).schema()


def test_a_tar_that_was_changed_after_it_was_cut_is_noticed(tmp_path):
    path = write(tmp_path / "t.tar", [("a.x", b"1"), ("b.x", b"2")])
    source = detect(path)
    source.schema()
    write(path, [("a.x", b"1"), ("a.y", b"2")])
    with pytest.raises(SourceError, match=r"t\.tar holds 1 records, not 2; it was changed"):
        list(source.read(source.pieces()[0]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text("ab.xX_", min_size=1, max_size=6).filter(lambda n: n not in (".", "..")), min_size=1, max_size=12
    ),
    piece=st.integers(1, 5_000),
)
def test_records_are_those_of_a_naive_grouping(tmp_path, names, piece):
    path = write(tmp_path / "t.tar", [(name, str(i).encode()) for i, name in enumerate(names)])
    source, want = detect(path, options=SourceOptions(piece_bytes=piece, batch_bytes=piece)), naive(names)
    if want:
        got = [{k: v for k, v in r.items() if v is not None} for r in pieces.records_of(source)]
        assert got == want
    else:
        with pytest.raises(SourceError, match="second member" if want is None else "holds no records"):
            pieces.records_of(source)


def naive(names):
    """The records of members whose bytes are their numbers; None if an extension is there twice."""
    records = []
    for i, name in enumerate(names):
        if name[0] == "." or "." not in name or (len(name) > 3 and name[:2] == name[-2:] == "__"):
            continue
        key, extension = name.split(".", 1)
        if not records or records[-1]["__key__"] != key:
            records.append({"__key__": key})
        if extension.lower() in records[-1]:
            return None
        records[-1][extension.lower()] = str(i).encode()
    return records
