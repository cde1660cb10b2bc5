"""A store with narrow integers, written once, is read for ever; the index of its shards is still made to the byte.

`narrow/` was written by `python -m tests.compat.test_narrow`; see `test_golden`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

import shufflestore as ss
from shufflestore.dataset.verify import verify
from tests.invented import index_of, joined

NARROW = Path(__file__).parent / "narrow"
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
        ("signed", pa.large_list(pa.int64())),
        ("deep", pa.list_(pa.struct([("a", pa.list_(pa.uint64(), 2)), ("b", pa.string())]))),
    ]
)
TOPS = (255, 50_000, 2**31 - 1)
"""Greatest token of each shard."""
ROWS = [
    {
        "id": i,
        "tokens": None if i % 5 == 2 else [TOPS[i // 6], 0, i][: i % 4],
        "signed": [-(10 ** (3 * (i // 6))), None, i],
        "deep": [{"a": [i, 2 ** (20 * (i // 6))], "b": str(i)}, {"a": None, "b": None}][: i % 3],
    }
    for i in range(18)
]


def write(folder: Path) -> None:
    """Write a shard of each width, appended one by one."""
    for first in range(0, len(ROWS), 6):
        ss.convert(ROWS[first : first + 6], folder, schema=SCHEMA, if_exists="append")


@pytest.mark.parametrize("engine", ["mmap", "pread"])
def test_narrow_integers_are_read_as_declared(engine):
    dataset = ss.open(NARROW, engine=engine)
    ids = [17, 0, 7, 6, 12, 5, 5, 2]
    taken = dataset.take(ids)
    assert taken.schema.equals(SCHEMA)
    assert taken.to_pylist() == [ROWS[i] for i in ids]
    dataset.close()


def test_every_byte_of_it_verifies():
    report = verify(NARROW)
    assert report.is_sound, report.problems
    assert (report.record_count, report.shard_count) == (18, 3)


def test_its_shards_differ_in_width_and_their_indexes_are_made_byte_for_byte():
    indexes = ss.open(NARROW).reading.indexes
    types = set()
    for shard in range(3):
        data = (NARROW / indexes.shards.name("data", shard)).read_bytes()
        assert joined(index_of(data, schema=SCHEMA)) == (NARROW / indexes.shards.name("index", shard)).read_bytes()
        types.add(str(pa.ipc.open_file(data).schema))
    assert len(types) == 3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write(Path(made) / "store")
        shutil.copytree(Path(made) / "store", NARROW)
