"""Files of format version 1 are read for ever, and today's writer still makes the same bytes.

`v1/` was written once, by `python -m tests.compat.test_golden`, and is never written again: a change
that needs it to change is a change of the format, with a version of its own beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.verify import verify
from shufflestore.format.manifest import SHARD_TABLE, Manifest
from tests.invented import MemoryStore, arrow_bytes, index_of, joined, memory_store, opened

V1 = Path(__file__).parent / "v1"
WRITTEN_BY = "26"
"""The pyarrow that wrote v1; another may lay out its own files otherwise, which is no affair of the format."""
ROWS = [
    {
        "id": i,
        "flag": None if i == 5 else i % 3 == 0,
        "text": None if i % 4 == 1 else "é" * (i % 3),
        "tokens": None if i == 2 else list(range(i % 5)),
        "mask": [b == i % 7 for b in range(i % 6)],
        "who": {"name": str(i), "ages": [i, None]},
        "emb": [i / 4, -i / 4],
        "tag": ("x", "yy", None)[i % 3],
    }
    for i in range(12)
]
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("flag", pa.bool_()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.bool_())),
        ("who", pa.struct([("name", pa.string()), ("ages", pa.large_list(pa.int16()))])),
        ("emb", pa.list_(pa.float32(), 2)),
        ("tag", pa.dictionary(pa.int8(), pa.string())),
    ]
)


def written() -> MemoryStore:
    """Return what today's writer makes of the same records."""
    return memory_store([arrow_bytes(pa.Table.from_pylist(ROWS, schema=SCHEMA), 7)])


def kept() -> dict[str, bytes]:
    return {str(p.relative_to(V1)): p.read_bytes() for p in sorted(V1.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_version_1_is_read_in_any_order(engine):
    dataset = open_dataset(V1, engine=engine)
    ids = [11, 0, 7, 6, 5, 5, 2]
    assert dataset.take(ids).to_pylist() == [ROWS[i] for i in ids]
    assert sorted(i for b in dataset.batches(5, shuffle=True, columns=["id"]) for i in b["id"].tolist()) == list(
        range(12)
    )
    dataset.close()


def test_every_byte_of_version_1_verifies():
    report = verify(V1)
    assert report.is_sound, report.problems
    assert (report.record_count, report.shard_count, report.unchecked_shard_count) == (12, 1, 0)


def test_the_row_index_of_version_1_is_made_byte_for_byte():
    files = kept()
    assert joined(index_of(files["shards/00000.arrow"])) == files["shards/00000.rows"]


def test_the_root_of_version_1_is_made_byte_for_byte():
    root = kept()["snapshots/0000000001.json"]
    manifest = Manifest.decode(root, "v1")
    assert manifest.encode(json.loads(root)["nonce"]) == root
    assert manifest.digest == json.loads(root)["digest"]


def test_the_shard_table_of_version_1_has_the_columns_and_digest_it_had():
    files = kept()
    manifest = Manifest.decode(files["snapshots/0000000001.json"], "v1")
    shards = manifest.check_table(files[manifest.table_name], "v1")
    assert shards.table.schema == SHARD_TABLE
    header = files["shards/00000.rows"][: int(shards.column("header_bytes")[0])]
    assert shards.digests[0].tobytes() == hashlib.sha256(header).digest()


@pytest.mark.skipif(pa.__version__.split(".")[0] != WRITTEN_BY, reason="pyarrow's own bytes may differ by version")
def test_today_writes_all_of_version_1_byte_for_byte():
    assert written().files == kept()


def test_the_resume_identity_of_version_1_is_what_states_already_name():
    assert open_dataset(V1).identity == opened(written()).identity or pa.__version__.split(".")[0] != WRITTEN_BY
    assert open_dataset(V1).manifest.identity == json.loads((V1.parent / "v1.json").read_text())["identity"]


def main() -> None:
    """Write v1, once."""
    made = written()
    for name, data in made.files.items():
        (V1 / name).parent.mkdir(parents=True, exist_ok=True)
        (V1 / name).write_bytes(data)
    identity = opened(made).manifest.identity
    (V1.parent / "v1.json").write_text(json.dumps({"identity": identity, "pyarrow": pa.__version__}) + "\n")


if __name__ == "__main__":
    main()
