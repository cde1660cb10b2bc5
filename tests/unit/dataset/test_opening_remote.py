"""Data sets opened by URI: over S3's interface, over HTTP, by file://; through the loader and the commands too."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import shufflestore as ss
from benchmarks.harness.object_store import ObjectStore
from shufflestore.cli.main import main
from shufflestore.dataset.opening import snapshots_of, splits_of
from shufflestore.dataset.verify import verify
from shufflestore.errors import NotFound, OptionError
from shufflestore.format.manifest import snapshot_name
from tests.served import BUCKET, PREFIX, converted, epoch, keys, opened

RECORDS = 100


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served")
    converted(root, RECORDS)
    return root


@pytest.fixture(scope="module")
def server(root) -> Iterator[ObjectStore]:
    with ObjectStore(root) as running:
        yield running


@pytest.fixture
def by_environment(monkeypatch, server) -> str:
    """The URI of the data set, for whoever takes no options: credentials and endpoint as S3's users set them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_REGION", "here")
    return f"s3://{BUCKET}/{PREFIX}"


def rows(data: ss.Dataset) -> list[dict]:
    return [row for batch in epoch(data) for row in batch.to_pylist()]


def test_the_same_epoch_from_the_disk_from_s3_and_from_http(root, server):
    with ss.open(root / BUCKET / PREFIX) as local:
        expected, identity = rows(local), local.manifest.identity
    with opened(server) as remote:
        assert rows(remote) == expected
        assert remote.manifest.identity == identity
        assert rows(pickle.loads(pickle.dumps(remote))) == expected
    with ss.open(f"{server.endpoint}/{BUCKET}/{PREFIX}/") as remote:
        assert rows(remote) == expected
        assert remote.take([7])["id"].to_pylist() == [7]
    with ss.open((root / BUCKET / PREFIX).as_uri()) as local:
        assert rows(local) == expected


def test_the_loader_takes_a_uri(by_environment):
    loader = ss.DataLoader(by_environment, batch_size=16, shuffle=True, seed=3, columns=["id"])
    assert sorted(i for batch in loader for i in batch["id"].tolist()) == list(range(RECORDS))
    assert splits_of(by_environment) == ["train"]


def test_the_commands_take_a_uri(by_environment, capsys):
    for command in ("info", "verify"):
        assert main([command, by_environment]) == 0
        assert f"{by_environment}: {RECORDS} records" in capsys.readouterr().out
    assert main(["head", by_environment, "-n", "2", "--columns", "id"]) == 0
    assert capsys.readouterr().out == "{id: 0}\n{id: 1}\n"
    assert main(["info", f"{by_environment}/nothing"]) != 0
    assert f"{by_environment}/nothing" in capsys.readouterr().err


def test_a_workers_child_reads_on(server):
    with opened(server) as data:
        loader = ss.DataLoader(data, batch_size=16, num_workers=2, columns=["id"], transform=dict)
        assert sorted(i for batch in loader for i in batch["id"].tolist()) == list(range(RECORDS))


def test_verify_finds_a_damaged_byte(tmp_path, root, by_environment):
    report = verify(by_environment)
    assert report.is_sound
    shutil.copytree(root / BUCKET / PREFIX, tmp_path / "b/one")
    shard = sorted((tmp_path / "b/one/shards").glob("*.arrow"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with ObjectStore(tmp_path) as other:
        assert not verify(f"{other.endpoint}/b/one").is_sound


def test_snapshots_are_found_without_a_listing(tmp_path):
    folder = tmp_path / "b/one/snapshots"
    folder.mkdir(parents=True)
    from shufflestore.storage.remote import RemoteStore

    with ObjectStore(tmp_path) as server:
        store = RemoteStore(f"{server.endpoint}/b/one")
        assert snapshots_of(store) == []
        for number in (3, 4, 64, 65, 130):
            (tmp_path / "b/one" / snapshot_name(number)).write_bytes(b"{}")
        assert snapshots_of(store) == [3, 4, 64, 65, 130]
        (tmp_path / "b/one" / snapshot_name(65)).unlink()
        assert snapshots_of(store) == [3, 4, 64], "a run of 64 without one is the end"
        store.close()


def test_what_cannot_be_is_said_by_name(server, root):
    s3 = f"s3://{BUCKET}/{PREFIX}"
    with pytest.raises(OptionError, match="engine 'mmap' reads local files"):
        ss.open(s3, engine="mmap", storage_options=keys(server))
    with pytest.raises(OptionError, match="storage_options are for object stores"):
        ss.open(root / BUCKET / PREFIX, storage_options={"region": "x"})
    with pytest.raises(NotFound, match=f"s3://{BUCKET}/none: no snapshot"):
        ss.open(f"s3://{BUCKET}/none", storage_options=keys(server))
    with pytest.raises(NotFound):
        ss.open(f"{server.endpoint}/{BUCKET}/{PREFIX}", snapshot=9)
    with pytest.raises(OptionError, match="no snapshot 9"):
        ss.open(s3, snapshot=9, storage_options=keys(server))
    with pytest.raises(OptionError, match="ftp"):
        ss.open("ftp://server/a")
