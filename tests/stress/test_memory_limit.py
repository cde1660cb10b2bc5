"""What happens when memory, files or io_uring run out (F1, F2, F6): an epoch that is right, or one error that names it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import shufflestore as ss
from tests.scenes import ROOT, SCALE, good, run

RECORDS, VALUES = 24_000, 2_048
"""200 MB of int32."""
_CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records whose values all follow from their number, several times what a process may have below."""
    path = tmp_path_factory.mktemp("large")
    for part in range(4):
        numbers = np.arange(part * RECORDS // 4, (part + 1) * RECORDS // 4)
        values = (numbers[:, None] * 31 + np.arange(VALUES)).astype(np.int32)
        lists = pa.ListArray.from_arrays(
            np.arange(0, values.size + 1, VALUES, dtype=np.int32), pa.array(values.ravel())
        )
        made = pa.table({"label": numbers, "tokens": lists})
        with pa.OSFile(str(path / f"{part}.arrow"), "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made, max_chunksize=250)
    ss.index(path)
    return path


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory group of our own, of either version of control groups."""
    base = _CGROUPS / "memory" if (_CGROUPS / "memory").is_dir() else _CGROUPS
    try:
        made = Path(tempfile.mkdtemp(prefix="shufflestore-test-", dir=base))
    except OSError:
        pytest.skip("control groups may not be made here")
    if not ((made / "memory.limit_in_bytes").exists() or (made / "memory.max").exists()):
        made.rmdir()
        pytest.skip("control groups here do not limit memory")
    yield made
    for _ in range(100):
        try:
            made.rmdir()
            return
        except OSError:
            time.sleep(0.05)


EPOCH = """
    import os, sys, threading
    from pathlib import Path
    group, folder, room, memory_limit, engine = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5]
    import numpy as np
    import torch
    import shufflestore as ss
    from tests.scenes import resident_bytes

    warm = torch.zeros(1)
    ss.DataLoader, ss.open
    import shufflestore.loader.loader, shufflestore.dataset.opening, shufflestore.collate.layouts
    base = resident_bytes()
    if group:
        limit = Path(group, "memory.limit_in_bytes")
        limit = limit if limit.exists() else Path(group, "memory.max")
        limit.write_text(str(base + room))
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    most, over = [0], threading.Event()

    def watch():
        while not over.wait(0.005):
            most[0] = max(most[0], resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    seen = np.zeros({records}, bool)
    try:
        loader = ss.DataLoader(ss.open(folder, memory_limit=memory_limit, engine=engine), 64, shuffle=True, seed=3)
        for batch in loader:
            ids = batch["label"].numpy()
            assert not seen[ids].any()
            seen[ids] = True
            values = batch["tokens"].values.numpy().reshape(len(ids), {values})
            assert (values == ids[:, None] * 31 + np.arange({values})).all()
        assert seen.all()
        print(most[0] - base)
    finally:
        over.set()
        thread.join()
""".replace("{records}", str(RECORDS)).replace("{values}", str(VALUES))


@pytest.mark.parametrize("engine", ["auto", "pread", "io_uring", "io_uring_direct"])
def test_an_epoch_stays_within_its_limit_in_a_group_that_is_smaller_than_the_data(
    folder: Path, group: Path, engine: str
):
    limit, slack = 32 << 20, 64 << 20
    told = good(run(EPOCH, group, folder, limit + slack, limit, engine, seconds=120))
    assert int(told) <= limit + slack


LIMITED = """
    import resource, sys
    import numpy as np
    folder, room = sys.argv[1], int(sys.argv[2])
    import torch
    import shufflestore as ss
    from shufflestore.errors import ShuffleStoreError
    import shufflestore.loader.loader, shufflestore.dataset.opening, shufflestore.collate.layouts
    now = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
    try:
        loader = ss.DataLoader(ss.open(folder, memory_limit=32 << 20, engine="pread"), 64, shuffle=True, seed=3)
        count = sum(len(batch["label"]) for batch in loader)
        print("whole", count)
    except MemoryError:
        print("memory")
    except ShuffleStoreError as error:
        print("named", error)
    except RuntimeError as error:
        print("named", error)
    except OSError as error:
        print("named", error)
"""


def _limited(folder: Path, room: int) -> str:
    done = run(LIMITED, folder, room, seconds=120)
    assert done.returncode == 0, f"room {room:,}: {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    kind, _, rest = done.stdout.strip().partition(" ")
    assert kind in ("whole", "memory", "named"), done.stdout
    if kind == "whole":
        assert int(rest) == RECORDS
    return kind


def test_address_space_that_runs_out_is_an_error_and_never_a_crash(folder: Path):
    """F2: some of the steps; the campaign walks all of them."""
    found = [_limited(folder, room << 20) for room in (0, 24, 96, 4_096)]
    assert found[-1] == "whole"


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_address_space_in_steps_of_16_megabytes(folder: Path):
    # The top is room for the stacks and the allocator's heaps of all threads, which take addresses but little memory.
    rooms = range(0, int(2_048 * SCALE) + 1, 16)
    found = [_limited(folder, room << 20) for room in rooms]
    assert found[-1] == "whole"
    print(f"{len(found)} limits: {found.count('whole')} whole epochs, the rest named errors, no crash")


def _bare(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


NO_URING = """
    import ctypes, errno, struct, sys
    BPF = struct.Struct("HBBI")
    rules = [
        BPF.pack(0x20, 0, 0, 0),                               # the number of the system call
        BPF.pack(0x15, 0, 1, 425),                             # io_uring_setup?
        BPF.pack(0x06, 0, 0, 0x00050000 | errno.EPERM),        # then EPERM
        BPF.pack(0x06, 0, 0, 0x7FFF0000),                      # else go on
    ]
    table = ctypes.create_string_buffer(b"".join(rules))

    class Program(ctypes.Structure):
        _fields_ = [("count", ctypes.c_ushort), ("rules", ctypes.c_void_p)]

    program = Program(len(rules), ctypes.addressof(table))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0                     # no new privileges
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
    import logging
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    import shufflestore as ss
    from shufflestore.errors import EngineUnavailable
    from shufflestore.storage import engines, local
    local.available_bytes = lambda: 1000                       # data beyond memory, for `auto`
    engines._RESIDENT = 2.0                                    # wherever it lies
    folder = sys.argv[1]
    for _ in range(2):
        data = ss.open(folder)
        assert data.take([0, 7, 9000])["label"].to_pylist() == [0, 7, 9000]
        print(data.reading.store.engine)
    try:
        ss.open(folder, engine="io_uring")
    except EngineUnavailable as error:
        print("refused:", error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is written for x86-64")
def test_where_io_uring_is_forbidden_reading_goes_on_with_one_warning(folder: Path):
    """F6: a container's filter that answers EPERM."""
    done = _bare(NO_URING, folder)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["pread", "pread"], done.stderr
    assert "io_uring is refused here (Operation not permitted)" in lines[2]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1, done.stderr
    assert "reading with blocking calls instead" in warnings[0]
