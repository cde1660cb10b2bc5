"""Files that are cut short or replaced under their maps: errors, never a signal (campaign F3)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from shufflestore import _native
from shufflestore.storage.base import HAS_CRC, READ
from shufflestore.storage.local import LocalStore

SIZE = 64 * 1024


def scattered(rng: np.random.Generator, data: np.ndarray, number: int, *, with_crc: bool) -> np.ndarray:
    reads = np.zeros(40, READ)
    reads["file"] = number
    reads["size"] = rng.integers(1, 5_000, 40)
    reads["offset"] = rng.integers(0, SIZE - 5_000, 40)
    reads["slot"] = np.arange(40) * 5_000
    if with_crc:
        reads["flags"] = HAS_CRC
        reads["crc"] = [_native.crc32c(data[o : o + s]) for o, s in zip(reads["offset"], reads["size"], strict=True)]
    return reads


@pytest.mark.parametrize("with_crc", [True, False])
@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_a_thousand_cuts_and_no_signal(tmp_path: Path, engine: str, with_crc: bool):
    rng = np.random.default_rng(1)
    store = LocalStore(tmp_path, engine=engine)
    for cut in range(250):
        data = rng.integers(1, 256, SIZE, np.uint8)
        path = tmp_path / f"f{cut}"
        path.write_bytes(data.tobytes())
        number = store.handle(path.name, SIZE)
        reads = scattered(rng, data, number, with_crc=with_crc)
        end, sizes = np.array([40], np.uint64), np.array([[200_000]], np.uint64)
        for is_cut in (False, True):
            length = int(rng.integers(0, SIZE)) if is_cut else SIZE
            if is_cut and cut % 3:
                os.truncate(path, length)
            elif is_cut:
                path.unlink()
                path.write_bytes(data[:length].tobytes())  # another file by the same name: the map keeps the old one
                length = SIZE
            (pending,) = store.submit(reads, end, sizes)
            assert pending.wait(60.0)
            failure = pending.failure()
            bad = np.flatnonzero(reads["offset"] + reads["size"] > length)
            if len(bad):
                assert failure is not None
                assert failure.index == bad[0]
                assert failure.kind in ("short", "checksum")
            else:
                assert failure is None
                (out,) = pending.take()
                for read in reads:
                    got = out[read["slot"] :][: read["size"]]
                    assert np.array_equal(got, data[read["offset"] :][: read["size"]])
        path.unlink()
    store.close()


def test_a_handler_that_comes_later_does_not_get_our_faults_and_keeps_its_own(tmp_path: Path):
    code = textwrap.dedent(f"""
        import faulthandler, mmap, os, sys
        import numpy as np
        from shufflestore.storage.base import READ
        from shufflestore.storage.local import LocalStore
        path = {str(tmp_path / "a")!r}
        open(path, "wb").write(b"x" * 40960)
        store = LocalStore({str(tmp_path)!r}, engine="mmap")
        reads = np.zeros(1, READ)
        reads["file"], reads["size"] = store.handle("a", 40960), 40960
        def read():
            (pending,) = store.submit(reads, np.array([1], np.uint64), np.array([[40960]], np.uint64))
            assert pending.wait(60)
            return pending.failure()
        assert read() is None
        faulthandler.enable()          # in front of ours, until the next submit
        assert read() is None
        theirs = mmap.mmap(os.open(path, os.O_RDONLY), 40960, prot=mmap.PROT_READ)
        os.truncate(path, 0)
        assert read().kind == "short"
        print("alive", flush=True)
        theirs[8192]                   # not our map: faulthandler reports, the process dies of SIGBUS
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n"
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == 1


def test_few_descriptors_are_enough_for_many_files(tmp_path: Path):
    """Campaign F1: 3,000 files under a limit of 64 descriptors."""
    for i in range(300):
        (tmp_path / f"f{i}").write_bytes(bytes([i % 256]) * 10)
    code = textwrap.dedent(f"""
        import os, resource, sys
        import numpy as np
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from shufflestore.storage.base import READ
        from shufflestore.storage.local import LocalStore
        for engine in ("mmap", "pread", "io_uring", "io_uring_direct"):
            store = LocalStore({str(tmp_path)!r}, engine=engine)
            reads = np.zeros(3000, READ)
            reads["file"] = [store.handle(f"f{{i * 7 % 300}}", 10) for i in range(3000)]
            reads["size"], reads["slot"] = 1, np.arange(3000)
            (pending,) = store.submit(reads, np.array([3000], np.uint64), np.array([[3000]], np.uint64))
            assert pending.wait(60), engine
            assert pending.failure() is None, pending.failure()
            assert np.array_equal(pending.take()[0], np.arange(3000) * 7 % 300 % 256)
            assert len(os.listdir("/proc/self/fd")) <= 64
            store.close()
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
