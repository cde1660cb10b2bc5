"""What the plain Python store and its folder do beyond the Store contract."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from shufflestore.errors import OptionError, StorageError
from shufflestore.storage import posix
from shufflestore.storage.base import HAS_CRC, READ
from shufflestore.storage.local import LocalStore
from shufflestore.storage.posix import PosixStore

KINDS = [PosixStore, LocalStore]


def whole(store: PosixStore | LocalStore, name: str, size: int, crc: int | None = None) -> np.ndarray:
    reads = np.zeros(1, READ)
    reads["file"], reads["size"] = store.handle(name, size), size
    if crc is not None:
        reads["flags"], reads["crc"] = HAS_CRC, crc
    (pending,) = store.submit(reads, np.array([1], np.uint64), np.array([[size]], np.uint64))
    assert pending.wait(60.0)
    assert pending.failure() is None
    return pending.take()[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../a", "b/../a", "/etc/passwd", "", "a//b", "./a", "b/", "@other/a", "a\0b", "@/a"])
def test_names_that_could_leave_the_root_are_refused(tmp_path: Path, kind: type, name: str):
    store = kind(tmp_path)
    put, handle = (lambda n: store.put_if_absent(n, b"")), (lambda n: store.handle(n, 1))
    for call in (store.size, store.read, store.delete, handle, put):
        with pytest.raises(OptionError, match=r"name|root"):
            call(name)


@pytest.mark.parametrize("kind", KINDS)
def test_names_may_lie_under_a_second_root(tmp_path: Path, kind: type):
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/b").write_bytes(b"12345")
    store = kind(tmp_path / "cache", roots={"data": str(tmp_path / "data")})
    for made in (store, pickle.loads(pickle.dumps(store))):
        assert whole(made, "@data/deep/b", 5).tobytes() == b"12345"
        assert made.size("@data/deep/b") == 5
        assert list(made.list("@data/")) == list(made.list("@data/de")) == ["@data/deep/b"]
        with pytest.raises(OptionError, match="name"):
            made.size("@data/../x")
        made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_uri_that_a_caller_sets_crosses_processes(tmp_path: Path, kind: type):
    store = kind(tmp_path)
    store.uri = "what a person wrote"
    assert pickle.loads(pickle.dumps(store)).uri == "what a person wrote"


@pytest.mark.parametrize("kind", KINDS)
def test_odd_names_are_names(tmp_path: Path, kind: type):
    store = kind(tmp_path)
    for name in ("with space", "new\nline", "ü" * 100, "x" * 255, "..a", "a..", ".hidden"):
        assert store.put_if_absent(name, name.encode())
        assert whole(store, name, len(name.encode())).tobytes() == name.encode()
    store.close()


def test_the_table_that_replaces_the_native_checksum_agrees_with_it():
    crc32c = posix._python_crc32c()
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    data = np.random.default_rng(1).integers(0, 256, 3_000, np.uint8).tobytes()
    assert crc32c(data) == posix._crc32c(data)


def test_a_file_that_is_no_folder_is_named_when_put_fails(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        PosixStore(tmp_path).put_if_absent("file/x", b"")


def test_nothing_is_read_before_somebody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(b"123")
    calls = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: calls.append(1) or real(*arguments))
    store = PosixStore(tmp_path)
    reads = np.zeros(1, READ)
    reads["file"], reads["size"] = store.handle("a", 3), 3
    (pending,) = store.submit(reads, np.array([1], np.uint64), np.array([[3]], np.uint64))
    assert not pending.is_done()
    assert calls == []
    assert pending.wait(60.0)
    assert calls


def test_short_preads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 7), offset))
    assert whole(PosixStore(tmp_path), "a", 100).tobytes() == bytes(range(100))
    assert PosixStore(tmp_path).read("a", 3, 90) == bytes(range(3, 93))
