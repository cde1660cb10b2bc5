"""A data set written to an object store is the one that a folder would hold, under the same promises."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import shufflestore as ss
from shufflestore.cli.main import main
from shufflestore.convert.base import SourceOptions
from shufflestore.convert.run import ConvertOptions
from shufflestore.errors import AlreadyExists, NotFound, OptionError, SchemaError, SourceError, StorageError
from shufflestore.storage.remote_target import RemoteTarget
from shufflestore.storage.target import FolderTarget
from shufflestore.storage.targets import target_at
from tests import buckets, layouts, stores

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def server():
    with buckets.serve() as endpoint:
        yield endpoint


@pytest.fixture
def place(server, request):
    """(URI, storage_options) of a prefix of this test's own."""
    return f"s3://{buckets.BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}/a set", buckets.options(
        server
    )


def seen(uri, options, snapshot=None):
    """All records by split, as a reader gets them."""
    found = {}
    for split in ss.dataset.opening.splits_of(uri, options):
        with ss.open(uri, split, snapshot=snapshot, storage_options=options) as data:
            found[split] = data.take(range(len(data))).to_pylist()
    return found


def convert(source, place, **options):
    uri, how = place
    chosen = options.pop("options", stores.small())
    return ss.convert(source, uri, options=chosen, storage_options=how, **options)


# -- the same bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "workers"), [("first", 1), ("splits", 2), ("append", 1), ("overwrite", 1), ("jsonl", 1)]
)
def test_every_file_is_the_one_that_a_folder_gets(tmp_path, place, name, workers):
    layout = layouts.make(name, tmp_path / "layout")
    if layout.before is not None:
        convert(tmp_path / "layout/old", place)
    convert(layout.job["source"], place, if_exists=layout.job["if_exists"], options=stores.small(workers))
    assert stores.digests(buckets.mirror(*place, tmp_path / "mirror")) == layout.digests
    assert seen(*place) == layout.after


@pytest.mark.parametrize("name", ["writer", "writer-append"])
def test_a_writer_writes_the_same_files_too(tmp_path, place, name):
    layout = layouts.make(name, tmp_path / "layout")
    uri, how = place
    if layout.before is not None:
        convert(tmp_path / "layout/old", place)
    mode, options = layout.job["if_exists"], stores.small().shards
    with ss.Writer(uri, stores.SCHEMA, mode, options=options, storage_options=how) as writer:
        for record in stores.records(layout.job["start"], layout.job["count"]):
            writer.write(record)
    assert stores.digests(buckets.mirror(*place, tmp_path / "mirror")) == layout.digests


def test_a_writer_that_is_left_by_an_exception_commits_nothing(place):
    uri, how = place
    with pytest.raises(ZeroDivisionError), ss.Writer(uri, storage_options=how) as writer:
        writer.write({"x": 1})
        raise ZeroDivisionError
    assert not any(name.startswith("snapshots/") for name in buckets.names(*place))


# -- what is at the target -------------------------------------------------------------------------


def test_a_data_set_is_not_written_over_unless_asked_and_old_snapshots_stay(place):
    convert([{"x": 1}], place)
    with pytest.raises(AlreadyExists, match=r"1 records.*append.*overwrite"):
        convert([{"x": 2}], place)
    assert convert([{"x": 2}], place, if_exists="append").splits == {"train": 2}
    with pytest.raises(SchemaError, match="'x' is int64"):
        convert([{"x": "a"}], place, if_exists="append")
    convert([{"y": "new"}], place, if_exists="overwrite")
    assert [seen(*place, number)["train"] for number in (1, 2, 3)] == [
        [{"x": 1}], [{"x": 1}, {"x": 2}], [{"y": "new"}],
    ]  # fmt: skip


def test_a_prefix_that_holds_something_else_is_refused_by_its_name(place):
    target = target_at(*place)
    target.publish("notes.txt", b"mine")
    with pytest.raises(AlreadyExists, match=r"holds 'notes\.txt'"):
        convert([{"x": 1}], place)
    assert buckets.names(*place) == {"notes.txt"}


def test_commands_take_a_uri(place, server, monkeypatch, capsys, tmp_path):
    for name, value in buckets.variables(server).items():
        monkeypatch.setenv(name, value)
    source, uri = stores.jsonl(tmp_path / "x.jsonl", 0, 30), place[0]
    assert main(["convert", str(source), uri, "--staging-folder", str(tmp_path / "staging"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == uri
    assert main(["info", uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["record_count"] == 30
    assert main(["verify", uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_sound"]
    assert main(["convert", str(source), uri, "--if-exists", "overwrite", "--shard-bytes", "1KiB", "--json"]) == 0
    capsys.readouterr()
    assert main(["gc", uri, "--grace", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept_snapshots"] == [2]
    assert main(["index", uri]) != 0
    assert "download it, or convert it" in capsys.readouterr().err


# -- targets that cannot be -------------------------------------------------------------------------


def never():
    """A source that must not be read."""
    raise AssertionError("the source was read")


@pytest.mark.parametrize(
    ("uri", "changes", "error", "words"),
    [
        ("s3://no-such-bucket/x", {}, NotFound, r"s3://no-such-bucket/x: .*check that the bucket exists"),
        ("s3://{bucket}/x", {"endpoint": "http://127.0.0.1:9"}, StorageError, r"could not connect.*endpoint"),
        ("http://127.0.0.1:9/x", None, OptionError, "can be read, not written"),
        ("hf://datasets/a/b", None, OptionError, "can be read, not written"),
        ("ftp://a/b", None, OptionError, "no store answers to ftp"),
        ("s3://{bucket}/x", {"regoin": "x"}, OptionError, "regoin"),
    ],
)
def test_a_wrong_place_is_one_error_before_the_source_is_read(server, uri, changes, error, words):
    options = None if changes is None else {**buckets.options(server), **changes}
    with pytest.raises(error, match=f"(?s){words}"):
        ss.convert(never, uri.format(bucket=buckets.BUCKET), storage_options=options)
    with pytest.raises(error, match=f"(?s){words}"):
        ss.Writer(uri.format(bucket=buckets.BUCKET), storage_options=options)


def test_a_file_uri_is_a_folder(tmp_path):
    ss.convert([{"x": 1}], f"file://{tmp_path}/out")
    assert stores.seen(tmp_path / "out") == {"train": [{"x": 1}]}


def test_storage_options_for_a_folder_are_refused(tmp_path):
    with pytest.raises(OptionError, match="are for object stores"):
        ss.convert([{"x": 1}], tmp_path / "out", storage_options={"region": "x"})
    assert not (tmp_path / "out").exists()


def test_a_target_crosses_processes_as_a_place(place):
    target = target_at(*place, "/tmp/elsewhere")
    assert isinstance(target, RemoteTarget)
    target.publish("a", b"1")
    copy = pickle.loads(pickle.dumps(target))
    assert copy.read("a") == b"1"
    assert copy.__dict__.keys() == target.__dict__.keys()
    assert copy._staging == target._staging


# -- interruptions ---------------------------------------------------------------------------------

DYING = """
import os, signal, sys
import shufflestore as ss
from shufflestore.convert.journal import Journal
from tests import stores
plain, left = Journal.note, [int(sys.argv[4])]
def note(self, bundle, entries):
    plain(self, bundle, entries)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.note = note
ss.convert(sys.argv[1], sys.argv[2], options=stores.small(staging_folder=sys.argv[3]), storage_options=eval(sys.argv[5]))
"""


@pytest.mark.parametrize("bundles", [1, 3])
def test_a_conversion_that_is_killed_goes_on_on_another_machine_to_the_same_bytes(tmp_path, place, bundles):
    """Nothing but the object store is left of the first one."""
    source = stores.parquet(tmp_path / "in", 4, 40)
    ss.convert(source, tmp_path / "whole", options=stores.small())
    command = [sys.executable, "-c", DYING, source, place[0], tmp_path / "gone", str(bundles), repr(place[1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(NotFound, match="resume"):
        ss.open(place[0], storage_options=place[1])
    with pytest.raises(AlreadyExists, match="unfinished conversion"):
        convert(source, place)
    with pytest.raises(SourceError, match="this one"):
        convert(stores.parquet(tmp_path / "other", 1, 10), place, if_exists="resume")
    report = convert(source, place, if_exists="resume", options=stores.small(staging_folder=tmp_path / "new"))
    assert report.resumed_shard_count > 0
    assert stores.digests(buckets.mirror(*place, tmp_path / "mirror")) == stores.digests(tmp_path / "whole")
    assert convert(source, place, if_exists="resume").shard_count == 0, "what is finished is no work"


def test_a_bundle_whose_shard_was_lost_is_made_again(tmp_path, place):
    source = stores.parquet(tmp_path / "in", 4, 40)
    command = [sys.executable, "-c", DYING, source, place[0], tmp_path / "gone", "2", repr(place[1])]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    target = target_at(*place)
    target.remove(target.files("shards")[0].name)
    convert(source, place, if_exists="resume")
    assert ss.verify(buckets.mirror(*place, tmp_path / "mirror")).is_sound


# -- several writers -------------------------------------------------------------------------------


def at_once(*calls):
    """Run calls in threads, let go together; return what each gave or raised."""
    gate, found = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number, call):
        gate.wait(timeout=30)
        try:
            found[number] = call()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return found


def test_of_two_writers_at_one_empty_target_one_commits_and_the_other_is_told(place):
    uri, how = place
    writers = [ss.Writer(uri, storage_options=how) for _ in range(3)]
    for number, writer in enumerate(writers):
        writer.write({"x": number})
    found = at_once(*(writer.close for writer in writers))
    assert sorted(type(one).__name__ for one in found) == ["AlreadyExists", "AlreadyExists", "NoneType"]
    assert seen(*place) == {"train": [{"x": found.index(None)}]}


def test_appends_at_the_same_time_lose_nothing(place):
    uri, how = place
    writers = [ss.Writer(uri, if_exists="append", storage_options=how) for _ in range(4)]
    for number, writer in enumerate(writers):
        writer.write({"x": number})
    assert at_once(*(writer.close for writer in writers)) == [None] * 4
    assert sorted(row["x"] for row in seen(*place)["train"]) == [0, 1, 2, 3]
    assert target_at(*place).find([f"snapshots/{n:010d}.json" for n in (4, 5)])[1] is None


# -- staging ---------------------------------------------------------------------------------------


def test_shards_are_staged_where_one_says_and_nothing_stays_there(tmp_path, place):
    own, most = tmp_path / "staging" / f"shufflestore-{os.getuid()}", 0

    def records():
        nonlocal most
        for record in stores.records(0, 1_500):
            most = max(most, len(list(own.glob("*"))))
            yield record

    shards, staging = ss.ShardOptions(shard_bytes=40_000, chunk_rows=20), tmp_path / "staging"
    options = ConvertOptions(shards=shards, staging_folder=staging, source=SourceOptions(batch_bytes=4_000))
    convert(records, place, schema=stores.SCHEMA, options=options)
    assert 0 < most <= 4
    assert own.stat().st_mode & 0o77 == 0
    assert list(own.iterdir()) == []
    assert seen(*place)["train"] == stores.table(0, 1_500).to_pylist()


def test_a_staging_folder_that_cannot_be_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="staging_folder or TMPDIR"):
        convert([{"x": 1}], place, options=ConvertOptions(staging_folder=tmp_path / "file"))


def test_one_bundle_goes_up_while_the_next_one_is_read(tmp_path, monkeypatch):
    """The first shard is held back until the second bundle is read: a conversion that waited for it would wait on."""
    source = stores.parquet(tmp_path / "in", 4, 40)
    second = threading.Event()
    read = []

    class Slow(FolderTarget):
        behind = 1

        def publish_file(self, file, name, renews=False):
            assert second.wait(timeout=60), "the second bundle was not read before the first was there"
            return super().publish_file(file, name, renews)

    def reading(self, piece, plain=ss.convert.sources.parquet.ParquetSource.read):
        read.append(piece.name)
        if len(read) == 3:
            second.set()
        return plain(self, piece)

    monkeypatch.setattr(ss.convert.sources.parquet.ParquetSource, "read", reading)
    options = ConvertOptions(worker_count=1, shards=ss.ShardOptions(shard_bytes=6_000), source=stores.small().source)
    ss.convert(source, Slow(tmp_path / "out"), options=options)
    assert stores.ids(tmp_path / "out") == list(range(160))


# -- gc --------------------------------------------------------------------------------------------


def test_gc_frees_what_only_old_snapshots_name(tmp_path, place):
    uri, how = place
    convert(stores.parquet(tmp_path / "a", 1, 20), place)
    convert(stores.parquet(tmp_path / "b", 1, 20, start=50), place, if_exists="overwrite")
    target_at(*place).publish("shards/notes.txt", b"mine")
    before = buckets.names(*place)
    report = ss.gc(uri, grace_seconds=0, dry_run=True, storage_options=how)
    assert buckets.names(*place) == before
    assert ss.gc(uri, grace_seconds=0, storage_options=how).removed == report.removed
    assert buckets.names(*place) == before - set(report.removed)
    assert report.kept_snapshots == (2,)
    folder = buckets.mirror(*place, tmp_path / "mirror")
    kept = stores.named(folder, 2) | {"snapshots/0000000002.json", "shards/notes.txt"}
    assert buckets.names(*place) == kept
    assert ss.verify(folder).is_sound


def test_gc_leaves_what_an_unfinished_conversion_may_need_and_what_is_young(tmp_path, place):
    uri, how = place
    convert([{"x": 1}], place)
    target = target_at(*place)
    target.publish("shards/stray.arrow", b"x")
    assert ss.gc(uri, storage_options=how).removed == ()
    target.publish(".convert/plan.json", b"{}")
    assert ss.gc(uri, grace_seconds=0, storage_options=how).removed == ()
    target.remove(".convert/plan.json")
    assert ss.gc(uri, grace_seconds=0, storage_options=how).removed == ("shards/stray.arrow",)
    with pytest.raises(NotFound, match="not a store"):
        ss.gc(f"{uri}/elsewhere", storage_options=how)
