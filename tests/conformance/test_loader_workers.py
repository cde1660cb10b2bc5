"""Worker processes are torch's: who they are, what they draw, how they fail, and that they may fetch together."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import pytest
import torch

import shufflestore as ss
from tests.torch_sets import Broken, Drawn, Sized, Sleepy, Squares, Where, batches, plain, seeded, total

Torch = torch.utils.data.DataLoader
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("context", [None, "fork", "spawn", "forkserver"])
def test_workers_know_who_they_are(context, threads):
    options = {"num_workers": 0} if context is None else {"num_workers": 2, "multiprocessing_context": context}
    theirs = Torch(Where(), 3, **options, generator=torch.Generator().manual_seed(5))
    ours = ss.DataLoader(
        Where(), 3, **options, fetch_threads=threads, generator=torch.Generator().manual_seed(5), seed=0
    )
    assert batches(ours) == batches(theirs)


def test_workers_draw_the_same_random_numbers_with_one_thread():
    theirs = Torch(Drawn(), 3, num_workers=2, generator=torch.Generator().manual_seed(5))
    ours = ss.DataLoader(Drawn(), 3, num_workers=2, generator=torch.Generator().manual_seed(5), seed=0)
    assert batches(ours) == batches(theirs)


def test_worker_init_fn_runs_after_seeding():
    theirs, ours = (
        batches(
            kind(Drawn(), 3, num_workers=2, worker_init_fn=seeded, generator=torch.Generator().manual_seed(5), **more)
        )
        for kind, more in ((Torch, {}), (ss.DataLoader, {"seed": 0}))
    )
    assert ours == theirs


@pytest.mark.parametrize("threads", [1, 4])
def test_persistent_workers_are_the_same_processes_in_the_next_epoch(threads):
    loader = ss.DataLoader(Squares(), 5, num_workers=2, persistent_workers=True, fetch_threads=threads)
    iterator = iter(loader)
    pids = [worker.pid for worker in iterator._workers]
    first = batches(iterator)
    assert iter(loader) is iterator
    assert [worker.pid for worker in iterator._workers] == pids
    assert batches(iterator) == first


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_comes_in_its_place_and_iteration_goes_on(workers, threads):
    got = []
    for kind, more in ((Torch, {}), (ss.DataLoader, {"fetch_threads": threads})):
        seen, iterator = [], iter(kind(Broken(), 4, num_workers=workers, **more))
        while True:
            try:
                seen.append(plain(next(iterator)))
            except KeyError as error:
                seen.append("record nine is broken" in str(error))
            except StopIteration:
                break
        got.append(seen)
    assert got[0] == got[1]
    assert True in got[0]


def test_a_time_out_is_torchs():
    with pytest.raises(RuntimeError, match="DataLoader timed out after 0.5 seconds"):
        list(ss.DataLoader(Sleepy(), 2, num_workers=1, timeout=0.5))


DEADLY = """
import os, signal, sys
import shufflestore as ss

class Deadly(list):
    thread_safe = True
    def __getitem__(self, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"record {number}"

list(ss.DataLoader(Deadly(range(9)), 2, num_workers=1, fetch_threads=int(sys.argv[1])))
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_a_worker_that_is_killed_is_named(threads):
    """In a process of its own, since torch raises from a signal handler, wherever Python is then."""
    ran = subprocess.run([sys.executable, "-c", DEADLY, str(threads)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert re.search(r"RuntimeError: DataLoader worker .* (exited unexpectedly|is killed by signal)", ran.stderr)


@pytest.mark.parametrize("threads", [1, 4])
def test_unordered_delivery_delivers_all(threads):
    loader = ss.DataLoader(Squares(), 5, num_workers=2, in_order=False, fetch_threads=threads, collate_fn=total)
    assert sorted(loader) == sorted(Torch(Squares(), 5, collate_fn=total))


def test_more_samples_than_an_iterable_data_set_said_are_warned_of_as_in_torch():
    class Liar(Sized):
        def __len__(self):
            return 3

    counts = []
    for kind in (Torch, ss.DataLoader):
        loader = kind(Liar())
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert len(loader) == 3
            list(loader)
        counts.append([str(warning.message)[:40] for warning in found])
    assert counts[0] == counts[1]
    assert counts[0]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device to pin for")
def test_pinning_without_a_device_warns_as_torch_does():
    with pytest.warns(UserWarning, match="no accelerator is found"):
        list(ss.DataLoader(Squares(), 5, pin_memory=True))
