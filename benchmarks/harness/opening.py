"""One fresh process of `bench_opening`: open, take the first batch, say what it cost, as a line of JSON.

python -m benchmarks.harness.opening FOLDER POSITION warm|cold
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import shufflestore as ss
from benchmarks.harness.audit import Opened, Wrong, check_batch
from benchmarks.harness.invented import SHARD_RECORDS, opened_store
from benchmarks.harness.workload import ids_of, labels_of
from shufflestore.dataset.opening import load_manifest, open_store
from shufflestore.orders import kernels
from shufflestore.orders.cursor import Cursor
from shufflestore.orders.epoch import make_order

SEED = 3
BATCH = 256


def run(folder: Path, position: int, is_warm: bool) -> dict[str, Any]:
    """Return the seconds and bytes of each step."""
    _ = ss.DataLoader  # imports torch and the rest, before any clock runs
    compile_seconds = kernels.warm() if is_warm else 0.0
    store = opened_store(folder)
    before, start = _resident_bytes(), time.perf_counter()
    data = open_store(store, load_manifest(store, None), None)
    opened, resident = time.perf_counter(), _resident_bytes()
    loader = ss.DataLoader(data, BATCH, shuffle=True, seed=SEED, return_ids=True)
    if position:
        cursor = replace(Cursor.from_dict(loader.state_dict()), position=position)
        begin = time.perf_counter()
        loader.load_state_dict(cursor.to_dict())
    else:
        begin = time.perf_counter()
    iterator = iter(loader)
    first = next(iterator)
    first_seconds = time.perf_counter() - begin
    second = next(iterator)
    second_seconds = time.perf_counter() - begin - first_seconds
    resident_at_end = _resident_bytes()
    for number, batch in enumerate((first, second)):
        _check(batch, len(data), position + number * BATCH)
    loader.close()
    data.close()
    return {
        "records": len(data), "shards": len(data) // SHARD_RECORDS, "open_seconds": opened - start,
        "open_bytes": resident - before, "total_bytes": resident_at_end - before, "first_seconds": first_seconds,
        "second_seconds": second_seconds, "compile_seconds": compile_seconds,
    }  # fmt: skip


def _check(batch: Any, length: int, position: int) -> None:
    ids = batch["record_id"].numpy()
    if not np.array_equal(ids, make_order("global", length, SEED).ids(np.arange(position, position + BATCH))):
        raise Wrong(f"other records than those at positions [{position:,}, {position + BATCH:,})")
    tokens = batch["tokens"]
    found = check_batch(Opened(batch["label"], tokens.values, tokens.offsets), SHARD_RECORDS)
    if not np.array_equal(found, ids % SHARD_RECORDS) or ids_of(labels_of(ids))[0] != ids[0]:
        raise Wrong("records of other rows than asked for")


def _resident_bytes() -> int:
    """Memory of the process's own; pages of mapped files belong to the system's cache."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "warm")))
