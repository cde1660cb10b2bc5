"""A process ends in every manner with reads in flight: its exit code is its own, at once, and without a word (G5)."""

from __future__ import annotations

import json

import pytest

from tests.scenes import SCALE, good, run, save

PRELUDE = (
    """
import atexit, gc, json, os, select, signal, sys, tempfile, threading, time
import shufflestore as ss
from tests import scenes
"""
    + "folder, engine = sys.argv[1:3]\n"
)

WORK = """
data = ss.open(folder, engine=engine)

def begin(shuffle=True, count=1):
    it = data.batches(5, shuffle=shuffle, options=ss.BatchOptions(return_ids=True))
    for _ in range(count):
        scenes.check_batch(next(it))
    return it

def loader(**options):
    return ss.DataLoader(data, 5, shuffle=True, return_ids=True, **options)

def begun(**options):
    it = iter(loader(**options))
    next(it)
    return it

def forever(ready):
    while True:
        for i, batch in enumerate(data.batches(5, shuffle=True, options=ss.BatchOptions(return_ids=True))):
            scenes.check_batch(batch)
            if i == 2:
                ready.set()

class Node:
    pass

def ends_now():
    os.write(4, str(time.monotonic()).encode())
"""

CONTROL = "nothing was read"
ENDINGS = {
    CONTROL: ("ends_now()", 0, ""),
    # name: (program, exit code, a word on stderr or nothing)
    "return": ("it = begin(); ends_now()", 0, ""),
    "return with a loader": ("it = begun(); ends_now()", 0, ""),
    "return with a transform at work": ("it = begun(transform=dict, transform_threads=2); ends_now()", 0, ""),
    "dropped": ("begin(); ends_now()", 0, ""),
    "sys.exit": ("it = begin(); ends_now(); sys.exit(3)", 3, ""),
    "os._exit": ("it = begin(); ends_now(); os._exit(4)", 4, ""),
    "an exception": ("it = begun(); ends_now(); raise RuntimeError('mine')", 1, "RuntimeError: mine"),
    "SystemExit of a transform": ("ends_now()\nfor b in loader(transform=lambda b: sys.exit(6)): pass", 6, ""),
    "garbage in a cycle": ("n = Node(); n.me = n; n.it = begin(); n.more = begun(); del n; ends_now()", 0, ""),
    "a cycle without a collector": ("gc.disable(); n = Node(); n.me = n; n.it = begin(); del n, data; ends_now()", 0, ""),
    "daemon threads iterate": (
        "ready = [threading.Event() for _ in range(3)]\n"
        "for e in ready: threading.Thread(target=forever, args=(e,), daemon=True).start()\n"
        "assert all(e.wait(60) for e in ready); ends_now()",
        0, "",
    ),
    "daemon threads iterate, switching often": (
        "sys.setswitchinterval(1e-5); ready = [threading.Event() for _ in range(3)]\n"
        "for e in ready: threading.Thread(target=forever, args=(e,), daemon=True).start()\n"
        "assert all(e.wait(60) for e in ready); ends_now()",
        0, "",
    ),
    "another thread reads to its end": (
        "def read():\n"
        "    threading.main_thread().join(60)\n"
        "    sys.exit(sum(len(scenes.check_batch(b)) for b in begin(count=0)) != 1000)\n"
        "threading.Thread(target=read).start(); ends_now()",
        0, "",
    ),
    "a hook at exit reads": (
        "@atexit.register\n"
        "def hook():\n"
        "    total = sum(len(scenes.check_batch(b)) for b in begin(count=0))\n"
        "    ends_now(); os._exit(7 if total == 1000 else 1)",
        7, "",
    ),
    "closed with reads in flight": ("it = begin(); data.close(); ends_now()", 0, ""),
    "a child of a reader": (
        "it = begun(); pid = os.fork()\n"
        "if pid: sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "next(it); ends_now(); sys.exit(8)",
        8, "",
    ),
}  # fmt: skip

# Each ending in children of one process, which end as an interpreter does: by the end of the program.
ROUNDS = """
plan, found = json.loads(sys.argv[3]), []
ss.open, *(() if sys.argv[4] == "plain" else (ss.DataLoader,))  # imported once, before the children
program = None
for name, code, rounds in plan:
    for _ in range(rounds):
        told, tell = os.pipe()
        errors = tempfile.TemporaryFile()
        child = os.fork()
        if child == 0:
            os.dup2(tell, 4), os.dup2(errors.fileno(), 2)
            program = code
            break
        os.close(tell)
        pidfd = os.pidfd_open(child)
        has_ended = bool(select.select([pidfd], [], [], 20)[0])
        now = time.monotonic()
        if not has_ended:
            os.kill(child, signal.SIGABRT)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        since = os.read(told, 100)
        errors.seek(0)
        found.append((name, status, now - float(since) if since else -1.0, errors.read().decode()[-4000:]))
        os.close(told), os.close(pidfd), errors.close()
    if program:
        break
if program:
    exec(program)
else:
    print(json.dumps(found))
"""


def check(found) -> None:
    # An interpreter with torch takes most of a second to end by itself, more on a busy machine.
    own = max(seconds for name, _, seconds, _ in found if name == CONTROL)
    for name, status, seconds, errors in found:
        _, expected, word = ENDINGS[name]
        assert status == expected, (name, status, errors)
        assert 0 <= seconds <= 2 + own, (name, seconds, own)
        if word:
            assert errors.count("Traceback") == 1, (name, errors)
            assert errors.strip().endswith(word)
        else:
            assert errors == "", (name, errors)


UNSETTLED = ("daemon threads iterate", "daemon threads iterate, switching often")
"""About 1 of 150 of these aborts: pyarrow lets the GIL go where it frees a RecordBatchReader, and Python before 3.14 ends
a daemon thread that asks for it too late by unwinding, there through a C++ frame that cannot be (seen in a core dump)."""


def ends(folder, engine, rounds, seconds, left_out=()) -> None:
    of_loaders = [name for name, (code, _, _) in ENDINGS.items() if "begun(" in code or "loader(" in code]
    total = 0
    for kind, names in (("torch", [CONTROL, *of_loaders]), ("plain", [n for n in ENDINGS if n not in of_loaders])):
        names = [name for name in names if name not in left_out]
        plan = [(name, WORK + ENDINGS[name][0], rounds) for name in names]
        found = json.loads(good(run(PRELUDE + ROUNDS, folder, engine, json.dumps(plan), kind, seconds=seconds)))
        assert len(found) == rounds * len(names)
        check(found)
        total += len(found)
    print(f"{total:,} endings, {engine}: right code, at most 2 s, nothing on stderr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("exit") / "data", 1_000)


@pytest.mark.serial
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_a_process_ends_in_every_manner_with_reads_in_flight(folder, engine):
    ends(folder, engine, 2, 200, UNSETTLED)


@pytest.mark.serial
@pytest.mark.campaign
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_campaign_a_process_ends_in_every_manner_a_thousand_times(folder, engine):
    rounds = max(int(1_000 * SCALE) // len(ENDINGS), 1)
    ends(folder, engine, rounds, 3_000)


@pytest.mark.parametrize("name", ["return with a loader", "an exception", "garbage in a cycle"])
def test_a_fresh_interpreter_ends_likewise_with_all_warnings_on(folder, name):
    code, expected, word = ENDINGS[name]
    done = run(PRELUDE + "os.dup2(1, 4)\n" + WORK + code, folder, "auto", flags=("-X", "dev", "-W", "error"))
    assert done.returncode == expected, done.stderr
    assert done.stderr.strip().endswith(word)
    assert word or not done.stderr


@pytest.mark.serial
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_a_read_that_hangs_does_not_keep_a_process_from_ending(folder, engine):
    """As on a dead mount: the file's opener waits for ever."""
    program = """
data = ss.open(folder, engine=engine)
scenes.warm_indexes(data)
import numpy as np
from pathlib import Path
held = scenes.Held(Path(folder) / "0.arrow")
pending = data.reading.submit(np.arange(10), np.array([10]), data.projection())
held.wait_for_openers()
held.restore()
"""
    good(run(PRELUDE + program, folder, engine, seconds=20))
    (folder / "0.arrow.pipe").unlink()


def test_a_hook_older_than_the_package_reads_or_is_told_that_the_reader_is_closed(folder):
    program = """
import atexit, sys

def hook():
    try:
        read()
    except Exception as error:
        print(error)
    else:
        print("read")

atexit.register(hook)
import shufflestore as ss
import shufflestore.errors
data = ss.open(sys.argv[1])
data[3]

def read():
    assert data[7]["label"] == 7
"""
    said = good(run(program, folder))
    assert said == "read\n" or said.startswith(f"{folder}: the reader is closed"), said
