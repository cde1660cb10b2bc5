"""`shufflestore cache`: fills a cache over HTTP, tells what it keeps, and then the store is not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import shufflestore as ss
from benchmarks.harness.object_store import ObjectStore
from shufflestore.cli.main import main
from tests.scenes import check_batch, save


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ObjectStore, str]]:
    """A converted data set on a server."""
    root = tmp_path_factory.mktemp("served")
    source = save(tmp_path_factory.mktemp("source") / "in", 600)
    ss.convert(str(source / "*.arrow"), root / "bucket" / "data")
    with ObjectStore(root) as server:
        yield server, f"{server.endpoint}/bucket/data"


def test_a_filled_cache_serves_whole_epochs_without_a_request_for_data(
    served: tuple[ObjectStore, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server, uri = served
    cache = tmp_path / "cache"
    assert main(["cache", uri, "--cache-dir", str(cache), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == 600
    assert told["reads_not_kept"] == 0
    assert told["kept_bytes"] > 0
    assert main(["cache", "--cache-dir", str(cache), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["place"], one["in_use"]) == (uri, False)
    assert one["bytes"] == told["kept_bytes"]

    with ss.open(uri, cache_dir=cache) as data:
        server.reset_counts()
        seen: list[int] = []
        for batch in data.batches(64, shuffle=True, seed=4, options=ss.BatchOptions(return_ids=True, layout="list")):
            seen += check_batch(batch)
        assert sorted(seen) == list(range(600))
        assert server.counts()["requests"].get("GET", 0) == 0
        assert data.reading.store.counters()["cache_misses"] == 0


def test_a_limit_that_is_too_small_is_told(
    served: tuple[ObjectStore, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, uri = served
    assert main(["cache", uri, "--cache-dir", str(tmp_path / "cache"), "--cache-limit", "70000"]) == 0
    told = capsys.readouterr().out
    assert "600 records read" in told
    assert "raise --cache-limit" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cache_dir": "c"}, "local files are read where they are"),
        ({"cache_limit": 5}, "name its folder too"),
    ],
)
def test_a_cache_of_local_files_or_without_a_folder_is_refused(
    tmp_path: Path, options: dict[str, object], sentence: str
):
    ss.convert([{"x": 1}], tmp_path / "store")
    with pytest.raises(ss.errors.OptionError, match=sentence):
        ss.open(tmp_path / "store", **options)


def test_what_nobody_reads_is_removed_when_asked_for(
    served: tuple[ObjectStore, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, uri = served
    cache = tmp_path / "cache"
    assert main(["cache", uri, "--cache-dir", str(cache)]) == 0
    with ss.open(uri, cache_dir=cache) as data:
        assert main(["cache", "--cache-dir", str(cache), "--clear"]) == 0
        assert "in use" in capsys.readouterr().out
        assert data[5]["label"] == 5
    assert main(["cache", "--cache-dir", str(cache), "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert sorted(path.name for path in cache.iterdir()) == ["kept-bytes", "shufflestore-cache"]


def test_a_folder_that_is_no_cache_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "theirs.map").write_text("x")
    for more in ([], ["--clear"]):
        assert main(["cache", "--cache-dir", str(tmp_path), *more]) == 2
    assert (tmp_path / "theirs.map").exists()
    assert "is no cache of shufflestore" in capsys.readouterr().err
