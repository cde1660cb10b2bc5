"""Which store a path or URI means."""

from __future__ import annotations

from pathlib import Path

import pytest

from shufflestore.errors import OptionError
from shufflestore.storage.uri import is_remote, local_path, place_of


@pytest.mark.parametrize(
    ("uri", "kind", "root", "prefix"),
    [
        ("s3://bucket/a/b", "s3", "s3://bucket", "a/b"),
        ("s3://bucket/a/b//", "s3", "s3://bucket", "a/b"),
        ("s3://bucket", "s3", "s3://bucket", ""),
        ("S3a://bucket/with space/and#mark", "s3", "s3a://bucket", "with space/and#mark"),
        ("s3://bucket/50%20off", "s3", "s3://bucket", "50%20off"),
        ("gs://bucket/a", "gs", "gs://bucket", "a"),
        ("az://container/a", "az", "az://container", "a"),
        ("abfss://c@account.dfs.core.windows.net/a", "az", "abfss://c@account.dfs.core.windows.net", "a"),
        ("http://127.0.0.1:80/x/y/", "http", "http://127.0.0.1:80", "x/y"),
        ("https://example.com/a%20b", "http", "https://example.com", "a b"),
    ],
)
def test_a_uri_is_a_server_and_a_prefix(uri, kind, root, prefix):
    place = place_of(uri)
    assert (place.kind, place.root, place.prefix) == (kind, root, prefix)
    assert is_remote(uri)


@pytest.mark.parametrize(
    ("uri", "root", "prefix"),
    [
        ("hf://datasets/owner/name", "https://huggingface.co/datasets/owner/name/resolve/main", ""),
        ("hf://datasets/owner/name@v1/sub/dir", "https://huggingface.co/datasets/owner/name/resolve/v1", "sub/dir"),
        ("hf://datasets/o/n@refs%2Fconvert", "https://huggingface.co/datasets/o/n/resolve/refs%2Fconvert", ""),
        ("hf://owner/model/sub", "https://huggingface.co/owner/model/resolve/main", "sub"),
    ],
)
def test_the_hub_serves_files_by_revision(monkeypatch, uri, root, prefix):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    place = place_of(uri)
    assert (place.kind, place.root, place.prefix) == ("hf", root, prefix)


def test_another_hub_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.local/")
    assert place_of("hf://datasets/o/n").root == "http://hub.local/datasets/o/n/resolve/main"


@pytest.mark.parametrize(
    "uri",
    ["s3://", "s3:///key", "http://", "https://x/y?token=1", "http://x/y#z", "hf://datasets/o", "hf://x", "ftp://x/y"],
)
def test_what_is_no_place_is_refused_by_name(uri):
    with pytest.raises(OptionError) as raised:
        place_of(uri)
    assert uri.rstrip("/") in str(raised.value)


@pytest.mark.parametrize("path", ["/a/b", "a/b", "C:/x", Path("/a"), "file:///a", "./s3:/x", "memory://x"])
def test_paths_and_file_uris_are_not_remote(path):
    assert not is_remote(path)


def test_a_file_uri_is_a_path():
    assert local_path("file:///a/b%20c") == Path("/a/b c")
    assert local_path("file://localhost/a") == Path("/a")
    assert local_path("/a/b") == local_path(Path("/a/b")) == Path("/a/b")


@pytest.mark.parametrize("uri", ["file://server/a", "ftp://server/a", "memory://a"])
def test_a_uri_that_nothing_answers_to_is_no_local_path(uri):
    with pytest.raises(OptionError, match=uri):
        local_path(uri)
