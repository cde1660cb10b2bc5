"""Signals at any moment: Ctrl-C ends a training loop at once and leaves a good state; alarms disturb nothing (G4)."""

from __future__ import annotations

import json
import signal
import sys
import threading

import numpy as np
import pytest

import shufflestore as ss
from shufflestore.errors import StorageError
from shufflestore.orders.epoch import make_order
from tests.scenes import SCALE, Held, check_batch, good, run, save, warm_indexes

N, SEED = 997, 7
pytestmark = pytest.mark.serial

# A training loop that logs each batch and then saves its state, killed again and again at random moments by
# its parent; each life goes on from the state that the one before it left.
LIVES = """
import json, os, random, select, signal, sys, tempfile, time
import shufflestore as ss
from tests import scenes

folder, work, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import torch.utils.data
ss.DataLoader
rng = random.Random(plan["seed"])
life = None

def train(options, number):
    loader = ss.DataLoader(folder, 5, shuffle=True, seed=7, return_ids=True, **options)
    if os.path.exists(work + "/state"):
        loader.load_state_dict(json.load(open(work + "/state")))
    os.write(4, b".")
    with open(f"{work}/log{number}", "a") as log:
        while True:
            for batch in loader:
                ids = scenes.check_batch(batch)
                state = loader.state_dict()
                print(json.dumps([state["epoch"], state["position"], ids]), file=log, flush=True)
                with open(work + "/state.new", "w") as new:
                    json.dump(state, new)
                os.replace(work + "/state.new", work + "/state")
                os.write(4, b".")

def fetch(options):
    workers = torch.utils.data.DataLoader(ss.open(folder), 5, num_workers=2, collate_fn=list, **options)
    while True:
        for i, records in enumerate(workers):
            scenes.check_record(records[0], 5 * i)
            os.write(4, b".")

found = []
for number in range(plan["lives"]):
    kind = plan["kinds"][number % len(plan["kinds"])]
    told, tell = os.pipe()
    errors = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(errors.fileno(), 2), os.dup2(tell, 4)
        if kind == "SIGTERM, handled":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        life = kind, number
        break
    os.close(tell)
    for _ in range(rng.randrange(1, plan["steps"])):
        assert os.read(told, 1), (kind, errors.seek(0), errors.read())
    end = time.perf_counter() + rng.random() * 0.005
    while time.perf_counter() < end:
        pass
    sent = signal.SIGTERM if "TERM" in kind else signal.SIGINT
    before = time.monotonic()
    os.kill(child, sent)
    if kind == "SIGINT twice":
        os.kill(child, sent)
    pidfd = os.pidfd_open(child)
    if not select.select([pidfd], [], [], 20)[0]:
        os.kill(child, signal.SIGABRT)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - before
    left = True
    while left and time.monotonic() < before + 20:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            left = False
    errors.seek(0)
    found.append([kind, status, seconds, left, errors.read().decode()[-6000:]])
    os.close(told), os.close(pidfd), errors.close()
if life is None:
    print(json.dumps(found))
elif "workers" in life[0]:
    fetch({"persistent_workers": life[1] % 2 == 0})
else:
    train({"transform": dict, "transform_threads": 2} if "transform" in life[0] else {}, life[1])
"""
CODES = {"SIGINT": -signal.SIGINT, "SIGTERM": -signal.SIGTERM, "SIGTERM, handled": 143}
KINDS = ["SIGINT", "SIGINT, transform", "SIGTERM", "SIGINT twice", "SIGTERM, handled", "SIGINT, transform"]


def lives(folder, work, count: int, kinds: list[str], seed: int, steps: int = 60, seconds: int = 150) -> None:
    plan = {"lives": count, "kinds": kinds, "seed": seed, "steps": steps}
    found = json.loads(good(run(LIVES, folder, work, json.dumps(plan), seconds=seconds)))
    assert len(found) == count
    for kind, status, took, left, errors in found:
        what = (kind, status, took, errors)
        assert status == CODES.get(kind, CODES[kind.split()[0].rstrip(",")]), what
        assert took <= 3, what  # 2 s, and what an interpreter with torch needs for itself
        assert not left, what
        if "SIGINT" not in kind:
            assert errors == "", what
        elif kind != "SIGINT twice":  # the second may come while the first is being reported
            assert errors.count("Traceback") - errors.count("During handling") == 1, what
            assert errors.strip().endswith("KeyboardInterrupt"), what


def audit(work, count: int) -> int:
    """Check that what all lives delivered up to their saved states is each epoch, once, in its order."""
    done: list[tuple[int, int]] = []
    saved = (0, 0)
    state = json.loads((work / "state").read_text())
    for number in range(count):
        if not (work / f"log{number}").exists():
            continue
        lines = [json.loads(line) for line in (work / f"log{number}").read_text().splitlines()]
        following = next(
            (
                json.loads(text.splitlines()[0])
                for later in range(number + 1, count)
                if (work / f"log{later}").exists() and (text := (work / f"log{later}").read_text())
            ),
            None,
        )
        for epoch, position, ids in lines:
            # Where the next life began says whether the last line's state was saved.
            begun = (
                (state["epoch"], state["position"])
                if following is None
                else (following[0], following[1] - len(following[2]))
            )
            if following is not None and begun[1] == 0:
                begun = (begun[0] - 1, N)
            if (epoch, position) <= begun:
                done += [(epoch, i) for i in ids]
                saved = (epoch, position)
    assert saved == (state["epoch"], state["position"])
    epochs = state["epoch"] + 1
    expected = [
        (epoch, i)
        for epoch in range(epochs)
        for i in make_order("global", N, SEED, epoch)
        .ids(np.arange(N if epoch < epochs - 1 else state["position"]))
        .tolist()
    ]
    assert done == expected
    return len(done)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("signals") / "data", N)


def test_a_training_loop_ends_at_once_and_its_state_goes_on_exactly(folder, tmp_path):
    lives(folder, tmp_path, 20, KINDS, 1)
    print(f"20 lives, {audit(tmp_path, 20):,} records, each epoch's exactly once in its order")


COMPARED = """
import sys, traceback
import numpy._core._internal as internal  # before numpy keeps the function for itself

calls, promote = [], internal._promote_fields
internal._promote_fields = lambda *types: calls.append(traceback.format_stack()) or promote(*types)
import shufflestore as ss
batches = iter(ss.DataLoader(sys.argv[1], 5, shuffle=True))
next(batches)
calls.clear()  # opening joins structured arrays, which is harmless
assert sum(1 for _ in batches) == 199
print("".join(calls[0]) if calls else "never")
"""


def test_no_batch_compares_rows_or_fields_as_numpy_swallows_an_interrupt_there(folder):
    assert good(run(COMPARED, folder, seconds=60)).strip() == "never"


def test_ctrl_c_ends_torchs_workers_too(folder, tmp_path):
    lives(folder, tmp_path, 2, ["SIGINT, workers"], 2, steps=10)


@pytest.mark.campaign
def test_campaign_five_hundred_signals(folder, tmp_path):
    count = int(500 * SCALE)
    lives(folder, tmp_path, count, KINDS, 3, seconds=3_000)
    print(f"{count} lives, {audit(tmp_path, count):,} records, each epoch's exactly once in its order")
    lives(folder, tmp_path, max(count // 10, 1), ["SIGINT, workers"], 4, steps=10, seconds=1_500)


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_ctrl_c_is_heard_while_a_read_hangs(folder, engine):
    program = """
        import os, signal, sys, threading
        from pathlib import Path
        import shufflestore as ss
        from tests import scenes
        data = ss.open(sys.argv[1], engine=sys.argv[2])
        scenes.warm_indexes(data)
        held = scenes.Held(Path(sys.argv[1]) / "0.arrow")

        def interrupt():
            held.wait_for_openers()
            held.restore()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            data[0]
        except KeyboardInterrupt:
            print("heard")
    """
    assert good(run(program, folder, engine, seconds=20)) == "heard\n"
    (folder / "0.arrow.pipe").unlink()


@pytest.fixture
def storm():
    """Alarms of an interval, with a handler of the test's own."""
    before = signal.getsignal(signal.SIGALRM)

    def begin(handler, seconds: float = 0.0005) -> None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    yield begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    # One may be on its way to another thread still, and kill us by default: ignoring drops it.
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_a_storm_of_alarms_changes_nothing(folder, storm, engine):
    heard = 0

    def hear(*_) -> None:
        nonlocal heard
        heard += 1

    with ss.open(folder, engine=engine) as data:
        storm(hear)
        for epoch in range(5):
            loader = ss.DataLoader(data, 5, shuffle=True, seed=SEED, return_ids=True, prefetch_bytes=1 << 12)
            loader.set_epoch(epoch)
            assert sorted(i for batch in loader for i in check_batch(batch)) == list(range(N))
    assert heard > 5


class Alarm(Exception):
    """Raised by a signal handler, as time limits are."""


def interrupted_epochs(folder, storm, engine, epochs: int, **options) -> int:
    """Take epochs while a handler raises at any moment within our code; return how often it did."""
    raised = 0
    ours = sys._getframe().f_code

    def strike(_, frame) -> None:
        nonlocal raised
        # Not while the frame of the consumer itself is at work: what it has got by then is its own to lose.
        if armed and frame is not None and frame.f_code is not ours and "shufflestore" in frame.f_code.co_filename:
            raised += 1
            raise Alarm

    armed = False
    with ss.open(folder, engine=engine) as data:
        loader = ss.DataLoader(data, 7, shuffle=True, seed=SEED, return_ids=True, prefetch_bytes=1 << 12, **options)
        storm(strike, 0.0007)
        for epoch in range(epochs):
            seen: list[list[int]] = []
            iterator = iter(loader)
            while True:
                try:
                    armed = True
                    for batch in iterator:
                        armed = False
                        seen.append(check_batch(batch))
                        assert loader.state_dict()["position"] == sum(map(len, seen))
                        armed = True
                    break
                except Alarm:
                    armed = False
            armed = False
            expected = make_order("global", N, SEED, epoch).ids(np.arange(N)).tolist()
            assert sum(seen, []) == expected, f"epoch {epoch}"
    return raised


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_an_iterator_whose_next_was_interrupted_goes_on_where_it_was(folder, storm, engine):
    assert interrupted_epochs(folder, storm, engine, 6) > 3
    assert interrupted_epochs(folder, storm, engine, 4, transform=dict) > 3


@pytest.mark.campaign
def test_campaign_interrupts_at_any_moment(folder, storm):
    count = sum(
        interrupted_epochs(folder, storm, engine, int(100 * SCALE), **options)
        for engine in ("mmap", "pread")
        for options in ({}, {"transform": dict})
    )
    print(f"{count:,} interrupted reads, every epoch exact")


def test_a_loaded_state_survives_an_interrupt_before_the_first_batch(folder, monkeypatch):
    loader = ss.DataLoader(folder, 5, shuffle=True, seed=SEED, return_ids=True)
    it = iter(loader)
    first = check_batch(next(it))
    state = loader.state_dict()
    fresh = ss.DataLoader(folder, 5, shuffle=True, seed=SEED, return_ids=True)
    fresh.load_state_dict(state)
    again = iter(fresh)
    with monkeypatch.context() as patched:

        def interrupt(*_):
            raise KeyboardInterrupt

        patched.setattr(ss.Dataset, "__len__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(again)
    assert fresh.state_dict() == state
    rest = [i for batch in again for i in check_batch(batch)]
    assert sorted(first + rest) == list(range(N))


def test_signals_reach_pythons_handlers_while_another_thread_waits_for_a_read(folder, storm):
    data = ss.open(folder)
    warm_indexes(data)
    held = Held(folder / "1.arrow")
    heard: list[int] = []  # not an Event: its lock may be held by the very code that a handler interrupts
    try:
        reader = threading.Thread(target=lambda: pytest.raises(StorageError, data.__getitem__, 400))
        reader.start()
        held.wait_for_openers()
        storm(lambda number, _: heard.append(number))
        while not heard:
            pass
        held.release()
        reader.join(60)
        assert not reader.is_alive()
    finally:
        held.close()
