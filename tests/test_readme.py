"""Every command and every piece of Python in the README and the docs does what it says.

A page's blocks run one after another in one folder, in one namespace, as a reader would type them. What cannot run here
says why, in a comment before it: `<!-- not tested: why -->`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [p for p in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]) if "```" in p.read_text("utf-8")]
BLOCK = re.compile(r"(?:<!-- not tested: ([^>]+) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHOWN = {"text", "json"}
"""Languages of blocks that are only looked at."""


@dataclass
class Block:
    line: int
    language: str
    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [Block(text.count("\n", 0, m.start(3)), m[2], m[3], m[1]) for m in BLOCK.finditer(text)]


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A folder with what the pages speak of: a store, Parquet files, JSONL, a saved Hugging Face data set."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    import shufflestore as ss

    folder = tmp_path_factory.mktemp("scene")
    ids = range(1000)
    table = pa.table(
        {
            "tokens": pa.array([[i * j % 999 for j in range(i % 50)] for i in ids], pa.list_(pa.int32())),
            "label": pa.array([i // 100 for i in ids], pa.int64()),
        }
    )
    (folder / "parquet").mkdir()
    for part in range(2):
        pq.write_table(table.slice(part * 500, 500), folder / "parquet" / f"part-{part}.parquet")
    options = ss.ConvertOptions(worker_count=1, shards=ss.ConvertOptions().shards.__class__(chunk_rows=64))
    ss.convert(folder / "parquet", folder / "store", options=options)
    (folder / "train.jsonl").write_text("".join(f'{{"text": "number {i}", "label": {i % 3}}}\n' for i in ids))
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(folder / "hf_folder")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page(page, scene, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    shutil.copytree(scene, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.reason or block.language in SHOWN:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
        elif block.language == "bash":
            done = subprocess.run(["bash", "-euc", block.code], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
        else:
            pytest.fail(f"{where}: a block in {block.language!r}; say python, bash, or one of {sorted(SHOWN)}")


def test_every_block_that_is_not_run_says_why():
    for page in PAGES:
        for block in blocks(page):
            assert block.reason is None or len(block.reason.split()) >= 3, f"{page}:{block.line}"


def test_doctest_prompts_stand_in_code_and_not_in_pages():
    """pytest would run them a second time, and take the fence for output."""
    assert not [p for p in PAGES if re.search(r"^>>> ", p.read_text("utf-8"), re.MULTILINE)]
