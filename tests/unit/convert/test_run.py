"""`convert` writes what the source holds, the same bytes each time, and joins what is there as it was told."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shufflestore as ss
from shufflestore.convert.base import Piece
from shufflestore.convert.bundles import bundled
from shufflestore.convert.journal import Journal
from shufflestore.convert.run import ConvertOptions
from shufflestore.convert.shards import ShardOptions
from shufflestore.errors import AlreadyExists, OptionError, SchemaError, SourceError
from tests import stores

datasets = pytest.importorskip("datasets")
small = stores.small


# -- the same bytes --------------------------------------------------------------------------------


def test_the_bytes_depend_neither_on_the_number_of_workers_nor_on_the_run(tmp_path):
    source = stores.parquet(tmp_path / "in", 4, 40)
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        ss.convert(source, tmp_path / name, options=small(workers))
    assert stores.digests(tmp_path / "a") == stores.digests(tmp_path / "b") == stores.digests(tmp_path / "c")


@pytest.mark.parametrize("workers", [1, 2])
def test_items_of_fixed_size_lists_keep_name_and_nullability_in_any_process(tmp_path, workers):
    """Pickling a pa.Schema, as a pool does, loses both."""
    type_ = pa.list_(pa.field("element", pa.int32(), nullable=False), 2)
    rows = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(range(40), pa.int32()), type=type_)})
    for i in range(2):
        pq.write_table(rows, tmp_path / f"{i}.parquet")
    options = ConvertOptions(worker_count=workers, shards=ShardOptions(shard_bytes=100))
    ss.convert(f"{tmp_path}/*.parquet", tmp_path / "out", options=options)
    for shard in (tmp_path / "out/shards").glob("*.arrow"):
        with pa.memory_map(str(shard)) as file:
            found = pa.ipc.open_file(file).schema
        assert (
            found.field("x").type.value_field.name
            == stores.manifest(tmp_path / "out").schema.field("x").type.value_field.name
        )
    assert ss.verify(tmp_path / "out").is_sound


def test_bundles_are_a_function_of_the_pieces_and_keep_their_order():
    pieces = [Piece(str(i), "ab"[i % 2], 30, None, ()) for i in range(9)]
    bundles = bundled(pieces, 60)
    assert [b.number for b in bundles] == list(range(len(bundles)))
    assert sorted(p for b in bundles for p in b.pieces) == list(range(9))
    assert all(pieces[p].split == b.split for b in bundles for p in b.pieces)
    assert [p for b in bundles if b.split == "a" for p in b.pieces] == [0, 2, 4, 6, 8]


# -- columns and schema ----------------------------------------------------------------------------


def test_columns_are_those_asked_for_in_that_order(tmp_path):
    ss.convert(stores.parquet(tmp_path / "in", 1, 10), tmp_path / "out", columns=["tokens", "id"], options=small())
    assert ss.open(tmp_path / "out").schema.names == ["tokens", "id"]


def test_a_string_as_columns_is_refused_with_the_list_to_write(tmp_path):
    with pytest.raises(OptionError, match=r"columns=\['id'\]"):
        ss.convert([{"id": 1}], tmp_path / "out", columns="id")


def test_a_schema_casts_and_one_that_cannot_names_the_place(tmp_path):
    source = stores.jsonl(tmp_path / "in.jsonl", 0, 10)
    schema = pa.schema([("id", pa.int16()), ("tokens", pa.large_list(pa.int16()))])
    ss.convert(source, tmp_path / "out", schema=schema, options=small())
    assert ss.open(tmp_path / "out").schema.equals(schema)
    with pytest.raises((SchemaError, SourceError), match=r"in\.jsonl"):
        ss.convert(source, tmp_path / "other", schema=pa.schema([("text", pa.int8())]), options=small())
    assert stores.snapshots(tmp_path / "other") == []


def test_files_that_disagree_are_both_named(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"(?s)a\.parquet.*b\.parquet") as error:
        ss.convert(f"{tmp_path}/*.parquet", tmp_path / "out")
    assert "'x'" in str(error.value)
    assert not (tmp_path / "out/.convert").exists()


@pytest.mark.parametrize("source", [[], iter(()), lambda: iter(())], ids=["list", "iterator", "function"])
def test_a_source_without_records_is_refused_and_leaves_nothing(tmp_path, source):
    with pytest.raises(SourceError, match="gives no records"):
        ss.convert(source, tmp_path / "out")
    assert stores.snapshots(tmp_path / "out") == []
    assert not stores.leftovers(tmp_path / "out")


# -- what is at the target -------------------------------------------------------------------------


def test_a_file_or_a_foreign_folder_as_target_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    for mode in ("error", "append", "overwrite", "resume"):
        with pytest.raises(AlreadyExists, match="is a file"):
            ss.convert([{"x": 1}], tmp_path / "file", if_exists=mode)
        with pytest.raises(AlreadyExists, match=r"notes\.txt"):
            ss.convert([{"x": 1}], tmp_path / "folder", if_exists=mode)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/notes.txt").read_text() == "mine"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_a_data_set_is_not_written_over_unless_asked(tmp_path):
    ss.convert([{"x": 1}], tmp_path)
    with pytest.raises(AlreadyExists, match=r"1 records.*append.*overwrite"):
        ss.convert([{"x": 2}], tmp_path)
    with pytest.raises(OptionError, match="allowed are"):
        ss.convert([{"x": 2}], tmp_path, if_exists="replace")
    assert stores.seen(tmp_path) == {"train": [{"x": 1}]}


def test_append_goes_behind_and_overwrite_replaces_and_old_snapshots_stay(tmp_path):
    ss.convert([{"x": 1}], tmp_path)
    added = ss.convert([{"x": 2}], tmp_path, if_exists="append")
    assert (added.snapshot, added.record_count, added.splits) == (2, 1, {"train": 2})
    ss.convert([{"y": "new"}], tmp_path, if_exists="overwrite")
    assert [stores.seen(tmp_path, n)["train"] for n in (1, 2, 3)] == [[{"x": 1}], [{"x": 1}, {"x": 2}], [{"y": "new"}]]
    assert stores.manifest(tmp_path, 2).parent == stores.manifest(tmp_path, 1).digest


def test_append_adds_splits_and_keeps_the_order_of_those_there(tmp_path):
    part = {name: datasets.Dataset(stores.table(i * 10, 3)) for i, name in enumerate(("train", "test", "more"))}
    ss.convert(datasets.DatasetDict(train=part["train"], test=part["test"]), tmp_path / "out", options=small())
    ss.convert(
        datasets.DatasetDict(more=part["more"], train=part["test"]),
        tmp_path / "out",
        if_exists="append",
        options=small(),
    )
    found = stores.seen(tmp_path / "out")
    assert {name: [r["id"] for r in rows] for name, rows in found.items()} == {
        "train": [0, 1, 2, 10, 11, 12], "test": [10, 11, 12], "more": [20, 21, 22],
    }  # fmt: skip


def test_append_refuses_other_columns_and_says_which(tmp_path):
    ss.convert([{"x": 1}], tmp_path)
    with pytest.raises(SchemaError, match=r"'x' is int64 in the first, string in the second"):
        ss.convert([{"x": "1"}], tmp_path, if_exists="append")
    assert not stores.leftovers(tmp_path)


def test_append_takes_columns_whose_list_items_only_have_another_name(tmp_path):
    """Parquet calls them "element", Python "item", and `pa.Schema.equals` sees no difference."""
    with ss.Writer(tmp_path / "out", pa.schema([("x", pa.list_(pa.int32())), ("y", pa.list_(pa.int8(), 1))])) as writer:
        writer.write({"x": [1], "y": [1]})
    more = pa.table({"x": pa.array([[2]], pa.list_(pa.int32())), "y": pa.array([[2]], pa.list_(pa.int8(), 1))})
    pq.write_table(more, tmp_path / "x.parquet")
    ss.convert(tmp_path / "x.parquet", tmp_path / "out", if_exists="append")
    assert stores.seen(tmp_path / "out") == {"train": [{"x": [1], "y": [1]}, {"x": [2], "y": [2]}]}
    assert ss.verify(tmp_path / "out").is_sound


# -- resume ----------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a conversion in the middle."""


def interrupted(monkeypatch, source, target, mode="error", notes=2, **arguments):
    """Convert, and be stopped after so many finished bundles."""
    note = Journal.note
    seen = []

    def stopping(self, bundle, entries):
        note(self, bundle, entries)
        seen.append(bundle)
        if len(seen) == notes:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note", stopping)
        with pytest.raises(Stop):
            ss.convert(source, target, if_exists=mode, options=small(), **arguments)


def test_an_unfinished_conversion_is_neither_read_nor_written_over_but_resumed(tmp_path, monkeypatch):
    source = stores.parquet(tmp_path / "in", 4, 40)
    interrupted(monkeypatch, source, tmp_path / "out")
    with pytest.raises(ss.errors.NotFound, match="if_exists='resume'"):
        ss.open(tmp_path / "out")
    for mode in ("error", "append"):
        with pytest.raises(AlreadyExists, match=r"unfinished conversion.*resume"):
            ss.convert(source, tmp_path / "out", if_exists=mode, options=small())
    report = ss.convert(source, tmp_path / "out", if_exists="resume", options=small())
    assert report.resumed_shard_count > 0
    ss.convert(source, tmp_path / "plain", options=small())
    assert stores.digests(tmp_path / "out") == stores.digests(tmp_path / "plain")


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_resume_joins_what_is_there_as_was_said_when_it_began(tmp_path, monkeypatch, mode):
    ss.convert(stores.parquet(tmp_path / "old", 1, 20, 900), tmp_path / "out", options=small())
    source = stores.parquet(tmp_path / "in", 4, 40)
    interrupted(monkeypatch, source, tmp_path / "out", mode)
    ss.convert(source, tmp_path / "out", if_exists="resume", options=small())
    assert stores.ids(tmp_path / "out") == [*(range(900, 920) if mode == "append" else ()), *range(160)]


def test_an_append_is_resumed_behind_what_others_added_meanwhile(tmp_path, monkeypatch):
    ss.convert(stores.parquet(tmp_path / "old", 1, 20, 900), tmp_path / "out", options=small())
    source = stores.parquet(tmp_path / "in", 4, 40)
    interrupted(monkeypatch, source, tmp_path / "out", "append")
    with ss.Writer(tmp_path / "out", if_exists="append") as writer:
        writer.write(next(stores.records(800, 1)))
    ss.convert(source, tmp_path / "out", if_exists="resume", options=small())
    assert stores.ids(tmp_path / "out") == [*range(900, 920), 800, *range(160)]


def test_an_overwrite_is_not_resumed_over_what_others_committed_meanwhile(tmp_path, monkeypatch):
    ss.convert(stores.parquet(tmp_path / "old", 1, 20, 900), tmp_path / "out", options=small())
    source = stores.parquet(tmp_path / "in", 4, 40)
    interrupted(monkeypatch, source, tmp_path / "out", "overwrite")
    with ss.Writer(tmp_path / "out", if_exists="append") as writer:
        writer.write(next(stores.records(800, 1)))
    with pytest.raises(AlreadyExists, match="another writer committed snapshot 2"):
        ss.convert(source, tmp_path / "out", if_exists="resume", options=small())
    assert stores.ids(tmp_path / "out") == [*range(900, 920), 800]
    ss.convert(source, tmp_path / "out", if_exists="overwrite", options=small())
    assert stores.ids(tmp_path / "out") == list(range(160))


def test_a_resume_of_another_source_or_other_options_is_refused_with_the_difference(tmp_path, monkeypatch):
    source = stores.parquet(tmp_path / "in", 4, 40)
    interrupted(monkeypatch, source, tmp_path / "out")
    with pytest.raises(SourceError, match=r"(?s)has \w+=.*this one"):
        ss.convert(stores.parquet(tmp_path / "other", 4, 40, 7), tmp_path / "out", if_exists="resume", options=small())
    with pytest.raises(SourceError, match="has shards="):
        ss.convert(source, tmp_path / "out", if_exists="resume", options=small(shard_bytes=5_000_000))
    ss.convert(source, tmp_path / "out", if_exists="resume", options=small())


def test_overwrite_throws_an_unfinished_conversion_away(tmp_path, monkeypatch):
    interrupted(monkeypatch, stores.parquet(tmp_path / "in", 4, 40), tmp_path / "out")
    ss.convert(stores.parquet(tmp_path / "other", 1, 10, 500), tmp_path / "out", if_exists="overwrite", options=small())
    assert stores.ids(tmp_path / "out") == list(range(500, 510))
    assert not stores.leftovers(tmp_path / "out")


def test_notes_that_an_interrupted_end_left_count_for_no_other_conversion(tmp_path, monkeypatch):
    """The plan is removed first: killed just then, old notes stay, and would name old shards for new records."""
    first = stores.parquet(tmp_path / "a", 2, 30)
    monkeypatch.setattr(Journal, "tidy", lambda self: None)
    ss.convert(first, tmp_path / "out", options=small())
    assert list((tmp_path / "out/.convert").glob("bundle-*"))
    monkeypatch.undo()
    report = ss.convert(
        stores.parquet(tmp_path / "b", 2, 30, 700), tmp_path / "out", if_exists="append", options=small()
    )
    assert report.resumed_shard_count == 0
    assert stores.ids(tmp_path / "out") == [*range(60), *range(700, 760)]
    assert not stores.leftovers(tmp_path / "out")


def test_a_resume_of_what_is_done_already_does_nothing_and_says_so(tmp_path):
    source = stores.parquet(tmp_path / "in", 2, 30)
    ss.convert(source, tmp_path / "out", options=small())
    before = stores.digests(tmp_path / "out")
    report = ss.convert(source, tmp_path / "out", if_exists="resume", options=small())
    assert (report.snapshot, report.record_count) == (1, 0)
    assert report.resumed_shard_count == len(list((tmp_path / "out/shards").glob("*.arrow")))
    with pytest.raises(AlreadyExists, match="nothing is unfinished"):
        ss.convert([{"x": 1}], tmp_path / "out", if_exists="resume")
    assert stores.digests(tmp_path / "out") == before


def test_an_iterable_is_resumed_by_replay_and_an_iterator_is_refused_with_the_reason(tmp_path, monkeypatch):
    interrupted(monkeypatch, list(stores.records(0, 50)), tmp_path / "out", notes=1)
    with pytest.raises(SourceError, match="cannot be read again from its start"):
        ss.convert(iter(stores.records(0, 50)), tmp_path / "out", if_exists="resume", options=small())
    ss.convert(list(stores.records(0, 50)), tmp_path / "out", if_exists="resume", options=small())
    assert stores.ids(tmp_path / "out") == list(range(50))


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_never_goes_back_and_ends_at_the_end(tmp_path, workers):
    told = []
    source = stores.parquet(tmp_path / "in", 4, 400)
    options = small(workers, shard_bytes=60_000, progress=lambda *numbers: told.append(numbers))
    report = ss.convert(source, tmp_path / "out", options=options)
    assert told
    for before, after in itertools.pairwise(told):
        assert all(a <= b for a, b in zip(before[:3], after[:3], strict=True))
    records, written, source_done, source_total = told[-1]
    assert records == report.record_count
    assert 0 < written <= report.byte_count
    assert source_done == source_total


def test_no_worker_at_all_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OptionError, match="worker_count=0"):
        ss.convert([{"x": 1}], tmp_path / "out", options=ConvertOptions(worker_count=0))
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_source_commits_nothing_and_leaves_no_temporary_file(tmp_path):
    def failing():
        yield from stores.records(0, 2_000)
        raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match="of the user"):
        ss.convert(failing, tmp_path / "out", schema=stores.SCHEMA, options=small(shard_bytes=50_000))
    assert stores.snapshots(tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob(".tmp-*"))
