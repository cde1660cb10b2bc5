"""A mapped shard that is cut or rewritten under our hands raises; it never kills the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

import shufflestore
from shufflestore.dataset.inplace import index
from tests.invented import arrow_bytes

ROWS = 4000
SCRIPT = """
    import json, os, random, sys
    from collections import Counter
    import shufflestore as ss
    from shufflestore.errors import ShuffleStoreError

    path, engine, reads, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with open(path, "rb") as file:
        original = file.read()
    dataset = ss.open(path, engine=engine)
    good = dataset.take(range(len(dataset))).to_pylist()
    r, seen = random.Random(seed), Counter()

    def restore():
        if not os.path.exists(path) or os.stat(path).st_ino != inode:
            if os.path.exists(path):
                os.unlink(path)
            os.link(path + ".kept", path)
        with open(path, "r+b") as file:
            file.write(original)

    os.link(path, path + ".kept")
    inode = os.stat(path).st_ino
    for number in range(reads):
        act = r.choice(("cut", "cut", "empty", "rewrite", "replace", "gone", "nothing"))
        if act in ("cut", "empty"):
            os.truncate(path, 0 if act == "empty" else r.randrange(len(original)))
        elif act == "rewrite":
            with open(path, "r+b") as file:
                at = r.randrange(len(original) - 4096)
                file.seek(at)
                file.write(os.urandom(4096))
        elif act in ("replace", "gone"):
            os.unlink(path)
            if act == "replace":
                with open(path, "wb") as file:
                    file.write(os.urandom(r.randrange(len(original))))
        ids = [r.randrange(len(good)) for _ in range(20)]
        try:
            rows = dataset.take(ids).to_pylist()
            assert rows == [good[i] for i in ids], ("silent", act)
            seen[act, "good"] += 1
        except ShuffleStoreError as error:
            assert "data.arrow" in str(error), error
            assert "record " in str(error), error
            seen[act, type(error).__name__] += 1
        restore()
    assert dataset.take([7]).to_pylist() == [good[7]]
    print(json.dumps({" ".join(k): v for k, v in seen.items()}))
"""


def faults(folder: Path, engine: str, reads: int, seed: int) -> dict[str, int]:
    """Return what came of so many reads, each after some damage to the file that is open."""
    table = pa.table(
        {"i": range(ROWS), "text": [f"{i:05d}" * 20 for i in range(ROWS)], "t": [[i] * (i % 30) for i in range(ROWS)]}
    )
    path = folder / "data.arrow"
    path.write_bytes(arrow_bytes(table, 500))
    index(path)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(SCRIPT), str(path), engine, str(reads), str(seed)],
        capture_output=True, text=True, timeout=1800, cwd=Path(shufflestore.__file__).parent.parent, check=False,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.serial
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_a_shard_cut_or_rewritten_before_a_read_is_an_error_and_no_signal(tmp_path, engine):
    seen = faults(tmp_path, engine, 150, 1)
    assert sum(seen.values()) == 150
    assert (
        sum(
            count for what, count in seen.items() if what.startswith(("cut", "empty", "rewrite")) and "good" not in what
        )
        > 20
    )


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_campaign_a_thousand_reads_of_a_shard_that_changes_under_them(tmp_path, engine):
    seen = faults(tmp_path, engine, 1000, 2)
    print(f"\nF3 {engine}: {seen}, signals 0")
