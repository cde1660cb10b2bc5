"""Every error arrives where somebody waits for it: as itself, with its message and cause (G6, G7)."""

from __future__ import annotations

import copy
import itertools
import logging
import multiprocessing
import pickle
import queue
import threading

import pytest
import torch.utils.data

import shufflestore as ss
from shufflestore import errors
from shufflestore.errors import CorruptData, NotFound, OptionError, ShardTruncated, StorageError
from tests.scenes import check_batch, save

N = 400
ALL = [getattr(errors, name) for name in errors.__all__]
MESSAGE = "store/: shard 3: record 1,234 needs bytes [5, 9) — “quoted”, 100 %, {braces}\nsecond line"
# Python 3.12 on warns of forks with threads: torch's own way to start workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("errors") / "data", N)


def raised(kind, cause=None):
    try:
        try:
            if cause is not None:
                raise cause
        except BaseException as first:
            raise kind(MESSAGE) from first
        raise kind(MESSAGE)
    except kind as error:
        return error


TRAVELS = {
    **{f"pickle {p}": lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "twice": lambda e: pickle.loads(pickle.dumps(copy.deepcopy(pickle.loads(pickle.dumps(e))))),
}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_error_survives_travel_with_message_fields_and_cause(kind):
    causes = (None, ValueError("inner", 3), FileNotFoundError(2, "gone", "a/b"), raised(CorruptData, KeyError("k")))
    for (name, travel), cause in itertools.product(TRAVELS.items(), causes):
        error = raised(kind, cause)
        if hasattr(error, "add_note"):
            error.add_note("a note")
        error.extra = 7
        there = travel(error)
        assert type(there) is kind, name
        assert str(there) == str(error) == MESSAGE
        assert there.args == error.args
        assert there.extra == 7
        assert getattr(there, "__notes__", None) == getattr(error, "__notes__", None)
        assert repr(there.__cause__) == repr(cause)
        assert there.__suppress_context__ == (cause is not None)
        if isinstance(cause, CorruptData):
            assert repr(there.__cause__.__cause__) == "KeyError('k')"


class Awkward(Exception):
    """An error of a library's that cannot be pickled, as many cannot."""

    def __init__(self, code: int, *, lock: object) -> None:
        super().__init__(f"code {code}")
        self.lock = lock


@pytest.mark.parametrize(
    "cause", [Awkward(3, lock=threading.Lock()), ValueError(threading.Lock()), StopIteration(), KeyboardInterrupt()]
)
def test_a_cause_that_cannot_travel_goes_as_what_it_says(cause):
    there = pickle.loads(pickle.dumps(raised(CorruptData, cause)))
    assert str(there) == MESSAGE
    assert type(cause).__name__ in repr(there.__cause__)
    assert str(cause) in str(there.__cause__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_error_is_of_the_family_and_of_pythons_own_kind(kind):
    assert issubclass(kind, errors.ShuffleStoreError)
    if kind not in (errors.ShuffleStoreError, ss.errors.ShuffleStoreError):
        assert [c for c in kind.__mro__ if c.__module__ == "builtins"][0] is not Exception
    assert str(kind()) == ""


def _fail(name: str):
    raise raised(getattr(errors, name), ValueError("inner"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_hands_errors_over_with_the_story_of_their_cause(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        for kind in ALL:
            with pytest.raises(kind) as caught:
                pool.apply_async(_fail, (kind.__name__,)).get(60)
            assert type(caught.value) is kind
            assert str(caught.value) == MESSAGE
            assert "ValueError: inner" in str(caught.value.__cause__)


class Failing(torch.utils.data.Dataset):
    """Fails with each error in turn, in a worker."""

    def __len__(self):
        return len(ALL)

    def __getitem__(self, index):
        _fail(ALL[index].__name__)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_workers_hand_errors_over_by_class_and_message(workers):
    iterator = iter(torch.utils.data.DataLoader(Failing(), 1, num_workers=workers, timeout=60 * workers))
    for kind in ALL:
        with pytest.raises(kind) as caught:
            next(iterator)
        assert type(caught.value) is kind
        assert MESSAGE in str(caught.value)
        if workers:
            assert "ValueError: inner" in str(caught.value)


# -- out of our own threads ------------------------------------------------------------------------


def damaged(path, how):
    """Return a copy of the data set with one file damaged, and the error that it must give."""
    folder = save(path, N)
    victim = folder / "1.arrow"  # records [100, 200)
    data = bytearray(victim.read_bytes())
    if how == "flip":
        place = data.index(b"record 150")
        data[place] ^= 1
        victim.write_bytes(data)
        return folder, CorruptData, "record 150"
    opened = ss.open(folder)
    if how == "cut":
        with victim.open("r+b") as file:
            file.truncate(2_000)
        return opened, ShardTruncated, "1.arrow"
    victim.unlink()
    return opened, NotFound, "1.arrow"


# torch takes 5 s a worker to shut workers down after an error of theirs, whatever the data set: hence one.
@pytest.mark.parametrize(
    ("how", "workers"), [("flip", None), ("cut", None), ("gone", None), ("cut", 0), ("gone", 0), ("flip", 1)]
)
def test_what_native_threads_find_is_raised_by_name_where_its_batch_is_due(tmp_path, how, workers):
    source, kind, words = damaged(tmp_path / "data", how)
    if workers is None:
        loader = ss.DataLoader(source, 10, return_ids=True)
        good: list[int] = []
        with pytest.raises(kind, match=words) as caught:
            for batch in loader:
                good += check_batch(batch)
        assert good == list(range(150 if how == "flip" else 100))
        assert type(pickle.loads(pickle.dumps(caught.value))) is kind
    else:
        data = source if isinstance(source, ss.Dataset) else ss.open(source)
        loader = torch.utils.data.DataLoader(
            data, 10, num_workers=workers, collate_fn=list, timeout=60 if workers else 0
        )
        with pytest.raises(kind, match=words):
            list(loader)


def test_the_error_of_a_damaged_batch_comes_again_until_somebody_mends_it(tmp_path):
    folder, kind, words = damaged(tmp_path / "data", "flip")
    iterator = iter(ss.DataLoader(folder, 10, return_ids=True))
    seen = [i for _ in range(15) for i in check_batch(next(iterator))]
    for _ in range(3):
        with pytest.raises(kind, match=words):
            next(iterator)
    data = bytearray((folder / "1.arrow").read_bytes())
    place = data.index(b"record 050") if b"record 050" in data else data.index(b"record 149") + len(b"record 149")
    data[place] ^= 1
    (folder / "1.arrow").write_bytes(data)
    assert seen + [i for batch in iterator for i in check_batch(batch)] == list(range(N))


@pytest.mark.parametrize("kind", [*ALL, KeyError, StopIteration, SystemExit, queue.Empty, Awkward])
def test_a_transforms_error_is_raised_itself_where_its_batch_is_due(folder, kind):
    def work(batch):
        if 25 in batch["label"].tolist():
            raise kind(3, lock=None) if kind is Awkward else kind("mine")
        return batch

    loader = ss.DataLoader(folder, 10, return_ids=True, transform=work, transform_threads=2)
    seen: list[int] = []
    with pytest.raises(RuntimeError if kind is StopIteration else kind) as caught:
        for batch in loader:
            seen += check_batch(batch)
    assert seen == list(range(20))
    if kind is StopIteration:
        assert isinstance(caught.value.__cause__, StopIteration)
    assert loader.state_dict()["position"] == 20


def test_a_collate_function_that_raises_stop_iteration_does_not_end_the_epoch(folder):
    def collate(records):
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(ss.DataLoader(folder, 10, collate_fn=collate))


def test_a_failed_transform_ran_again_succeeds_and_nothing_is_lost(folder):
    failures = iter([True, False, True])

    def flaky(batch):
        if 55 in batch["label"].tolist() and next(failures, False):
            raise ConnectionError("for now")
        return batch

    iterator = iter(ss.DataLoader(folder, 10, return_ids=True, transform=flaky))
    seen: list[int] = []
    for attempts in range(3):
        try:
            for batch in iterator:
                seen += check_batch(batch)
        except ConnectionError:
            continue
        break
    assert attempts == 1
    assert seen == list(range(N))


def test_errors_are_not_logged_or_printed_on_their_way(folder, caplog, capfd):
    with caplog.at_level(logging.WARNING), pytest.raises(OptionError):
        ss.open(folder).take([N])
    with pytest.raises(StorageError):
        ss.open(folder / "nowhere")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
