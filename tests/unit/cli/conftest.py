"""A small store, a folder of Parquet files, and a runner that returns what a command printed."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shufflestore as ss
from shufflestore.cli.main import main


def table(start: int, stop: int) -> pa.Table:
    ids = range(start, stop)
    return pa.table(
        {"text": [f"record {i}" for i in ids], "tokens": [list(range(i % 20)) for i in ids], "label": list(ids)}
    )


@pytest.fixture(scope="session")
def parquet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    pq.write_table(table(0, 30), folder / "a.parquet")
    pq.write_table(table(30, 50), folder / "b.parquet")
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory, parquet):
    folder = tmp_path_factory.mktemp("made") / "store"
    ss.convert(parquet, folder, options=ss.ConvertOptions(worker_count=1))
    return folder


@pytest.fixture
def store(tmp_path, made):
    """A store of 50 records, the test's own to damage."""
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def run(capsys):
    """Run a command and return (exit code, what it printed)."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main([str(a) for a in arguments])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def run_json(run):
    """Run a command with --json and return (exit code, the object it printed)."""

    def run_json(*arguments: object) -> tuple[int, dict]:
        code, out = run(*arguments, "--json")
        return code, json.loads(out)

    return run_json
