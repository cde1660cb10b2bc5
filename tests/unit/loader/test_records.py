"""A user's collate function is given records while the collector of cycles waits, and only then."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shufflestore as ss
from tests.scenes import child_code, save


@pytest.fixture(autouse=True)
def _collecting():
    yield
    gc.enable()


def batches(folder: Path, collate: Callable[[list[dict[str, Any]]], Any]) -> list[Any]:
    return list(ss.DataLoader(ss.open(folder), 100, collate_fn=collate))


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_afterwards_as_it_was(tmp_path: Path, is_on: bool):
    save(tmp_path)
    (gc.enable if is_on else gc.disable)()
    seen = batches(tmp_path, lambda records: (gc.isenabled(), len(records)))
    assert seen == [(False, 100)] * 10
    assert gc.isenabled() is is_on


def test_the_collector_goes_on_when_a_collate_function_fails(tmp_path: Path):
    save(tmp_path)
    with pytest.raises(ZeroDivisionError):
        batches(tmp_path, lambda records: 1 // 0)
    assert gc.isenabled()


def test_a_process_forked_meanwhile_collects(tmp_path: Path):
    save(tmp_path)

    def child() -> None:
        assert gc.isenabled()

    assert batches(tmp_path, lambda records: (gc.isenabled(), child_code(child))) == [(False, 0)] * 10
