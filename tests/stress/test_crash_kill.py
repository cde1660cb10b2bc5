"""B1: a conversion killed at any call that changes the disk leaves the old data set or the new one, and can go on.

Kills are made through the seam in processes of their own, before a call, after it and halfway
through a write (after one call is before the next); that the seam sees every such call is held against strace.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import layouts, stores
from tests.crashes import Forks


@pytest.fixture(scope="module")
def made():
    with layouts.memory_home() as home:
        yield {name: layouts.make(name, home / name) for name in layouts.LAYOUTS}


def kill_and_recover(forks: Forks, layout: layouts.Layout, at: int, when: str) -> str:
    target = layout.fresh("victim")
    ended = forks.run(layout.job_at(target, die_at=at, when=when))
    assert ended.was_killed or ended.is_good, ended.error
    saw = layout.check_readers(target)
    layout.recover(target)
    layout.check_recovered(target)
    return f"{saw}, {'killed' if ended.was_killed else 'lived'}"


def test_a_conversion_killed_at_any_of_40_calls_is_whole_and_can_be_resumed_to_the_same_bytes(made):
    every = [(name, at, when) for name in made for at, when in made[name].moments()]
    chosen = random.Random(1).sample(every, 40)
    chosen += [
        (name, len(made[name].ops) - back, "before") for name in made for back in range(1, 9)
    ]  # about the commit
    with Forks() as forks:
        for name, at, when in chosen:
            kill_and_recover(forks, made[name], at, when)


@pytest.mark.campaign
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_conversion_killed_at_each_call_is_whole_and_can_be_resumed(made, name, capsys):
    totals: dict[str, int] = {}
    with Forks() as forks:
        for at, when in made[name].moments():
            saw = kill_and_recover(forks, made[name], at, when)
            totals[saw] = totals.get(saw, 0) + 1
    with capsys.disabled():
        print(f"\nB1 {name}: {len(made[name].ops)} calls, {sum(totals.values())} runs, 0 damaged: {totals}")
    assert any("before" in saw for saw in totals)
    assert any("after" in saw for saw in totals)


@pytest.mark.campaign
def test_a_resume_that_is_killed_too_can_be_resumed(made, capsys):
    """B4: 500 pairs of kills."""
    r = random.Random(4)
    with Forks() as forks:
        for _ in range(500):
            layout = made[r.choice([n for n in layouts.LAYOUTS if not n.startswith("writer")])]
            target = layout.fresh("twice")
            for mode in (layout.job["if_exists"], "resume"):
                at, when = r.choice(layout.moments())
                forks.run(layout.job_at(target, if_exists=mode, die_at=at, when=when))
                layout.check_readers(target)
            layout.recover(target)
            layout.check_recovered(target)
    with capsys.disabled():
        print("\nB4: 500 pairs of kills, 0 damaged")


def test_a_resumed_conversion_repeats_no_finished_bundle(made):
    layout = made["first"]
    target = layout.fresh("victim")
    with Forks() as forks:
        assert forks.run(layout.job_at(target, die_at=len(layout.ops) - 20)).was_killed
    done = {p: p.stat().st_ino for p in (target / "shards").glob("*.arrow")}
    assert done
    report = stores.ss.convert(layout.job["source"], target, if_exists="resume", options=stores.small())
    assert report.resumed_shard_count > 0
    assert {p: p.stat().st_ino for p in done} == done
    layout.check_recovered(target)


# -- the seam against strace -----------------------------------------------------------------------

CHANGES = "openat,open,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,link,linkat,unlink,unlinkat,mkdir,mkdirat"
CHANGES += ",rename,renameat,renameat2,ftruncate,truncate,fallocate,rmdir,symlink,symlinkat,utimensat,copy_file_range"
PROGRAM = """
import sys
from tests import crashes, stores
crashes.commit.system = seam = crashes.Seam()
crashes.do({"do": "convert", "if_exists": "error", "source": sys.argv[1], "target": sys.argv[2]})
print(len(seam.ops))
"""


def traced(*options: str, source: Path, target: Path, log: Path) -> subprocess.CompletedProcess[str]:
    command = [
        "strace",
        "-f",
        "-y",
        "-s",
        "0",
        "-o",
        str(log),
        *options,
        sys.executable,
        "-c",
        PROGRAM,
        str(source),
        str(target),
    ]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
def test_every_call_that_changes_the_disk_goes_through_the_seam(made, tmp_path):
    log = tmp_path / "log"
    done = traced("-e", f"trace={CHANGES}", source=made["first"].job["source"], target=tmp_path / "out", log=log)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    mutating = {}
    for line in log.read_text("utf-8", "replace").splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        is_ours = str(tmp_path) in line and "resumed>" not in line
        if not call or not is_ours or (call[1] == "openat" and "O_CREAT" not in line and "O_DIRECTORY" not in line):
            continue
        if "ENOENT" in line or (call[1] == "openat" and "O_NONBLOCK" in line):
            continue  # a listing, or a look at what is not there
        mutating[call[1]] = mutating.get(call[1], 0) + 1
    assert mutating.pop("rmdir", 0) + mutating.pop("unlinkat", 0) <= 1, "the journal's folder, once it is empty"
    assert sum(mutating.values()) == int(done.stdout), mutating
    assert not set(mutating) - {"openat", "write", "fsync", "link", "unlink", "mkdir"}, "nothing is renamed or cut"


@needs_strace
@pytest.mark.parametrize("call", ["fsync", "link", "write", "unlink"])
def test_a_conversion_killed_by_strace_inside_a_system_call_can_be_resumed(made, tmp_path, call):
    layout = made["first"]
    target = layout.fresh("traced")
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when=5", "-P", str(target / "shards")]
    inject = inject[:4]  # -P with counted injection is not to be trusted; counts are by thread
    done = traced(*inject, source=layout.job["source"], target=target, log=tmp_path / "log")
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode != 0
    layout.check_readers(target)
    layout.recover(target)
    layout.check_recovered(target)
