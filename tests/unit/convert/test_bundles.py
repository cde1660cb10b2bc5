"""Bundles written side by side, by workers that know nothing of the script that wants them."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

import shufflestore as ss


def test_a_script_without_a_main_guard_converts_with_several_workers_and_runs_once(tmp_path):
    for number in range(4):
        pq.write_table(pa.table({"x": range(100 * number, 100 * (number + 1))}), tmp_path / f"{number}.parquet")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import shufflestore as ss\n"
        "print('script')\n"
        "options = ss.ConvertOptions(worker_count=2, shards=ss.ShardOptions(shard_bytes=1))\n"
        "report = ss.convert(sys.argv[1] + '/*.parquet', sys.argv[1] + '/store', options=options)\n"
        "print(report.record_count, report.shard_count)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("script\n400 4\n", "", 0)
    with ss.open(tmp_path / "store") as data:
        assert data.take(range(400))["x"].to_pylist() == list(range(400))
