"""Data stays where it is: indexes beside it or in the cache, made anew when it changed or they are damaged."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shufflestore.dataset.inplace import beside, cache_folder, index
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.verify import verify
from shufflestore.errors import CorruptData, FormatError, NotFound, SchemaError, SourceError
from tests.invented import arrow_bytes

TABLE = pa.table({"x": range(50), "s": [str(i) for i in range(50)]})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.arrow"
    path.write_bytes(arrow_bytes(TABLE, 9))
    return path


def test_no_byte_of_the_data_changes_and_the_index_stands_beside_it(file):
    before = file.read_bytes()
    assert index(file) == beside(file) == file.with_name("data.arrow.shufflestore")
    assert file.read_bytes() == before
    assert open_dataset(file).take([49, 0])["x"].to_pylist() == [49, 0]


def test_opening_without_an_index_makes_one_in_the_cache_once(file):
    open_dataset(file).close()
    rows = list((cache_folder(file) / "rows").iterdir())
    stamps = [p.stat().st_mtime_ns for p in rows]
    open_dataset(file).close()
    assert [p.stat().st_mtime_ns for p in (cache_folder(file) / "rows").iterdir()] == stamps
    assert not beside(file).exists()


def test_a_cached_index_of_changed_data_is_made_again(file):
    open_dataset(file).close()
    file.write_bytes(arrow_bytes(TABLE.slice(0, 7)))
    assert len(open_dataset(file)) == 7
    (cache_folder(file) / "stamp").write_bytes(b"\xff\xfe not text")
    assert len(open_dataset(file)) == 7


def test_an_index_beside_data_that_grew_is_refused_and_says_what_to_do(file):
    index(file)
    file.write_bytes(arrow_bytes(pa.concat_tables([TABLE, TABLE])))
    with pytest.raises(CorruptData, match=r"data\.arrow has .* when it was indexed; index it again"):
        open_dataset(file)
    index(file)
    assert len(open_dataset(file)) == 100


@pytest.mark.parametrize("kind", ["rows", "shards", "json"])
def test_indexing_again_mends_a_damaged_index(file, kind):
    folder = index(file)
    damaged = next(p for p in sorted(folder.rglob(f"*.{kind}")))
    data = bytearray(damaged.read_bytes())
    data[-40] ^= 1
    damaged.write_bytes(data)
    index(file)
    assert verify(file).is_sound
    assert open_dataset(file).take(range(50)) == TABLE


def test_an_index_without_checksums_reads_the_same_and_says_that_it_cannot_verify(file):
    index(file, checksums=False)
    assert open_dataset(file).take([3])["s"].to_pylist() == ["3"]
    assert verify(file).unchecked_shard_count == 1


def test_progress_names_each_file_and_ends_at_the_whole(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.arrow").write_bytes(arrow_bytes(TABLE))
    seen = []
    index(tmp_path, progress=lambda *step: seen.append(step))
    assert [s[0] for s in seen] == ["a.arrow", "b.arrow"]
    assert seen[-1][1] == seen[-1][2] == sum(p.stat().st_size for p in tmp_path.glob("*.arrow"))


def test_files_of_different_columns_are_refused_and_the_difference_named(tmp_path):
    (tmp_path / "a.arrow").write_bytes(arrow_bytes(TABLE))
    (tmp_path / "b.arrow").write_bytes(arrow_bytes(TABLE.drop_columns(["s"])))
    with pytest.raises(SchemaError, match=r"a\.arrow and .*b\.arrow have different columns: only the first has 's'"):
        index(tmp_path)


@pytest.mark.parametrize(
    ("content", "error"), [(b"", FormatError), (b"not Arrow at all", FormatError), (b"ARROW1\0\0" * 9, CorruptData)]
)
def test_what_is_not_arrow_is_refused_by_file_name(tmp_path, content, error):
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(error, match=r"x\.arrow"):
        index(tmp_path / "x.arrow")


def test_nothing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(NotFound):
        index(tmp_path / "missing")
    with pytest.raises(SourceError, match="neither a store"):
        index(tmp_path)


def test_offsets_that_decrease_are_refused_with_the_record(tmp_path):
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 2, 1, 3)))
    bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    (tmp_path / "x.arrow").write_bytes(arrow_bytes([pa.record_batch([bad], ["s"])]))
    with pytest.raises(CorruptData, match=r"x\.arrow: column 's': offsets decrease at record 1"):
        index(tmp_path / "x.arrow")
