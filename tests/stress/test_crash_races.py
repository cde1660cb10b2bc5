"""B5 and B7: several converters and writers on one target, some stopped or killed; `gc` beside them; Ctrl-C."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shufflestore as ss
from shufflestore.convert.journal import Journal
from shufflestore.convert.run import ConvertOptions
from shufflestore.errors import AlreadyExists, StorageError
from tests import crashes, layouts, stores
from tests.crashes import Forks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home():
    with layouts.memory_home() as place:
        yield place


def race(forks: Forks, target: Path, r: random.Random, writers: int) -> dict[int, bool]:
    """Let writers append at the same time, some stopped or killed on the way; return who succeeded."""
    jobs = {}
    for number in range(writers):
        job = {"do": "write", "target": str(target), "if_exists": "append", "start": 1_000 * number, "count": 60}
        fate = r.choice(("none", "none", "SIGKILL", "SIGSTOP"))
        if fate != "none":
            job |= {"die_at": r.randrange(200), "when": r.choice(("before", "torn")), "signal": fate}
        jobs[forks.start(job)] = number
    good, stopped = {}, []
    for pid in jobs:
        ended = forks.wait(pid)
        if ended.was_stopped:
            stopped.append(pid)
        else:
            assert ended.was_killed or ended.is_good, ended.error
            good[jobs[pid]] = ended.is_good
    for pid in stopped:  # all others are through by now
        os.kill(pid, signal.SIGCONT)
        ended = forks.wait(pid)
        assert ended.is_good, ended.error
        good[jobs[pid]] = True
    return good


def check_race(target: Path, good: dict[int, bool]) -> None:
    """One commit a number, none missing, each record of a survivor once, of the killed all or none."""
    numbers = stores.snapshots(target)
    assert numbers == list(range(1, len(numbers) + 1))
    found = stores.ids(target)
    assert len(set(found)) == len(found)
    for number, is_good in good.items():
        mine = [i for i in found if 1_000 * number <= i < 1_000 * number + 60]
        assert mine == list(range(1_000 * number, 1_000 * number + 60)) or (not is_good and not mine)
    assert len(found) == 60 * len(numbers)
    assert ss.verify(target).is_sound if numbers else True


def test_writers_that_append_at_the_same_time_lose_nothing(home):
    with Forks() as forks:
        for round_ in range(8):
            target = home / f"store-{round_}"
            check_race(target, race(forks, target, random.Random(round_), 3))
            if stores.snapshots(target):
                ss.gc(target)
                assert not stores.leftovers(target)


@pytest.mark.campaign
def test_400_races_of_2_to_8_writers_lose_nothing(home, capsys):
    survivors = killed = 0
    with Forks() as forks:
        for round_ in range(400):
            target = home / f"store-{round_}"
            good = race(forks, target, random.Random(round_), 2 + round_ % 7)
            check_race(target, good)
            survivors += sum(good.values())
            killed += len(good) - sum(good.values())
    with capsys.disabled():
        print(f"\nB5: 400 races, {survivors} survivors all committed once, {killed} killed, 0 lost")


def resume_twice(forks: Forks, layout: layouts.Layout, stop: int) -> None:
    """Let a resume stop at one call while another does all the work, and then go on."""
    target = layout.fresh("out")
    assert forks.run(layout.job_at(target, die_at=len(layout.ops) // 2)).was_killed
    slow = forks.start(layout.job_at(target, if_exists="resume", die_at=stop, signal="SIGSTOP"))
    was_stopped = forks.wait(slow).was_stopped
    assert forks.run(layout.job_at(target, if_exists="resume")).is_good
    if was_stopped:
        os.kill(slow, signal.SIGCONT)
        ended = forks.wait(slow)
        assert ended.is_good, ended.error
    layout.check_recovered(target)
    assert len(stores.snapshots(target)) == len(stores.snapshots(layout.home / "base")) + 1


@pytest.mark.parametrize("name", ["first", "append", "overwrite"])
def test_two_processes_that_resume_one_conversion_both_succeed_and_commit_it_once(home, name):
    layout = layouts.make(name, home)
    with Forks() as forks:
        for stop in [*range(0, 30, 5), *range(30, len(layout.ops), 60)]:
            resume_twice(forks, layout, stop)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["first", "splits", "append", "overwrite"])
def test_two_processes_that_resume_one_conversion_succeed_wherever_one_is_stopped(home, name, capsys):
    layout = layouts.make(name, home)
    with Forks() as forks:
        for stop in range(0, len(layout.ops), 3):
            resume_twice(forks, layout, stop)
    with capsys.disabled():
        print(
            f"\nB5 {name}: {len(range(0, len(layout.ops), 3))} pairs that resumed one conversion, each committed once"
        )


def test_of_two_conversions_to_a_new_target_one_is_refused_by_name(home):
    layout = layouts.make("first", home)
    target = layout.fresh("out")
    with Forks() as forks:
        slow = forks.start(layout.job_at(target, die_at=len(layout.ops) // 2, signal="SIGSTOP"))
        assert forks.wait(slow).was_stopped
        second = forks.run(layout.job_at(target))
        assert second.error.startswith("AlreadyExists")
        assert "unfinished conversion" in second.error
        os.kill(slow, signal.SIGCONT)
        assert forks.wait(slow).is_good
    layout.check_recovered(target)


def test_a_conversion_that_was_overtaken_commits_nothing_and_can_be_appended(home):
    layout = layouts.make("first", home)
    target = layout.fresh("out")
    with Forks() as forks:
        slow = forks.start(layout.job_at(target, die_at=len(layout.ops) // 2, signal="SIGSTOP"))
        assert forks.wait(slow).was_stopped
        assert forks.run(
            {"do": "write", "target": str(target), "if_exists": "append", "start": 900, "count": 5}
        ).is_good
        os.kill(slow, signal.SIGCONT)
        ended = forks.wait(slow)
    assert ended.error.startswith("AlreadyExists")
    assert "if_exists='append'" in ended.error
    assert stores.ids(target) == list(range(900, 905))
    crashes.do(layout.job_at(target, if_exists="append"))
    assert stores.ids(target) == list(range(900, 905)) + stores.ids(layout.home / "done")


# -- gc --------------------------------------------------------------------------------------------


def test_gc_beside_a_conversion_takes_nothing_that_it_will_name(home):
    """Not even files of a snapshot that goes, where the conversion has made the very same ones again."""
    first = stores.parquet(home / "a", 2, 30)
    second = stores.parquet(home / "b", 1, 30, 500)
    job = {"do": "convert", "if_exists": "error", "source": str(first), "target": str(home / "out")}
    crashes.do(job)
    one = stores.seen(home / "out")
    crashes.do({**job, "source": str(second), "if_exists": "overwrite"})
    again = {**job, "if_exists": "overwrite"}
    with Forks() as forks:
        for at in range(3, 300, 23):
            slow = forks.start({**again, "die_at": at, "signal": "SIGSTOP"})
            was_stopped = forks.wait(slow).was_stopped
            ss.gc(home / "out")
            if was_stopped:
                os.kill(slow, signal.SIGCONT)
                ended = forks.wait(slow)
                assert ended.is_good, ended.error
            assert stores.seen(home / "out") == one
            assert ss.verify(home / "out").is_sound
            ss.gc(home / "out")
            crashes.do({**job, "source": str(second), "if_exists": "overwrite"})


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_gc_removes_no_file_that_a_kept_snapshot_names_and_all_that_only_older_ones_do(home, keep):
    target = home / "out"
    for i in range(4):
        mode = "append" if i % 2 else "overwrite"
        stores.ss.convert(
            str(stores.parquet(home / str(i), 1, 30, 100 * i)), target, if_exists=mode, options=stores.small()
        )
    kept = {
        number: (stores.seen(target, number), stores.named(target, number))
        for number in stores.snapshots(target)[-keep:]
    }
    needed = set().union(*(names for _, names in kept.values()))
    report = ss.gc(target, keep=keep)
    assert report.kept_snapshots == tuple(kept)
    assert not needed & set(report.removed)
    for number, (records, _) in kept.items():
        assert stores.seen(target, number) == records
    left = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert left == needed | {f"snapshots/{number:010d}.json" for number in kept}


def test_gc_that_is_killed_harms_no_kept_snapshot_and_can_be_run_again(home, monkeypatch):
    layout = layouts.make("overwrite", home)
    seam = crashes.Seam()
    counted = _copied(layout, "count")
    with monkeypatch.context() as patched:
        patched.setattr(crashes.commit, "system", seam)
        ss.gc(counted)
    for at in range(len(seam.ops)):
        target = _copied(layout, "out")

        class Dies(crashes.Seam):
            def around(self, number, op, arguments, call, at=at):
                if number >= at:
                    raise KeyboardInterrupt
                return call(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(crashes.commit, "system", Dies())
            with pytest.raises(KeyboardInterrupt):
                ss.gc(target)
        assert stores.seen(target) == layout.after
        ss.gc(target, grace_seconds=0)
        assert stores.digests(target) == stores.digests(home / "count")


def _copied(layout: layouts.Layout, name: str) -> Path:
    target = layout.fresh(name)
    crashes.do(layout.job_at(target))
    return target


def test_gc_leaves_an_unfinished_conversion_what_it_has_done(home):
    layout = layouts.make("append", home)
    target = layout.fresh("out")
    with Forks() as forks:
        assert forks.run(layout.job_at(target, die_at=len(layout.ops) - 9)).was_killed
    before = set((target / "shards").glob("*.arrow"))
    ss.gc(target, grace_seconds=0)
    assert set((target / "shards").glob("*.arrow")) == before
    layout.recover(target)
    layout.check_recovered(target)


def test_a_commit_does_not_name_what_somebody_removed_meanwhile(home, monkeypatch):
    source = str(stores.parquet(home / "a", 2, 30))
    note = Journal.note

    def losing(self, bundle, entries):
        note(self, bundle, entries)
        (home / "out" / entries[0]["data"]).unlink()

    monkeypatch.setattr(Journal, "note", losing)
    with pytest.raises(StorageError, match="no longer as it was written"):
        ss.convert(source, home / "out", options=stores.small())
    assert stores.snapshots(home / "out") == []
    monkeypatch.undo()
    ss.convert(source, home / "out", if_exists="resume", options=stores.small())
    assert stores.ids(home / "out") == list(range(60))


# -- signals ---------------------------------------------------------------------------------------

# Runs the command line, and sends a signal once the first finished bundle is noted.
PROGRAM = """
import os, signal, sys
from shufflestore.cli.main import main
from shufflestore.convert.journal import Journal
from shufflestore.convert.run import ConvertOptions
from shufflestore.convert.shards import ShardOptions
note = Journal.note
def noting(self, bundle, entries):
    note(self, bundle, entries)
    os.{send}, signal.{signal})
if __name__ == "__main__":
    Journal.note = noting
    sys.exit(main(sys.argv[1:]))
"""


def interrupted(home: Path, workers: int, send: str, number: str) -> subprocess.CompletedProcess[str]:
    source = stores.parquet(home / "source", 6, 4_000)
    program = home / "program.py"
    program.write_text(PROGRAM.format(send=send, signal=number))
    command = [sys.executable, str(program), "convert", str(source), str(home / "out"), "--workers", str(workers)]
    command += ["--shard-bytes", "400KB"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    with running:
        _, errors = running.communicate(timeout=120)
    return subprocess.CompletedProcess(command, running.returncode, str(running.pid), errors)


def wait_for_group(pid: int) -> None:
    """Wait until nothing of a process group lives; 5 s is what is promised."""
    stop = time.monotonic() + 30
    while time.monotonic() < stop:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("worker processes live on")


@pytest.mark.parametrize("send", ["kill(os.getpid()", "killpg(0"])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_command_returns_130_leaves_no_process_and_can_be_resumed(home, workers, send):
    running = interrupted(home, workers, send, "SIGINT")
    assert running.returncode == 130
    assert "Traceback" not in running.stderr
    wait_for_group(int(running.stdout))
    assert not list((home / "out").rglob(".tmp-*"))
    assert stores.snapshots(home / "out") == []
    resume_and_check(home)


def test_workers_die_with_a_converter_that_is_killed(home):
    running = interrupted(home, 2, "kill(os.getpid()", "SIGKILL")
    assert running.returncode == -signal.SIGKILL
    wait_for_group(int(running.stdout))
    resume_and_check(home)


def resume_and_check(home: Path) -> None:
    options = ConvertOptions(worker_count=2, shards=ss.convert.shards.ShardOptions(shard_bytes=400_000))
    with pytest.raises(AlreadyExists, match="unfinished"):
        ss.convert(home / "source", home / "out", options=options)
    report = ss.convert(home / "source", home / "out", if_exists="resume", options=options)
    assert 0 < report.resumed_shard_count < report.shard_count
    assert not stores.leftovers(home / "out")
    ss.convert(home / "source", home / "plain", options=options)
    assert stores.digests(home / "out") == stores.digests(home / "plain")
    assert stores.ids(home / "out") == list(range(24_000))


def test_a_converting_process_that_is_killed_is_an_error_that_says_how_to_go_on(home, monkeypatch):
    """A worker, not the parent: nobody may wait for it for ever."""
    source = stores.parquet(home / "source", 6, 4_000)
    options = ConvertOptions(
        worker_count=2, shards=ss.convert.shards.ShardOptions(shard_bytes=400_000), progress=lambda *_: _kill_a_child()
    )
    with pytest.raises(StorageError, match=r"a converting process died.*if_exists='resume'"):
        ss.convert(source, home / "out", options=options)
    ss.convert(source, home / "out", if_exists="resume", options=ConvertOptions(
        worker_count=2, shards=ss.convert.shards.ShardOptions(shard_bytes=400_000)))  # fmt: skip
    assert stores.ids(home / "out") == list(range(24_000))
    assert not stores.leftovers(home / "out")


def _kill_a_child() -> None:
    import multiprocessing

    for child in multiprocessing.active_children()[:1]:
        child.kill()
