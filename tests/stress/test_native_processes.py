"""Forks, signals and the end of the process with native threads at work (campaigns G3, G4, G5)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shufflestore.storage.base import READ
from shufflestore.storage.local import LocalStore

SIZE = 1 << 20
DATA = np.random.default_rng(4).integers(0, 256, SIZE, np.uint8)
PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
from shufflestore.storage.base import READ
from shufflestore.storage.local import LocalStore

store = LocalStore(sys.argv[1], engine=sys.argv[2], threads=3)
reads = np.zeros(2000, READ)
reads["file"], reads["size"] = store.handle("a", 1 << 20), 50_000
reads["offset"] = np.random.default_rng(0).integers(0, 900_000, 2000)
reads["slot"] = np.arange(2000) * 50_000

def fly(batches):
    ends = np.arange(1, batches + 1, dtype=np.uint64) * np.uint64(2000 // batches)
    rows = reads[: int(ends[-1])].copy()
    rows["slot"] %= np.uint64(50_000 * (2000 // batches))
    return store.submit(rows, ends, np.full((batches, 1), 50_000 * (2000 // batches), np.uint64))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(DATA.tobytes())
    return tmp_path


def check_reads(store: LocalStore) -> None:
    reads = np.zeros(64, READ)
    reads["file"], reads["size"] = store.handle("a", SIZE), 10_000
    reads["offset"] = reads["slot"] = np.arange(64) * 10_000
    (pending,) = store.submit(reads, np.array([64], np.uint64), np.array([[640_000]], np.uint64))
    assert pending.wait(60.0)
    assert pending.failure() is None
    assert np.array_equal(pending.take()[0], DATA[:640_000])


def forks(folder: Path, engine: str, count: int) -> None:
    store = LocalStore(folder, engine=engine, threads=3)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            check_reads(store)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for i in range(count):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(60)
                    if i % 3:
                        check_reads(store)
                    if i % 3 == 2:
                        store.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"fork {i}"
    finally:
        stop.set()
        busy.join(60.0)
    check_reads(store)
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 on warns of fork with threads: our subject
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring", "auto"])
def test_children_forked_while_threads_are_busy_work_or_end(folder: Path, engine: str):
    forks(folder, engine, 60)


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring", "auto"])
def test_a_thousand_forks(folder: Path, engine: str):
    forks(folder, engine, 1_000)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_store_crosses_to_started_processes(folder: Path, method: str):
    code = textwrap.dedent("""
        import multiprocessing, sys
        import numpy as np
        from shufflestore.storage.local import LocalStore

        def child(store, out):
            out.put(store.read("a", 5, 10))

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[2])
            out = context.Queue()
            process = context.Process(target=child, args=(LocalStore(sys.argv[1]), out))
            process.start()
            assert out.get(timeout=60) == open(sys.argv[1] + "/a", "rb").read()[5:15]
            process.join(60)
            assert process.exitcode == 0
    """)
    script = folder / "main.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script), str(folder), method], check=True, timeout=120)


ENDINGS = {
    "return": ("flying = fly(20)", 0),
    "dropped": ("fly(20)", 0),
    "sys.exit": ("flying = fly(20); sys.exit(3)", 3),
    "os._exit": ("flying = fly(20); os._exit(4)", 4),
    "exception": ("flying = fly(20); raise SystemExit(5)", 5),
    "cycle": ("class C: pass\nc = C(); c.me = c; c.store = store; c.flying = fly(20); del c, store", 0),
    "thread": ("threading.Thread(target=lambda: [p.wait(60) for p in fly(20)], daemon=True).start()", 0),
    "closed": ("flying = fly(20); store.close()", 0),
}


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_with_reads_in_flight(folder: Path, ending: str, engine: str):
    code, expected = ENDINGS[ending]
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", PRELUDE + code, str(folder), engine],
            capture_output=True, text=True, timeout=60,
            env=os.environ | ({} if ending == "thread" else {"SHUFFLESTORE_LEAK_WARNINGS": "1"}),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (expected, "")


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_ctrl_c_ends_a_wait_within_a_moment(folder: Path, engine: str):
    code = PRELUDE + textwrap.dedent("""
        print("ready", flush=True)
        while True:
            for pending in fly(20):
                pending.wait(60)
    """)
    for delay in (0.0, 0.01, 0.05):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), engine],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay)
        begin = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        assert time.monotonic() - begin < 5
        assert child.returncode == -signal.SIGINT
        assert said.count("KeyboardInterrupt") == 1


def test_native_threads_leave_signals_to_the_main_thread(folder: Path):
    store = LocalStore(folder, engine="pread", threads=4)
    before = set(os.listdir("/proc/self/task"))  # of other tests
    check_reads(store)
    names: dict[str, int] = {}
    while len(names) < 4:  # a thread that has not run yet has no name yet
        for task in Path("/proc/self/task").iterdir():
            if task.name not in before and (task / "comm").read_text().startswith("shuffle-"):
                status = (task / "status").read_text().split()
                names[task.name] = int(status[status.index("SigBlk:") + 1], 16)
    for blocked in names.values():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1
        assert not blocked >> (signal.SIGBUS - 1) & 1
    store.close()


def test_many_threads_switching_all_the_time(folder: Path):
    """Campaign G8, short: the interpreter switches threads as often as it can."""
    store = LocalStore(folder, engine="mmap", threads=3)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                check_reads(store)
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120.0)
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    store.close()
