"""What the tests of every framework share: a store of our own, and ranks that start warm."""

from __future__ import annotations

import pytest

import shufflestore as ss
from tests.frameworks.launch import Launcher


@pytest.fixture(scope="module")
def ranks(request):
    """Starts ranks that have loaded what the test module names in WARM."""
    with Launcher(*request.module.WARM) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """103 records, each with its number."""
    folder = tmp_path_factory.mktemp("data") / "store"
    ss.convert([{"x": float(i), "number": i} for i in range(103)], folder)
    return str(folder)
