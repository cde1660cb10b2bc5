"""A live line says how a loader does, no more often than it should, and never gets in the way."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys

import pytest

from shufflestore.loader.live import Live
from shufflestore.loader.telemetry import Meter, Pulled
from tests.loops import Run

# -- the live line, as text ------------------------------------------------------------------------


def test_a_log_gets_a_line_every_ten_seconds_about_the_time_since_the_last():
    run, out = Run(), io.StringIO()
    with Live(run.meter, out):
        run.batches(10, wait=0.5, step=0.5, records=4)
        assert out.getvalue() == ""
        run.batches(1, wait=0.5, step=0.5, records=4)
        assert out.getvalue() == "shufflestore: epoch 0: 4 records/s, waited 52.4%, batch p50 499 ms p99 499 ms\n"
        run.batches(10, wait=0.5, step=0.5, records=8)
        run.batches(11, wait=0.2, step=0.8, records=16)
        second, third = out.getvalue().splitlines()[1:]
        run.end()
    assert "8 records/s, waited 50.0%" in second
    assert "16 records/s, waited 2" in third
    assert out.getvalue().splitlines()[3:] == [f"shufflestore: {run.meter.stats()}"], "the whole run at the end"


def test_a_loop_of_slow_batches_gets_one_line_a_batch():
    run, out = Run(), io.StringIO()
    with Live(run.meter, out):
        run.batches(3, wait=30, step=30)
        assert len(out.getvalue().splitlines()) == 3


def test_after_close_nothing_is_written():
    run, out = Run(), io.StringIO()
    live = Live(run.meter, out)
    run.batches(3, wait=10)
    live.close()
    before = out.getvalue()
    live.close()
    run.batches(30, wait=10)
    assert out.getvalue() == before


def test_a_run_without_batches_says_nothing():
    out = io.StringIO()
    Live(Meter(), out).close()
    assert out.getvalue() == ""


def test_only_rank_0_shows_anything():
    run, out = Run(lambda: Pulled(rank=3)), io.StringIO()
    with Live(run.meter, out):
        run.batches(10, wait=10)
    assert out.getvalue() == ""


def test_an_output_that_fails_does_not_reach_the_loop(capsys):
    reading, writing = os.pipe()
    os.close(reading)
    run, broken = Run(), os.fdopen(writing, "w")
    with Live(run.meter, broken):
        run.batches(5, wait=10)
    with contextlib.suppress(BrokenPipeError):
        broken.close()
    closed = io.StringIO()
    with Live(run.meter, closed):
        closed.close()
        run.batches(5, wait=10)
    assert run.meter.stats().batches == 10
    with Live(run.meter):
        run.batches(1, wait=10)
    assert "records/s" in capsys.readouterr().err, "stderr is the default"


# -- the live line, on a terminal ------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns: what to write to, and what was written so far."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    file = os.fdopen(slave, "w")

    def seen():
        file.flush()
        told = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(master, 65_536):
                told += piece
        return told.decode()

    yield file, seen
    file.close()
    os.close(master)


def test_a_terminal_gets_one_line_at_most_twice_a_second(terminal):
    file, seen = terminal
    run = Run()
    live = Live(run.meter, file)
    run.batches(1000, wait=0.001, step=0.009, records=10)
    written = seen()
    lines = re.findall(r"epoch 0: ([\d,]+) records/s", written)
    assert len(lines) == 19, "10 s, the first after half a second"
    assert all(1000 <= int(rate.replace(",", "")) <= 1020 for rate in lines)
    assert written.count("\n") == 0
    run.end()
    live.close()
    assert f"{run.meter.stats()}"[:60] in seen(), "the whole run stays"


def test_a_line_on_a_terminal_forgets_what_is_long_past(terminal):
    file, seen = terminal
    run = Run()
    with Live(run.meter, file):
        run.batches(600, wait=0.05, step=0.05, records=100)
        run.batches(210, wait=0.05, step=0.05, records=200)
        assert re.findall(r"epoch 0: ([\d,]+) records/s", seen())[-1] == "2,000"


def test_a_terminal_is_left_as_it_was(terminal):
    file, seen = terminal
    run = Run()
    before = sys.stdout, sys.stderr
    with Live(run.meter, file):
        run.batches(10, wait=1)
    written = seen()
    assert (sys.stdout, sys.stderr) == before
    assert "\x1b[?25l" not in written, "the cursor stays, whatever becomes of the process"
    assert written.endswith("\n")


def test_a_program_that_ends_without_close_leaves_the_line_whole(terminal):
    file, seen = terminal
    program = (
        "from shufflestore.loader.live import Live; from shufflestore.loader.telemetry import Meter\n"
        "import itertools; clock = itertools.count(1, 10**9); meter = Meter(clock=clock.__next__); live = Live(meter)\n"
        "for _ in range(3): meter.wait_began(); meter.delivered(7)"
    )
    subprocess.run([sys.executable, "-c", program], stderr=file, check=True, timeout=60)
    written = seen()
    assert "7 records/s" in written
    assert written.endswith("\n")
    assert written.count("\n") == 1


def test_what_is_printed_to_a_terminal_stands_above_the_line(terminal, monkeypatch):
    file, seen = terminal
    monkeypatch.setattr(sys, "stdout", file)
    run = Run()
    with Live(run.meter, file):
        run.batches(2, wait=1)
        seen()
        print("loss 0.25")
        told = seen()
    loss, line = told.index("loss 0.25"), told.rindex("records/s")
    assert loss < line
    assert "\x1b[2K" in told[:loss], "the old line is wiped first"


def test_what_goes_to_a_file_still_goes_there_beside_a_terminal(terminal, monkeypatch):
    file, seen = terminal
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stdout", elsewhere)
    run = Run()
    with Live(run.meter, file):
        run.batches(2, wait=1)
        print("loss 0.25")
    assert elsewhere.getvalue() == "loss 0.25\n"
    assert "loss" not in seen()


def test_a_terminal_that_cannot_rewrite_a_line_gets_text(terminal, monkeypatch):
    file, seen = terminal
    monkeypatch.setenv("TERM", "dumb")
    run = Run()
    with Live(run.meter, file):
        run.batches(21, wait=1)
        assert len(seen().splitlines()) == 2
