"""A folder of known files, and each kind of store over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.object_store import ObjectStore
from shufflestore.storage.base import Store
from shufflestore.storage.cached import CachedStore
from shufflestore.storage.remote import RemoteStore
from tests.every_store import REMOTE, SIZES, STORES, bytes_of, made_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in SIZES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes_of(name).tobytes())
    return tmp_path


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose buckets are the folders of the tests."""
    with ObjectStore(tmp_path_factory.getbasetemp()) as server:
        yield server.endpoint


@pytest.fixture(params=[*STORES, *REMOTE])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    made = made_store(request.param, folder, request)
    yield made
    made.close()


@pytest.fixture
def local(store: Store) -> Store:
    """Of a store whose files may change under it."""
    if isinstance(store, RemoteStore):
        pytest.skip("what an object store holds changes as a whole: see test_an_object_that_was_replaced_is_named")
    if isinstance(store, CachedStore):
        pytest.skip("what a cache has kept does not change: see tests/unit/storage/test_cached.py")
    return store


@pytest.fixture
def writable(store: Store) -> Store:
    """Of a store that can be listed and written to."""
    if isinstance(store, RemoteStore) and not store.can_list:
        pytest.skip("an HTTP server is read only")
    return store
