"""MosaicML Streaming's MDS: each encoding's values, plain and compressed, and what is refused by name.

`write` is a second reading of the format, held once against mosaicml-streaming 0.13.0, whose shards of the same
values the source reads alike.
"""

from __future__ import annotations

import bz2
import gzip
import json
import random
import struct

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import SchemaError, SourceError
from tests import pieces

zstandard = pytest.importorskip("zstandard")

PACK = {"zstd": zstandard.compress, "zstd:7": zstandard.compress, "gz": gzip.compress, "bz2": bz2.compress}
CODES = {"uint8": 8, "int8": 9, "float16": 18, "int32": 33, "float64": 66}
FIXED = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)] + ["float16", "float32", "float64"]
COLUMNS = {
    "b": "bytes", "s": "str", "i": "int", "j": "json", "any": "ndarray", "flat": "ndarray:uint16",
    "grid": "ndarray:float32:2,3", "row": "ndarray:int8:5", "si": "str_int", "sd": "str_decimal", "jp": "jpeg",
    "pn": "png", **{name: name for name in FIXED},
}  # fmt: skip


def encoded(encoding, value):
    name, *told = encoding.split(":")
    if isinstance(value, bytes):
        return value
    if name == "ndarray":
        head = b"" if told else bytes([CODES[value.dtype.name]])
        if len(told) < 2:
            width = 1 if max(value.shape) < 256 else 2
            head += bytes([value.ndim << 2 | width - 1]) + struct.pack(f"<{value.ndim}{' BH'[width]}", *value.shape)
        return head + value.tobytes()
    if name == "int" or name in FIXED:
        return np.dtype("int64" if name == "int" else name).type(value).tobytes()
    return str(value).encode()


def size_of(encoding):
    name, *told = encoding.split(":")
    if len(told) == 2:
        return int(np.prod([int(n) for n in told[1].split(",")])) * np.dtype(told[0]).itemsize
    return 8 if name == "int" else np.dtype(name).itemsize if name in FIXED else None


def write(folder, columns, samples, each=20, compression=None):
    """Write samples as MDSWriter does, so many a shard."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(columns)
    config = {
        "version": 2, "format": "mds", "compression": compression, "hashes": [], "size_limit": 1 << 26,
        "column_names": names, "column_encodings": [columns[n] for n in names],
        "column_sizes": [size_of(columns[n]) for n in names],
    }  # fmt: skip
    text, shards = json.dumps(config, sort_keys=True).encode(), []
    for start in range(0, max(1, len(samples)), each):
        bodies = []
        for sample in samples[start : start + each]:
            values = [encoded(columns[n], sample[n]) for n in names]
            told = [len(v) for n, v in zip(names, values, strict=True) if size_of(columns[n]) is None]
            bodies.append(struct.pack(f"<{len(told)}I", *told) + b"".join(values))
        first = 4 + 4 * (len(bodies) + 1) + len(text)
        offsets = np.cumsum([first, *map(len, bodies)]).astype("<u4")
        data = struct.pack("<I", len(bodies)) + offsets.tobytes() + text + b"".join(bodies)
        name = f"shard.{start // each:05d}.mds"
        raw, packed = {"basename": name, "bytes": len(data), "hashes": {}}, None
        if compression:
            name, data = f"{name}.{compression.split(':')[0]}", PACK[compression](data)
            packed = {"basename": name, "bytes": len(data), "hashes": {}}
        (folder / name).write_bytes(data)
        shards.append({**config, "raw_data": raw, "zip_data": packed, "samples": len(bodies)})
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def sample(i):
    r = np.random.default_rng(i)
    return {
        "b": r.bytes(i % 300), "s": "é漢" * (i % 5), "i": -i, "j": json.dumps({"x": [i, None]}),
        "any": r.random((1 + i % 3, 2)), "flat": r.integers(0, 65_536, 1 + 37 * i % 400).astype(np.uint16),
        "grid": r.random((2, 3)).astype(np.float32), "row": r.integers(-9, 9, 5).astype(np.int8), "si": 10**30 + i,
        "sd": "1.50", "jp": r.bytes(9), "pn": r.bytes(5), **{n: np.dtype(n).type(i % 120 - 60 * (n[0] == "i")) for n in FIXED},
    }  # fmt: skip


def plain(value):
    """A value as `to_pylist` gives it; of a fixed shape flat, since a tensor's storage is."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def expected(samples):
    made = [{n: plain(s[n]) for n in sorted(COLUMNS)} for s in samples]
    return [{**r, "grid": np.array(r["grid"]).reshape(-1).tolist(), "si": str(r["si"])} for r in made]


SAMPLES = [sample(i) for i in range(90)]


@pytest.mark.parametrize("compression", [None, *PACK])
def test_records_are_those_written_however_they_are_cut(compression, tmp_path):
    write(tmp_path / "in", COLUMNS, SAMPLES, compression=compression)
    pieces.check_contract(tmp_path / "in", expected(SAMPLES), "mds")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_conversion_holds_them_and_can_be_killed_and_resumed(compression, tmp_path):
    write(tmp_path / "in", COLUMNS, SAMPLES[:20], each=7, compression=compression)
    pieces.check_conversion(tmp_path / "in", {"train": expected(SAMPLES[:20])}, tmp_path / "home")


def test_types_are_those_of_the_encodings(tmp_path):
    schema = detect(write(tmp_path, COLUMNS, SAMPLES)).schema()
    told = {
        "b": pa.binary(), "s": pa.string(), "i": pa.int64(), "j": pa.string(), "jp": pa.binary(), "pn": pa.binary(),
        "any": pa.list_(pa.list_(pa.float64())), "flat": pa.list_(pa.uint16()), "si": pa.string(), "sd": pa.string(),
        "grid": pa.fixed_shape_tensor(pa.float32(), [2, 3]), "row": pa.list_(pa.int8(), 5), "float16": pa.float16(),
        "uint64": pa.uint64(),
    }  # fmt: skip
    assert {name: schema.field(name).type for name in told} == told


def test_decimal_text_is_cast_where_a_type_is_asked_for(tmp_path):
    write(tmp_path, {"n": "str_int", "x": "int8"}, [{"n": 2**40 + i, "x": i} for i in range(3)])
    source = detect(tmp_path, options=SourceOptions(schema={"n": "int64"}, columns=("x", "n")))
    assert pieces.records_of(source) == [{"x": i, "n": 2**40 + i} for i in range(3)]


def test_folders_and_merged_indexes(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "s" / split, {"x": "int8"}, [{"x": len(split)}])
    assert [(p.name, p.split) for p in detect(tmp_path / "s").pieces()] == [
        ("train/shard.00000.mds", "train"),
        ("val/shard.00000.mds", "validation"),
    ]
    assert [p.split for p in detect({"a": tmp_path / "s/val", "b": tmp_path / "s/train"}).pieces()] == ["a", "b"]
    # Streaming's merge_index leaves the indexes of the parts where they are.
    for part in ("0", "1"):
        write(tmp_path / "m" / part, {"x": "int8"}, [{"x": int(part)}])
    shards = [
        {**shard, "raw_data": {**shard["raw_data"], "basename": f"{part}/shard.00000.mds"}}
        for part in ("0", "1")
        for shard in json.loads((tmp_path / "m" / part / "index.json").read_text())["shards"]
    ]
    (tmp_path / "m/index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    assert pieces.records_of(detect(tmp_path / "m")) == [{"x": 0}, {"x": 1}]


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("pkl", "'pkl', which is a pickle, which can run any program"),
        ("pil", "'pil', which is not read here"),
        ("list[jpeg]", "not read here"),
        ("ndarray:complex64", "'ndarray:complex64', which is not read here"),
        ("ndarray:int8:2:2", "not read here"),
        ("new", "'new', which is not read here"),
    ],
)
def test_encodings_that_are_not_read_are_refused_by_name_and_can_be_left_out(encoding, reason, tmp_path):
    write(tmp_path, {"p": encoding, "x": "int8"}, [{"p": b"cos\nsystem\n(S'false'\ntR.", "x": 7}])
    with pytest.raises(SourceError, match=rf"00\.mds: column 'p' has the encoding .*{reason}.*columns="):
        detect(tmp_path).schema()
    assert pieces.records_of(detect(tmp_path, options=SourceOptions(columns=("x",)))) == [{"x": 7}]
    fixed = SourceOptions(schema=pa.schema([("x", pa.int8())]))
    assert pieces.records_of(detect(tmp_path, options=fixed)) == [{"x": 7}]


def test_ndarrays_of_several_types_are_refused_with_the_record(tmp_path):
    arrays = [np.zeros((1, 2), np.int32), np.zeros((3, 2), np.int32), np.zeros(2, np.int32)]
    write(tmp_path / "ndim", {"a": "ndarray"}, [{"a": a} for a in arrays])
    with pytest.raises(SchemaError, match="record 2: column 'a' is int32 of 1 dimensions, but .* int32 of 2"):
        pieces.records_of(detect(tmp_path / "ndim"))
    write(tmp_path / "dtype", {"a": "ndarray"}, [{"a": arrays[2]}, {"a": np.zeros(2)}])
    with pytest.raises(SchemaError, match="record 1: column 'a' is float64 of 1 dimensions, but .* int32 of 1"):
        pieces.records_of(detect(tmp_path / "dtype"))


def test_text_that_is_not_utf_8_is_named(tmp_path):
    write(tmp_path, {"s": "str"}, [{"s": "a"}, {"s": b"b\xff"}])
    with pytest.raises(SchemaError, match=r"00000\.mds record 1: column 's' is not UTF-8 at its byte 1"):
        pieces.records_of(detect(tmp_path))


def test_shards_that_disagree_are_both_named(tmp_path):
    write(tmp_path / "train", {"x": "int8"}, [{"x": 1}])
    write(tmp_path / "test", {"x": "str"}, [{"x": "a"}])
    with pytest.raises(SchemaError, match=r"'x' is string in .*test/shard.* but int8 in .*train/shard"):
        detect(tmp_path).schema()


def change(folder, **changes):
    told = json.loads((folder / "index.json").read_text())
    told["shards"][0].update(changes)
    (folder / "index.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "json"}, "has the format 'json'"),
        ({"samples": 3}, "no offsets of 3 samples"),
        ({"samples": "x"}, "is no index of MDS shards"),
        ({"column_sizes": [4]}, "'x' of encoding 'int8' has 4 bytes by its index.json, not 1"),
        ({"column_sizes": [1, 1]}, "is no index of MDS shards"),
        ({"column_encodings": ["str"], "column_sizes": [None]}, "record 0: its columns take"),
        ({"raw_data": {"basename": "../x.mds", "bytes": 9}}, "lies outside of its folder"),
        ({"raw_data": {"basename": "y.mds", "bytes": 9}}, r"y\.mds is absent, but .*index.json names it"),
        ({"raw_data": {"basename": "shard.00000.mds", "bytes": 9}}, r"bytes, 9 by its index.json; it was cut short"),
        ({"zip_data": {"basename": "z", "bytes": 9}, "raw_data": {"basename": "y", "bytes": 9}, "compression": "snappy"},
         "z is compressed with 'snappy'; zstd, gz, bz2, br are read"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_refused(changes, message, tmp_path):
    write(tmp_path, {"x": "int8"}, [{"x": 1}, {"x": 2}])
    change(tmp_path, **changes)
    with pytest.raises(SourceError, match=message):
        pieces.records_of(detect(tmp_path))


def test_a_folder_without_index_or_records_is_refused(tmp_path):
    write(tmp_path, {"x": "int8"}, [])
    with pytest.raises(SourceError, match="holds no records in 1 shards"):
        detect(tmp_path).schema()
    (tmp_path / "index.json").write_text('{"version": 3, "shards": []}')
    with pytest.raises(SourceError, match="has version 3; version 2 is read"):
        detect(tmp_path).schema()
    (tmp_path / "index.json").unlink()
    with pytest.raises(SourceError, match=r"holds no index\.json.*MDSWriter"):
        detect(tmp_path).schema()


def test_an_empty_shard_among_others_holds_nothing(tmp_path):
    write(tmp_path / "train", {"a": "ndarray"}, [])
    write(tmp_path / "val", {"a": "ndarray"}, [{"a": np.arange(3, dtype=np.int32)}])
    assert pieces.records_of(detect(tmp_path)) == [{"a": [0, 1, 2]}]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_damage_is_an_error_that_names_the_shard_or_changes_only_values(compression, tmp_path):
    """There are no checksums in a shard, so a flipped bit in a value cannot be seen; all else must be."""
    columns = {"s": "str", "flat": "ndarray:uint16", "any": "ndarray"}
    path = write(tmp_path, columns, SAMPLES[:6], compression=compression) / "shard.00000.mds"
    path = path if compression is None else path.with_name("shard.00000.mds.zstd")
    whole, r = path.read_bytes(), random.Random(0)
    refused = []
    for _ in range(300):
        data = bytearray(whole)
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
        path.write_bytes(data)
        try:
            assert len(pieces.records_of(detect(tmp_path))) == 6
        except (SourceError, SchemaError) as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all("shard.00000.mds" in message for message in refused)
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"shard\.00000\.mds.* was cut short or changed"):
            pieces.records_of(detect(tmp_path))
